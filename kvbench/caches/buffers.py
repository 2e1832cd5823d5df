"""Preallocated storage along the token axis, grown by blocks.

No token is ever concatenated: an append writes into room that is there, and room grows by
``BLOCK`` tokens at a time. The length is known twice, as a Python int (so that slicing never
waits for the device) and as a tensor on the device (so that a captured graph can read it).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.caches.ledger import Part

BLOCK = 256


class TokenBuffer:
    """Rows of one kind for a growing number of tokens: ``[B, H, length, W]``.

    Args:
        name: Its name in the byte ledger.
        dtype: Number format of the rows.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype
        self.length = 0
        self.room: Tensor | None = None  # [B, H, capacity, W]
        self.device_length: Tensor | None = None  # [1] int64

    @property
    def capacity(self) -> int:
        return 0 if self.room is None else self.room.shape[2]

    def append(self, rows: Tensor) -> None:
        """Write ``rows`` ``[B, H, n, W]`` behind what is there."""
        n = rows.shape[2]
        self.reserve(n, like=rows)
        assert self.room is not None  # reserve() made both
        assert self.device_length is not None
        self.room[:, :, self.length : self.length + n] = rows
        self.length += n
        self.device_length.add_(n)

    def reserve(self, n: int, *, like: Tensor) -> None:
        """Have room for ``n`` more tokens. The first room is exact; later it grows by whole blocks."""
        if self.room is None:
            self._allocate(n, like)
            self.device_length = torch.zeros(1, dtype=torch.int64, device=like.device)
        elif self.length + n > self.capacity:
            old, kept = self.room, self.length
            self._allocate(-(-(kept + n) // BLOCK) * BLOCK, like)
            self.room[:, :, :kept] = old[:, :, :kept]

    def _allocate(self, capacity: int, like: Tensor) -> None:
        shape = (like.shape[0], like.shape[1], capacity, like.shape[3])
        self.room = torch.empty(shape, dtype=self.dtype, device=like.device)

    def view(self) -> Tensor:
        """``[B, H, length, W]`` without copying."""
        if self.room is None:
            raise RuntimeError(f"{self.name} is read before anything was stored")
        return self.room[:, :, : self.length]

    def replace(self, rows: Tensor) -> None:
        """Hold exactly ``rows`` from now on, in the room there is if they fit."""
        if self.room is None or rows.shape[0] != self.room.shape[0] or rows.shape[2] > self.capacity:
            self.room, self.length = None, 0
        self.length = 0
        if self.device_length is not None:
            self.device_length.zero_()
        self.append(rows)

    def keep(self, index: Tensor) -> None:
        """Keep the tokens at ``index`` ``[B, H, m]``, in that order."""
        self.replace(gather_tokens(self.view(), index))

    def drop_front(self, n: int) -> None:
        """Forget the oldest ``n`` tokens."""
        self.replace(self.view()[:, :, n:].clone())

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        if self.room is not None:
            self.room = self.room.index_select(0, rows.to(self.room.device))

    def parts(self) -> Iterator[Part]:
        if self.room is None or self.device_length is None:
            return
        row = self.room.shape[0] * self.room.shape[1] * self.room.shape[3] * self.room.element_size()
        yield Part(self.name, self.room, self.length * row)
        yield Part("lengths", self.device_length, self.device_length.element_size())


def gather_tokens(rows: Tensor, index: Tensor) -> Tensor:
    """``rows`` ``[B, H, T, W]`` at ``index`` ``[B, H, m]`` → ``[B, H, m, W]``."""
    return rows.gather(2, index[..., None].expand(*index.shape, rows.shape[3]))
