"""What a step takes from the host (its batch, its number, the schedule's factor), sent without waiting for the device.

Where all training tokens fit on the card they lie there and the host sends where windows start; else it sends the windows,
which a thread puts together a step ahead. Each message leaves from page-locked memory, of which there are several pieces: from
any other a copy waits for the device, and a piece is written again only when its message has arrived. On the device a message
has one place, so that a CUDA graph can read it at each replay. Not run on hardware yet.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyscaling.data.batches import FleetBatches

_AHEAD = 4  # messages under way: the host waits for the device when it is that many steps ahead
_RESIDENT_BYTES = 2 << 30
_CLOCK_BYTES = 16
# What torch can index on every device, of the same width; the sign is taken off again after the gathering.
_STORED = {"u1": np.uint8, "u2": np.int16, "u4": np.int32, "i4": np.int32, "i8": np.int64}


@dataclass
class _Slot:
    """Page-locked memory of one message, the part of it that tells the batch, and what tells that it has left."""

    message: Tensor
    clock: np.ndarray
    payload: np.ndarray
    left: torch.cuda.Event


class Feed:
    """Batches of a fleet on a CUDA device.

    clock: [2] float64 on the device, (step, factor) of the last message. resident_bytes: token arrays below this size are
    held on the device.
    """

    def __init__(self, batches: FleetBatches, device: torch.device, *, resident_bytes: int = _RESIDENT_BYTES) -> None:
        self.batches = batches
        tokens = batches.tokens
        stored = _STORED[tokens.dtype.str[1:]]
        self.resident = tokens.nbytes < resident_bytes
        shape: tuple[int, ...] = batches.shape
        dtype: np.dtype = np.dtype(stored)
        if self.resident:
            self._tokens = torch.from_numpy(np.array(tokens).view(stored)).to(device)
            self._offsets = torch.arange(batches.context + 1, device=device)
            shape, dtype = batches.shape[:2], np.dtype(np.int64)
        n_byte = _CLOCK_BYTES + int(np.prod(shape)) * dtype.itemsize
        self._message = torch.zeros(n_byte, dtype=torch.uint8, device=device)
        self.clock = self._message[:_CLOCK_BYTES].view(torch.float64)
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        self._payload = self._message[_CLOCK_BYTES:].view(torch_dtype).view(shape)
        self._slots = [self._slot(n_byte, dtype, shape) for _ in range(_AHEAD)]
        self._sent = 0
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[None]] | None = None  # the step whose batch is being written into the next slot

    @staticmethod
    def _slot(n_byte: int, dtype: np.dtype, shape: tuple[int, ...]) -> _Slot:
        message = torch.zeros(n_byte, dtype=torch.uint8, pin_memory=True)
        payload = message[_CLOCK_BYTES:].numpy().view(dtype).reshape(shape)
        return _Slot(message, message[:_CLOCK_BYTES].numpy().view(np.float64), payload, torch.cuda.Event())

    def send(self, step: int, factor: float = 0.0) -> None:
        """Brings a step's batch and clock on their way; work that is enqueued from now on finds them."""
        slot = self._slots[self._sent % _AHEAD]
        if self._next is not None:
            self._next[1].result()  # even a batch that was not asked for: this is its slot
        if self._next is None or self._next[0] != step:
            slot.left.synchronize()
            self._write(slot, step)
        slot.clock[:] = step, factor
        self._message.copy_(slot.message, non_blocking=True)
        slot.left.record()
        self._sent += 1
        if not self.resident:
            following = self._slots[self._sent % _AHEAD]
            following.left.synchronize()
            self._next = step + 1, self._thread.submit(self._write, following, step + 1)

    def _write(self, slot: _Slot, step: int) -> None:
        if self.resident:
            slot.payload[...] = self.batches.starts(step)
        else:
            self.batches.batch(step, slot.payload.view(self.batches.tokens.dtype))

    def batch(self) -> Tensor:
        """The batch of the last message, [M, sequences, context + 1] int64, formed on the device."""
        tokens = self._tokens[self._payload[..., None] + self._offsets] if self.resident else self._payload
        tokens = tokens.long()
        unsigned = self.batches.tokens.dtype
        return tokens & np.iinfo(unsigned).max if unsigned in (np.uint16, np.uint32) else tokens
