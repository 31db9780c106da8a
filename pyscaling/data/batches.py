"""The order of training batches: a pure function of (seed, step), so that a resumed run needs no state.

The token array is cut into windows of context + 1 tokens whose starts lie `context` apart; each epoch shifts
the grid of windows and permutes it anew.
"""

from collections.abc import Sequence

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
        self._windows_at = _windows_at(tokens, context)
        self._epoch, self._shift, self._permutation = -1, 0, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> np.ndarray:
        """The batch of a step, [sequences, context + 1] int64: inputs are [:, :-1], targets [:, 1:]."""
        return self._windows_at[self.starts(step)].astype(np.int64)

    def starts(self, step: int) -> np.ndarray:
        """Where the windows of a step's batch start in the token array, [sequences] int64."""
        first = step * self.sequences
        pieces = []
        while (left := (step + 1) * self.sequences - first) > 0:  # a batch may hold the end of an epoch
            epoch, place = divmod(first, self.windows)
            self._enter(epoch)
            pieces.append(self._shift + self.context * self._permutation[place : place + left])
            first += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _enter(self, epoch: int) -> None:
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._shift = int(generator.integers(self.context))
            self._permutation = generator.permutation(self.windows)
            self._epoch = epoch


class FleetBatches:
    """Batches of a fleet: each member reads the same tokens in the order of its own seed."""

    def __init__(self, tokens: np.ndarray, *, context: int, batch_tokens: int, seeds: Sequence[int]) -> None:
        self.orders = [BatchOrder(tokens, context=context, batch_tokens=batch_tokens, seed=seed) for seed in seeds]
        self.tokens, self.context = np.asarray(tokens), context  # a plain view of what may be a memory map
        self.shape = len(seeds), self.orders[0].sequences, context + 1
        self._windows_at = _windows_at(tokens, context)

    def starts(self, step: int) -> np.ndarray:
        """Where each member's windows start, [M, sequences] int64."""
        return np.stack([order.starts(step) for order in self.orders])

    def batch(self, step: int, out: np.ndarray | None = None) -> np.ndarray:
        """The batch of a step, [M, sequences, context + 1], written into `out` if given; else int64."""
        out = np.empty(self.shape, dtype=np.int64) if out is None else out
        out[...] = self._windows_at[self.starts(step)]
        return out


def _windows_at(tokens: np.ndarray, context: int) -> np.ndarray:
    """[i] is the window of context + 1 tokens that starts at i; a view."""
    return np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), context + 1)
