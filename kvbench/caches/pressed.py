"""A prompt as a press of NVIDIA's kvpress leaves it, and the care it takes to run one here.

Importing kvpress wraps every attention function that transformers knows, kvbench's own among them. The wrapper
acts only where a press has left ``masked_key_indices`` on an attention module, but it calls what it wraps in its
own way. :func:`load_kvpress` therefore puts every function back as it was: with kvpress loaded, kvbench's
attention and the model's own are the same objects as without, and no press leaves anything on a module. What
head-wise presses hide, kvbench's attention hides by a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvbench.caches.attend import attend
from kvbench.caches.buffers import gather_tokens
from kvbench.caches.dense import DenseLayer
from kvbench.caches.layer_context import LayerContext
from kvbench.caches.ledger import Part, reachable_tensors
from kvbench.caches.needs import Needs
from kvbench.caches.restored import Restored
from kvbench.caches.rope import Rope
from kvbench.caches.views import TokenView
from kvbench.errors import UsageError, told

EVERY_QUERY = 1 << 30
"""A window that no prompt outgrows."""
MASKED = "masked_key_indices"
"""Attribute by which a head-wise press tells kvpress's attention what to hide."""
REFUSALS = (AssertionError, KeyError, NotImplementedError, OSError, ValueError)
"""What a press raises where it cannot work."""
INSTALL = "pip install 'kvbench[kvpress]'  # needs transformers 5.2 or older"


def load_kvpress() -> ModuleType:
    """The package, with transformers' attention functions left as they were.

    Raises:
        UsageError: it is not installed, or not importable beside this transformers.
    """
    from transformers import __version__
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if find_spec("kvpress") is None:
        raise UsageError("method 'kvpress' runs presses of the package kvpress, which is not installed", hint=INSTALL)
    before = dict(ALL_ATTENTION_FUNCTIONS.items())
    try:
        import kvpress
    except ImportError as error:
        raise UsageError(f"the package kvpress cannot be imported beside transformers {__version__}: {error}", hint=INSTALL) from error
    finally:
        for name, function in before.items():
            ALL_ATTENTION_FUNCTIONS[name] = function
    package: ModuleType = kvpress
    return package


@dataclass
class Press:
    """A press made ready for a model.

    Attributes:
        inner: The kvpress object. name: Its class, for messages. reads_attention: It wants the prompt's attention weights.
        weights: What it holds before it has seen any prompt (filters, a scoring model): artefacts, not cache.
    """

    inner: Any
    name: str
    reads_attention: bool = False
    weights: list[Tensor] = field(default_factory=list)

    @property
    def needs(self) -> Needs:
        """What the prompt must have been watched for."""
        return Needs(hidden=True, window=EVERY_QUERY if self.reads_attention else 0)

    def prepare(self, model: Any) -> None:
        """Let the press look at the model, as ``with press(model)`` would.

        Raises:
            UsageError: it has nothing for this model, or cannot fetch what it has.
        """
        try:
            self.inner.post_init_from_model(model)
        except REFUSALS as error:
            text = f"{self.name} cannot be made ready for this model: {told(error) or type(error).__name__}"
            raise UsageError(text, hint="use a press that needs no tensors of its own, for example kvpress:SnapKVPress") from error
        models = [value for value in vars(self.inner).values() if isinstance(value, nn.Module)]
        self.weights = [*reachable_tensors(self.inner), *(weight for held in models for weight in held.parameters())]

    def compress(self, prompt: TokenView, context: LayerContext) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values as the press returns them, and a mask ``[B, Hkv, T]`` of those it hides from later queries.

        Raises:
            ValueError: there is no attention module, or it was called without hidden states.
            UsageError: the press refuses this prompt or model.
        """
        module, hidden, rope = context.module, prompt.observed.hidden, context.rope
        if module is None or hidden is None or rope is None:
            raise ValueError("a press needs the model's attention module, its hidden states and its rotary embedding")
        attention = prompt.window_attention(prompt.seen).to(prompt.keys.dtype) if self.reads_attention else None
        keys, values = prompt.keys.clone(), prompt.values.clone()  # the prompt is shared, and some presses write into it
        with _dressed(module, rope), _drawing(context, keys.device):
            try:
                keys, values = self.inner.compress(module, hidden, keys, values, attention, _call_facts(hidden, rope))
            except REFUSALS as error:
                text = f"{self.name} refuses a prompt of {prompt.seen} tokens: {told(error) or type(error).__name__}"
                raise UsageError(text, hint="use another --context or other parameters of the press") from error
            return keys, values, _mask_of(getattr(module, MASKED), keys)


def make_press(classes: Sequence[type[Any]], given: Sequence[Mapping[str, Any]]) -> Press:
    """A press of ``classes[0]`` with ``given[0]``, around one of ``classes[1]`` if there is one.

    Raises:
        AssertionError, TypeError, ValueError: kvpress refuses the parameters.
    """
    from kvpress import ObservedAttentionPress

    inner: Any = None
    for cls, own in zip(reversed(classes), reversed(given), strict=True):
        inner = cls(**own) if inner is None else cls(press=inner, **own)
    reads = any(issubclass(cls, ObservedAttentionPress) for cls in classes)
    return Press(inner, classes[0].__name__, reads)


def _call_facts(hidden: Tensor, rope: Rope) -> dict[str, Any]:
    """What the attention module was called with, as presses read it: a whole prompt from position 0."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    tables = tuple(table[None].to(hidden.dtype) for table in rope.tables(0, hidden.shape[1], hidden))
    return {"hidden_states": hidden, "position_embeddings": tables, "position_ids": positions[None], "cache_position": positions}


@contextmanager
def _dressed(module: nn.Module, rope: Rope) -> Iterator[None]:
    """The attention module as kvpress dresses it, undressed afterwards."""
    had = "rotary_emb" in module._modules
    setattr(module, MASKED, None)
    if not had:
        module.rotary_emb = rope.module
    try:
        yield
    finally:
        delattr(module, MASKED)
        if not had:
            del module.rotary_emb


@contextmanager
def _drawing(context: LayerContext, device: torch.device) -> Iterator[None]:
    """What a press draws depends on the run's seed and the layer alone, and changes nobody else's draws."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(context.seed * 1_009 + context.index)
        yield


def _mask_of(indices: Any, keys: Tensor) -> Tensor | None:
    """``[B, Hkv, T]``, True at (row, head, token) ``indices``; ``None`` where nothing is hidden."""
    if indices is None:
        return None
    mask = torch.zeros(keys.shape[:3], dtype=torch.bool, device=keys.device)
    mask[tuple(index.to(keys.device) for index in indices)] = True
    return mask


class PressedLayer(DenseLayer):
    """What a press returns, dense, and a mask of the keys that it hides. Later tokens are added as they come.

    Args:
        press: Shared by all layers of a model, as kvpress shares it.
    """

    def __init__(self, context: LayerContext, press: Press) -> None:
        super().__init__(context, press.needs)
        self.press = press
        self.masked: Tensor | None = None

    def compress(self, prompt: TokenView) -> None:
        keys, values, self.masked = self.press.compress(prompt, self.context)
        self.append(keys, values)

    def places(self, prompt: TokenView) -> Tensor:
        """By their keys, where the press returns fewer than it was given: it does not say which."""
        if self.length == prompt.seen:
            return prompt.positions
        kept = self.keys_store.read(prompt.wide)
        given = prompt.keys.to(self.keys_store.buffer.dtype).to(prompt.wide)
        nearest = torch.cdist(kept, given, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)  # 0 exactly where they are equal
        if not torch.equal(gather_tokens(given, nearest), kept):
            raise NotImplementedError(f"{self.press.name} changes the keys that it keeps, so that their tokens are not known")
        return prompt.positions.gather(2, nearest)

    def restored(self, prompt: TokenView, dtype: torch.dtype) -> Restored:
        found = super().restored(prompt, dtype)
        if self.masked is None:
            return found
        shown = found.held.scatter(2, self.places(prompt), ~self.masked)
        return Restored(found.keys * shown[..., None], found.values * shown[..., None], shown)

    def attend(self, q: Tensor) -> Tensor:
        keys, values = self.keys_store.read(q.dtype), self.values_store.read(q.dtype)
        later = 0 if self.masked is None else self.length - self.masked.shape[2]
        return attend(q, keys, values, self.scaling, None if self.masked is None else F.pad(self.masked, (0, later)))

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        if self.masked is not None:
            yield Part("mask", self.masked, self.masked.nbytes)

    def artefacts(self) -> Iterator[Part]:
        for tensor in self.press.weights:
            yield Part("press", tensor, tensor.nbytes)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.masked is not None:
            self.masked = self.masked.index_select(0, beam_idx.to(self.masked.device))
