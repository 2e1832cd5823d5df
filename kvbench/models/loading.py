"""Load a model and its tokenizer: the embedded one, a hub id, a folder, a ``.gguf`` file, or random weights from a config.

Importing this module is cheap; torch and transformers are imported by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kvbench.errors import KvbenchError, ModelError, ResourceError, told
from kvbench.models.devices import check_memory, choose_cache_dtype, choose_dtype, resolve_device
from kvbench.models.gguf.early import refuse_early
from kvbench.models.random_weights import build_random
from kvbench.models.shape import Shape, cache_bytes_per_token, check_supported, shape_of
from kvbench.models.sources import Source, find_source, local_source
from kvbench.models.telemetry import device_name
from kvbench.models.unloaded import check_attention, outline_of, weight_bytes
from kvbench.models.weights import Progress, hash_random, hash_tokenizer, hash_weights, silent
from kvbench.spec import ModelSpec

if TYPE_CHECKING:
    import torch

__all__ = [
    "LoadedModel",
    "Shape",
    "cache_bytes_per_token",
    "check_attention",
    "check_supported",
    "load_model",
    "load_tokenizer",
    "resolve_device",
    "shape_of",
]

LOADING = "loading model"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be measured: eval mode, no gradients.

    Attributes:
        model: A ``transformers`` causal language model.
        tokenizer: Its tokenizer, or ``None`` for random weights whose tokenizer is not on this machine.
        config: ``model.config``.
        shape: Sizes that the cache depends on.
        device: Where tokens go in (the first GPU of a ``device_map``).
        dtype: Number format of weights and activations.
        cache_dtype: Number format in which keys and values are stored.
        info: What the result records: id, weights_hash, config_hash, revision, layers, heads, kv_heads, head_dim, hidden_size, vocab_size,
            parameters, weights_bytes, dtype, cache_dtype, device, device_name, random_weights, tokenizer_hash.
    """

    model: Any
    tokenizer: Any | None
    config: Any
    shape: Shape
    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    info: dict[str, Any]


def load_model(spec: ModelSpec, *, seed: int, progress: Progress, check: Callable[[Any, Shape], None] | None = None) -> LoadedModel:
    """Find, check and load what ``spec`` names.

    Args:
        spec: Which model, in which numbers, where.
        seed: Seed of random weights.
        progress: Told ``(stage, done, total)`` while files are fetched, hashed and loaded.
        check: Told the config and the shape before any weights are fetched or read; may refuse the model by raising.

    Raises:
        ModelError: the model cannot be found, fetched or read.
        UnsupportedModel: its attention would be measured wrongly.
        ResourceError: no such device, or too little memory.
    """
    refuse_early(spec)
    device = resolve_device(spec.device)
    source = local_source(spec) if spec.random_weights and spec.config else find_source(spec, progress, weights=False)
    config = _read_config(spec, source)
    dtype = choose_dtype(spec.dtype, config, device)
    _check(spec, config, dtype, device)  # before gigabytes are fetched
    shape = shape_of(config.to_dict())
    if check is not None:
        check(config, shape)
    if spec.random_weights:
        digest = hash_random(spec.config or config.to_dict(), seed)
        build = partial(build_random, config, spec, seed, device, dtype)
    else:
        source = find_source(spec, progress)
        digest = hash_weights(source.weights, progress)
        build = partial(_pretrained, source, spec, device, dtype)
    progress(LOADING, 0, 0)
    with _load_errors(spec):
        model = build()
    model.eval().requires_grad_(False)
    tokenizer = _read_tokenizer(spec, source)
    cache_dtype = choose_cache_dtype(spec, config, dtype)
    info = _info(spec, source, model, shape, cache_dtype) | {"weights_hash": digest, "tokenizer_hash": hash_tokenizer(tokenizer)}
    return LoadedModel(model, tokenizer, model.config, shape, next(model.parameters()).device, dtype, cache_dtype, info)


def load_tokenizer(spec: ModelSpec, progress: Progress = silent) -> Any:
    """The tokenizer alone.

    Raises:
        ModelError: it cannot be found, fetched or read.
    """
    source = find_source(spec, progress, weights=False)
    with _load_errors(spec):
        return source.load_tokenizer()


def checked_config(spec: ModelSpec, source: Source) -> dict[str, Any]:
    """The config of a checkpoint as transformers reads it, refused for what its family's code shows; no weights are read.

    Raises:
        ModelError: it cannot be read. UnsupportedModel: its attention would be measured wrongly.
    """
    config = _read_config(spec, source)
    check_supported(config)
    with _load_errors(spec):
        check_attention(outline_of(config))
    plain: dict[str, Any] = config.to_dict()
    return plain


def _check(spec: ModelSpec, config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse what cannot be measured or does not fit, from the config alone."""
    check_supported(config)
    with _load_errors(spec):
        outline = outline_of(config)
        check_attention(outline)
    check_memory(spec, weight_bytes(outline, dtype), device)


def _read_config(spec: ModelSpec, source: Source | None) -> Any:
    from transformers import AutoConfig

    with _load_errors(spec):
        if source is None or (spec.config is not None and spec.random_weights):
            return AutoConfig.for_model(**(spec.config or {}))
        return source.load_config()


def _read_tokenizer(spec: ModelSpec, source: Source | None) -> Any | None:
    if source is None:
        return None
    try:
        with _load_errors(spec):
            return source.load_tokenizer()
    except ModelError:
        if spec.random_weights:  # speed and memory need no text
            return None
        raise


def _device_map(spec: ModelSpec, device: torch.device) -> Any:
    """What ``from_pretrained`` is told; a CPU holds the model whole."""
    if device.type == "cpu":
        return None
    return spec.device_map or {"": device}


def _pretrained(source: Source, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Any:
    model, report = source.load_model(dtype=dtype, device_map=_device_map(spec, device))
    _refuse_other_weights(spec, report)
    if any(p.device.type == "meta" or (device.type == "cuda" and p.device.type == "cpu") for p in model.parameters()):
        raise ResourceError(f"'{spec.id}' does not fit the GPUs: some layers would run from host memory", hint="use more GPUs")
    return model


def _refuse_other_weights(spec: ModelSpec, report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that holds another model than its config describes: what is hashed is what computes.

    Raises:
        ModelError: names the first weight that is lacking, of another shape, or of no use.
    """
    lacking, foreign = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    shapes = [f"{name} {[*stored]}, and its config says {[*wanted]}" for name, stored, wanted in sorted(report["mismatched_keys"])]
    kinds = (("lacks", lacking, ""), ("has", shapes, " of another shape"), ("has", foreign, " that its config has no place for"))
    for verb, names, what in kinds:
        if names:
            text = f"'{spec.id}' {verb} {len(names)} weights{what}, first {names[0]}"
            raise ModelError(text, hint="fetch the checkpoint again, whole: config.json and weights of one model")


def _info(spec: ModelSpec, source: Source | None, model: Any, shape: Shape, cache_dtype: torch.dtype) -> dict[str, Any]:
    """What the result says of the model, in plain values."""
    parameters = list(model.parameters())
    devices = sorted({str(p.device) for p in parameters})
    sizes = asdict(shape)
    sizes.pop("max_positions")
    return {
        "id": spec.id,
        "revision": source.revision if source else None,
        "config_hash": source.config_hash if source and not spec.random_weights else None,
        **sizes,
        "parameters": sum(p.numel() for p in parameters),
        "weights_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "dtype": str(model.dtype).removeprefix("torch."),
        "cache_dtype": str(cache_dtype).removeprefix("torch."),
        "device": ",".join(devices),
        "device_name": device_name(devices[0]),
        "random_weights": spec.random_weights,
    }


@contextmanager
def _load_errors(spec: ModelSpec) -> Iterator[None]:
    """Turn whatever a loader raises into one line that names the model."""
    import torch

    try:
        yield
    except KvbenchError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            f"'{spec.id}' does not fit: {told(error) or type(error).__name__}", hint="use a smaller --model or --dtype bfloat16"
        ) from error
    except Exception as error:
        raise ModelError(
            f"'{spec.id}' cannot be loaded: {told(error) or type(error).__name__}", hint="check --model, or fetch it again"
        ) from error
