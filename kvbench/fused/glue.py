"""Everything of a decode step that is not attention: norms, gates and matrix products, fused where that is faster.

The stream is the residual stream, ``[B, H]``, kept in the model's dtype and added to in place. One decoder layer reads

    qkv = norm_qkv(stream)            # norm_linear_for(input_layernorm ...)
    o(attend(qkv), stream)            # add_linear_for(o_proj ...): stream += o_proj(...)
    y = norm_gate_up(stream)          # norm_gated_for(post_attention_layernorm ...)
    down(y, stream)                   # add_linear_for(down_proj ...)

Every ``*_for`` decides when it is made, by timing on the device, between Triton kernels and PyTorch's own products;
what it returns does no host synchronisation and can be captured in a CUDA graph, so make all before a capture begins,
and call them without gradients. Weights stay where they are: the operations hold them. Without CUDA or Triton, or in
a dtype or layout that the kernels do not take, everything runs in plain PyTorch. Rounding is Hugging Face's: each
unfused module's result is rounded to the model's dtype.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvbench.fused import plain_step
from kvbench.fused.choice import Choice, fastest

if TYPE_CHECKING:
    from kvbench.fused.kernels.linear import Room, Tile

LIBRARY = "library"
"""The way whose product is PyTorch's own (cuBLAS on CUDA)."""
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these tensors: on CUDA, contiguous, aligned to sixteen bytes, in one dtype of theirs."""
    held = [tensor for tensor in tensors if tensor is not None]
    return (
        held[0].is_cuda
        and held[0].dtype in _DTYPES
        and has_triton()
        and all(tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 and tensor.dtype == held[0].dtype for tensor in held)
    )


def add_norm(stream: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add to the stream and norm it.

    Args:
        stream: ``[B, H]``; ``delta`` is added in place and rounded.
        delta: ``[B, H]``, or None where there is nothing to add.
        weight: The norm's, ``[H]``.
        eps: What is added to the mean square.

    Returns:
        ``RMSNorm(stream) * weight``, ``[B, H]``.
    """
    if not takes(stream, delta, weight):
        return plain_step.add_norm(stream, delta, weight, eps)
    from kvbench.fused.kernels import glue as kernels

    return kernels.add_norm(stream, delta, weight, eps)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """``act(gate) * up`` of ``[B, 2I]``, gates first: ``[B, I]``; ``activation`` is ``silu`` or ``gelu_tanh``.

    Raises:
        UnsupportedModel: The activation has no fused form.
    """
    plain_step.activation_named(activation)
    if not takes(gate_up):
        return plain_step.gated(gate_up, activation)
    from kvbench.fused.kernels import glue as kernels

    return kernels.gated(gate_up, activation)


class Product:
    """A product with a weight, and what is fused with it, in the way that was fastest when it was made.

    Args:
        weight: ``[N, K]``, or ``[2I, K]`` with gates first where there is an activation.
        bias: ``[N]`` or ``[2I]``, or None.
        rows: The rows that it is chosen for; with others it runs as the library does.
        peers: Weights of the same shape, this one among them, that a step reads one after the other: ways are timed over all of them.
        norm: The weight ``[K]`` and eps of a norm before it.
        activation: Of a gate after it; empty where there is none.
        adds: Whether the product is added to the stream.

    Attributes:
        choice: The way chosen, ``library`` or a kernel's tile, and the microseconds of all that were timed.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rows: int,
        *,
        norm: tuple[Tensor, float] | None = None,
        activation: str = "",
        adds: bool = False,
        peers: Sequence[Tensor] = (),
    ) -> None:
        self.weight, self.bias, self.rows, self.norm, self.activation, self.adds = weight, bias, rows, norm, activation, adds
        self._tile: Tile | None = None
        self._rooms: dict[Tile, Room] = {}
        self.choice = Choice(LIBRARY)
        if takes(weight, bias, norm[0] if norm else None):
            self._choose(peers or [weight])

    def _choose(self, weights: Sequence[Tensor]) -> None:
        """Time PyTorch's own product against the kernels' tiles on random rows."""
        from kvbench.fused.kernels.linear import can_deal, tiles

        outputs, inputs = self.weight.shape
        dtype, device = self.weight.dtype, self.weight.device
        known = tiles(self.rows, outputs, dtype, gated=bool(self.activation))
        candidates = {str(tile): tile for tile in known if can_deal(tile, self.rows, self.weight)}
        rows = torch.randn(self.rows, inputs, generator=torch.Generator(device).manual_seed(0), dtype=dtype, device=device)
        stream = torch.zeros(self.rows, outputs, dtype=dtype, device=device) if self.adds else None
        ways = {LIBRARY: partial(self._library, rows, stream)}
        ways |= {name: partial(self._fused, tile, rows, stream) for name, tile in candidates.items()}
        features = (self.bias is not None, self.norm is not None, self.activation, self.adds)
        key = ("product", outputs, inputs, self.rows, dtype, *features)
        self.choice = fastest(key, ways, weights, device, reset=stream.zero_ if stream is not None else None)
        self._tile = candidates.get(self.choice.name)

    def _normed(self, x: Tensor) -> Tensor:
        return add_norm(x, None, *self.norm) if self.norm else x

    def _library(self, x: Tensor, stream: Tensor | None, weight: Tensor) -> Tensor:
        """PyTorch's own product, and a kernel for each of the rest."""
        y = plain_step.linear(self._normed(x), weight, self.bias)
        if self.activation:
            return gated(y, self.activation)
        return y if stream is None else stream.add_(y)

    def _fused(self, tile: Tile, x: Tensor, stream: Tensor | None, weight: Tensor) -> Tensor:
        """One kernel; a norm of several rows has its own."""
        from kvbench.fused.kernels.linear import product, room_for

        if self.rows > 1:
            room = self._rooms.get(tile)
            if room is None:
                room = self._rooms[tile] = room_for(tile, self.rows, weight)
            return product(tile, self._normed(x), weight, self.bias, activation=self.activation, stream=stream, room=room)
        return product(tile, x, weight, self.bias, norm=self.norm, activation=self.activation, stream=stream)

    def _run(self, x: Tensor, stream: Tensor | None = None) -> Tensor:
        fits = x.shape[0] == self.rows and x.is_contiguous() and (stream is None or stream.is_contiguous())
        if self._tile is None or not fits:
            return self._library(x, stream, self.weight)
        return self._fused(self._tile, x, stream, self.weight)


class NormLinear(Product):
    """``y = op(stream)``: the product of the stream's norm, ``[rows, K]`` to ``[rows, N]``; the stream is only read."""

    def __call__(self, stream: Tensor) -> Tensor:
        return self._run(stream)


class NormGated(Product):
    """``y = op(stream)``: ``act(gate) * up`` of the stream's norm, ``[rows, K]`` to ``[rows, I]``; the stream is only read."""

    def __call__(self, stream: Tensor) -> Tensor:
        return self._run(stream)


class AddLinear(Product):
    """``op(x, stream)``: ``stream += x @ weight.T + bias`` in place, the product rounded before the sum; returns ``stream``."""

    def __call__(self, x: Tensor, stream: Tensor) -> Tensor:
        return self._run(x, stream)


def norm_linear_for(
    norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None, rows: int, peers: Sequence[Tensor] = ()
) -> NormLinear:
    """The fastest ``linear(RMSNorm(stream))`` for ``norm_weight [K]``, ``weight [N, K]``, ``bias [N]`` and this many rows."""
    return NormLinear(weight, bias, rows, norm=(norm_weight, eps), peers=peers)


def norm_gated_for(
    norm_weight: Tensor, eps: float, gate_up_weight: Tensor, gate_up_bias: Tensor | None, activation: str, rows: int,
    peers: Sequence[Tensor] = (),
) -> NormGated:  # fmt: skip
    """The fastest ``act(gate) * up`` of the stream's norm; ``gate_up_weight [2I, K]`` and ``gate_up_bias [2I]``, gates first.

    Raises:
        UnsupportedModel: The activation has no fused form.
    """
    plain_step.activation_named(activation)
    return NormGated(gate_up_weight, gate_up_bias, rows, norm=(norm_weight, eps), activation=activation, peers=peers)


def add_linear_for(weight: Tensor, bias: Tensor | None, rows: int, peers: Sequence[Tensor] = ()) -> AddLinear:
    """The fastest ``stream += linear(x)`` for ``weight [N, K]``, ``bias [N]`` and this many rows."""
    return AddLinear(weight, bias, rows, adds=True, peers=peers)
