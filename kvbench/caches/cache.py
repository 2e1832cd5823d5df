"""A whole cache: one layer cache per layer, usable by ``model.generate`` and by the scorer alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from kvbench.caches import attention as _registers_attention  # noqa: F401
from kvbench.caches.compat import ATTENTION, Cache
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.ledger import ByteLedger
from kvbench.caches.needs import Needs
from kvbench.caches.rope import Rope

Artefacts = Mapping[str, Sequence[Tensor]]
"""Calibrated tensors by name, one per layer."""


class KVCache(Cache):  # type: ignore[misc]
    """A ``transformers`` cache whose layers store keys and values as one method does.

    Args:
        layers: One :class:`LayerCache` a layer.
        method: The method's label, for messages.
    """

    layers: list[LayerCache]

    def __init__(self, layers: list[LayerCache], method: str = "") -> None:
        super().__init__(layers=layers)
        self.method = method

    def adopt(self, prompt: Sequence[TokenView]) -> None:
        """Compress a shared prompt, layer by layer."""
        for layer, view in zip(self.layers, prompt, strict=True):
            layer.adopt(view)

    def repeat(self, rows: int) -> None:
        """Make ``rows`` rows of the one sequence that was compressed: as many continuations of one prompt."""
        for layer in self.layers:
            layer.repeat(rows)

    def look(self) -> None:
        """Wait for the device, and say whether all scores while decoding did rank.

        Raises:
            MethodError: some did not.
        """
        for layer in self.layers:
            layer.look()

    def ledger(self) -> ByteLedger:
        """Itemised bytes over all layers and rows of the batch."""
        return reduce(lambda a, b: a + b, self.per_layer(), ByteLedger())

    def keys_held(self) -> int:
        """Keys held now, over layers, KV heads and rows of the batch."""
        return sum(layer.held() for layer in self.layers)

    def per_layer(self) -> list[ByteLedger]:
        """One ledger a layer."""
        return [layer.ledger() for layer in self.layers]


@dataclass(frozen=True)
class Geometry:
    """What a cache must know of a model.

    Attributes:
        layers, heads, kv_heads, head_dim: Counts and head size.
        dtype: Compute dtype. rope: Rotary embedding or ``None``. devices: One a layer.
        modules: The attention modules, one a layer. model: The whole of it, for methods that look at it.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    rope: Rope | None
    devices: tuple[torch.device, ...]
    modules: tuple[nn.Module, ...] = ()
    model: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, model: Any) -> Geometry:
        """Read a decoder-only ``transformers`` model."""
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        rotary = getattr(decoder_of(model), "rotary_emb", None)
        return cls(
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype=model.dtype,
            rope=None if rotary is None else Rope(rotary),
            devices=tuple(_device_of(layer) for layer in decoder_of(model).layers),
            modules=tuple(_attention_modules(model)),
            model=model,
        )


def decoder_of(model: Any) -> Any:
    """The model without its head."""
    return model.get_decoder()


def embeddings_of(model: Any) -> int:
    """Token ids that the model can read and predict."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(int(end.weight.shape[0]) for end in ends if end is not None)


def _device_of(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device


def _attention_modules(model: Any) -> list[nn.Module]:
    """The attention modules in order of layers, told by what kvbench's attention function is called with."""
    found = [m for m in decoder_of(model).modules() if hasattr(m, "layer_idx") and hasattr(m, "scaling") and hasattr(m, "config")]
    return sorted(found, key=lambda module: int(module.layer_idx))


def use_kvbench_attention(model: Any) -> None:
    """Select kvbench's attention function, and let caches see hidden states; ordinary caches go on working."""
    if model.config._attn_implementation != ATTENTION:
        model.set_attn_implementation(ATTENTION)
    for module in _attention_modules(model):
        if not any(hook is _hand_hidden for hook in module._forward_pre_hooks.values()):
            module.register_forward_pre_hook(_hand_hidden, with_kwargs=True)


def _hand_hidden(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a layer's attention: let a cache layer that asks for hidden states have them."""
    cache = kwargs.get("past_key_values")
    if isinstance(cache, KVCache):
        layer = cache.layers[int(module.layer_idx)]  # type: ignore[arg-type]
        if layer.needs.hidden or layer.needs.surrogate:
            layer.hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


@dataclass(frozen=True)
class CacheOptions:
    """How a cache will be used; see :class:`LayerContext`."""

    dtype: torch.dtype | None = None
    protocol: Literal["prefill", "streaming"] = "prefill"
    context: int | None = None
    chunk_size: int = 1
    seed: int = 0
    prompt_tokens: int | None = None
    later: Literal["append", "refuse"] = "append"


class Rule(Protocol):
    """What a cache asks of a method."""

    @property
    def label(self) -> str:
        """Its row's name."""

    def prepare(self, model: Any) -> None:
        """Look at the whole model before a cache of it is built."""

    def layer(self, context: LayerContext) -> LayerCache:
        """An empty layer that stores by the method's rule."""

    def join(self, layers: Sequence[LayerCache]) -> None:
        """Tie the layers of a new cache together."""


def build_cache(method: Rule, geometry: Geometry, options: CacheOptions, artefacts: Artefacts) -> KVCache:
    """An empty cache of ``method``."""
    method.prepare(geometry.model)
    layers: list[LayerCache] = []
    for index in range(geometry.layers):
        context = LayerContext(
            index=index,
            layers=geometry.layers,
            heads=geometry.heads,
            kv_heads=geometry.kv_heads,
            head_dim=geometry.head_dim,
            dtype=options.dtype or geometry.dtype,
            protocol=options.protocol,
            context=options.context,
            chunk_size=options.chunk_size,
            seed=options.seed,
            rope=geometry.rope,
            artefacts={name: tensors[index] for name, tensors in artefacts.items()},
            module=geometry.modules[index] if geometry.modules else None,
            prompt_tokens=options.prompt_tokens,
            later=options.later,
        )
        make = partial(method.layer, context)
        layer = make()
        layer.make = make
        layers.append(layer)
    method.join(layers)
    return KVCache(layers, method.label)


class CaptureLayer(LayerCache):
    """Keeps a prompt as it is, for every method to compress from."""

    def __init__(self, context: LayerContext, needs: Needs) -> None:
        super().__init__(context, needs)
        self.prompt: TokenView | None = None

    @property
    def length(self) -> int:
        return self.seen

    def compress(self, prompt: TokenView) -> None:
        self.prompt = prompt

    def append(self, keys: Tensor, values: Tensor) -> None:
        raise RuntimeError("a captured prompt is not continued; build a method's cache from it")

    def attend(self, q: Tensor) -> Tensor:
        raise RuntimeError("a captured prompt is not continued; build a method's cache from it")


def capture_cache(geometry: Geometry, needs: Needs, artefacts: Artefacts | None = None) -> KVCache:
    """A cache that records a prompt's keys, values and ``needs``."""
    g, calibrated = geometry, artefacts or {}
    contexts = (
        LayerContext(
            i, g.layers, g.heads, g.kv_heads, g.head_dim, g.dtype, rope=g.rope,
            artefacts={name: tensors[i] for name, tensors in calibrated.items()},
        )
        for i in range(g.layers)
    )  # fmt: skip
    return KVCache([CaptureLayer(context, needs) for context in contexts], "prompt")


def captured(cache: KVCache) -> list[TokenView]:
    """What a capture cache holds after its prompt's forward."""
    views = [layer.prompt for layer in cache.layers if isinstance(layer, CaptureLayer)]
    return [view for view in views if view is not None]
