"""The order of training batches: a pure function of (seed, step), so that a resumed run needs no state.

The token array is cut into windows of context + 1 tokens whose starts lie `context` apart; each epoch shifts
the grid of windows and permutes it anew.
"""

import numpy as np


class BatchOrder:
    """Batches of one training run.

    tokens: 1-d array of token ids. context: tokens of a sequence. batch_tokens: tokens of a batch, a multiple of
    context. seed: fixes the order. Raises ValueError if the array cannot fill one batch.
    """

    def __init__(self, tokens: np.ndarray, *, context: int, batch_tokens: int, seed: int) -> None:
        if batch_tokens < context or batch_tokens % context:
            raise ValueError(f"batch_tokens must be a multiple of context={context}, got {batch_tokens}.")
        self.sequences = batch_tokens // context
        # One window fewer than fits, so that every epoch's shift of the grid stays inside the array.
        self.windows = (len(tokens) - 1) // context - 1
        if self.windows < self.sequences:
            raise ValueError(
                f"the training split holds {len(tokens)} tokens, less than one batch of {self.sequences} sequences of "
                f"{context} tokens (needs {(self.sequences + 1) * context + 1}). "
                "Give more text, a smaller batch_tokens or a shorter context."
            )
        self.tokens, self.context, self.seed = tokens, context, seed
        self._epoch, self._starts = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> np.ndarray:
        """The batch of a step, [sequences, context + 1] int64: inputs are [:, :-1], targets [:, 1:]."""
        first = step * self.sequences
        starts = [self._start(i) for i in range(first, first + self.sequences)]
        return self.tokens[np.add.outer(starts, np.arange(self.context + 1))].astype(np.int64)

    def _start(self, index: int) -> int:
        epoch, place = divmod(index, self.windows)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            shift = generator.integers(self.context)
            self._starts = shift + self.context * generator.permutation(self.windows)
            self._epoch = epoch
        return int(self._starts[place])
