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

    The tokens lie at ``start … start + length`` of the room, so that forgetting the oldest moves nothing;
    they move to the front when the room's end is reached, once in about ``BLOCK`` appends.

    Args:
        name: Its name in the byte ledger.
        dtype: Number format of the rows.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype
        self.start, self.length = 0, 0
        self.room: Tensor | None = None  # [B, H, capacity, W]
        self.device_span: Tensor | None = None  # [2] int64: start and length, where a captured graph reads them

    @property
    def capacity(self) -> int:
        return 0 if self.room is None else self.room.shape[2]

    def append(self, rows: Tensor) -> None:
        """Write ``rows`` ``[B, H, n, W]`` behind what is there."""
        room = self.reserve(rows.shape[2], like=rows)
        end = self.start + self.length
        room[:, :, end : end + rows.shape[2]] = rows.detach()
        self._move(0, rows.shape[2])

    def reserve(self, n: int, *, like: Tensor) -> Tensor:
        """Have room for ``n`` more tokens, and return it. The first room is exact; later it grows by whole blocks."""
        if self.room is None:
            self.device_span = torch.zeros(2, dtype=torch.int64, device=like.device)
            self.room = self._new_room(n, like)
        elif self.start + self.length + n > self.capacity:
            held = self.view()
            fits = self.length + n <= self.capacity and self.start >= self.length  # no overlap, so no copy of the copy
            room = self.room if fits else self._new_room(-(-(self.length + n) // BLOCK) * BLOCK, like)
            room[:, :, : self.length] = held
            self.room = room
            self._move(-self.start, 0)
        return self.room

    def _new_room(self, capacity: int, like: Tensor) -> Tensor:
        return torch.empty((*like.shape[:2], capacity, like.shape[3]), dtype=self.dtype, device=like.device)

    def _move(self, start: int, length: int) -> None:
        """Change both lengths, the host's and the device's, without waiting for the device."""
        self.start += start
        self.length += length
        if self.device_span is not None:
            self.device_span[0].add_(start)
            self.device_span[1].add_(length)

    def view(self) -> Tensor:
        """``[B, H, length, W]`` without copying."""
        if self.room is None:
            raise RuntimeError(f"{self.name} is read before anything was stored")
        return self.room[:, :, self.start : self.start + self.length]

    def keep(self, index: Tensor) -> None:
        """Keep the tokens at ``index`` ``[B, H, m]``, in that order."""
        kept = gather_tokens(self.view(), index)
        self._move(-self.start, -self.length)
        self.append(kept)

    def replace_by_newest(self, index: Tensor) -> None:
        """Forget the token at ``index`` ``[B, H, 1]``: the newest takes its place, and nothing else moves."""
        rows = self.view()
        rows.scatter_(2, index[..., None].expand(*index.shape, rows.shape[3]), rows[:, :, -1:].clone())
        self._move(0, -1)

    def drop_front(self, n: int) -> None:
        """Forget the oldest ``n`` tokens."""
        self._move(-self.start if n == self.length else n, -n)

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        if self.room is not None:
            self.room = self.room.index_select(0, rows.to(self.room.device))

    def parts(self) -> Iterator[Part]:
        if self.room is None or self.device_span is None:
            return
        row = self.room.shape[0] * self.room.shape[1] * self.room.shape[3] * self.room.element_size()
        yield Part(self.name, self.room, self.length * row, self.view())
        yield Part("lengths", self.device_span, self.device_span.nbytes)


def gather_tokens(rows: Tensor, index: Tensor) -> Tensor:
    """``rows`` ``[B, H, T, W]`` at ``index`` ``[B, H, m]`` → ``[B, H, m, W]``."""
    return rows.gather(2, index[..., None].expand(*index.shape, rows.shape[3]))


def scatter_tokens(rows: Tensor, index: Tensor, total: int) -> Tensor:
    """The inverse: ``rows`` ``[B, H, m, W]`` at ``index`` ``[B, H, m]`` of ``total`` tokens → ``[B, H, total, W]``, zeros elsewhere."""
    whole = rows.new_zeros(*rows.shape[:2], total, rows.shape[3])
    return whole.scatter_(2, index[..., None].expand(*index.shape, rows.shape[3]), rows)
