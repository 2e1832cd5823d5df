"""Load a model and its tokenizer: the embedded one, a hub id, a folder, a ``.gguf`` file, or random weights from a config.

Importing this module is cheap; torch and transformers are imported by the functions that need them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvbench.errors import KvbenchError, ModelError, ResourceError
from kvbench.shape import Shape, cache_bytes_per_token, check_supported, refusal, shape_of
from kvbench.sources import Source, find_source, local_source
from kvbench.spec import ModelSpec
from kvbench.weights import Progress, hash_random, hash_tokenizer, hash_weights

if TYPE_CHECKING:
    import torch

__all__ = ["LoadedModel", "Shape", "cache_bytes_per_token", "check_supported", "load_model", "load_tokenizer", "shape_of"]

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
        info: What the result records: id, weights_hash, revision, layers, heads, kv_heads, head_dim, hidden_size, vocab_size,
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


def load_model(spec: ModelSpec, *, seed: int, progress: Progress) -> LoadedModel:
    """Find, check and load what ``spec`` names.

    Args:
        spec: Which model, in which numbers, where.
        seed: Seed of random weights.
        progress: Told ``(stage, done, total)`` while files are fetched, hashed and loaded.

    Raises:
        ModelError: the model cannot be found, fetched or read.
        UnsupportedModel: its attention would be measured wrongly.
        ResourceError: no such device, or too little memory.
    """
    device = resolve_device(spec.device)
    source = local_source(spec) if spec.random_weights and spec.config else find_source(spec, progress)
    progress(LOADING, 0, 0)
    config = _read_config(spec, source)
    dtype = _dtype(spec.dtype, config, device)
    check_supported(config)
    outline = _outline(config)
    _check_attention(outline)
    _check_memory(spec, _bytes_of(outline, dtype), device)
    with _load_errors(spec):
        model = _random(config, spec, seed, device, dtype) if spec.random_weights else _pretrained(_found(spec, source), spec, device, dtype)
    model.eval().requires_grad_(False)
    tokenizer = _read_tokenizer(spec, source)
    cache_dtype = dtype if spec.cache_dtype == "auto" else _named_dtype(spec.cache_dtype)
    digest = hash_random(config.to_dict(), seed) if spec.random_weights else hash_weights(_found(spec, source).weights, progress)
    shape = shape_of(config.to_dict())
    first = next(model.parameters()).device
    info = _info(spec, source, model, shape, cache_dtype) | {"weights_hash": digest, "tokenizer_hash": hash_tokenizer(tokenizer)}
    return LoadedModel(model, tokenizer, model.config, shape, first, dtype, cache_dtype, info)


def load_tokenizer(spec: ModelSpec, progress: Progress | None = None) -> Any:
    """The tokenizer alone.

    Raises:
        ModelError: it cannot be found, fetched or read.
    """
    source = find_source(spec, progress or (lambda stage, done, total: None), tokenizer_only=True)
    with _load_errors(spec):
        return source.load_tokenizer()


def resolve_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` means here.

    Raises:
        ResourceError: there is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError(f"'{name}' is no device", hint="use --device auto, cpu, cuda or cuda:1") from error
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if (device.index or 0) >= count:
        raise ResourceError(f"device '{name}' was asked for, and torch sees {count} GPUs", hint="use --device cpu")
    return torch.device("cuda", device.index or 0)


def _found(spec: ModelSpec, source: Source | None) -> Source:
    if source is None:
        raise ModelError(f"'{spec.id}' has no weights on this machine", hint="run again without --random-weights")
    return source


def _named_dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _dtype(asked: str, config: Any, device: torch.device) -> torch.dtype:
    """``auto`` is float32 on a CPU and the checkpoint's own elsewhere (bfloat16 where it names none)."""
    if asked != "auto":
        return _named_dtype(asked)
    if device.type == "cpu":
        return _named_dtype("float32")
    own = getattr(config, "dtype", None) or "bfloat16"
    return _named_dtype(str(own).removeprefix("torch."))


def _read_config(spec: ModelSpec, source: Source | None) -> Any:
    from transformers import AutoConfig

    with _load_errors(spec):
        if spec.config is not None and spec.random_weights:
            return AutoConfig.for_model(**spec.config)
        return _found(spec, source).load_config()


def _read_tokenizer(spec: ModelSpec, source: Source | None) -> Any | None:
    if spec.random_weights:
        try:
            return source.load_tokenizer() if source else None
        except Exception:  # a model of random weights needs no text, whatever is wrong with its tokenizer
            return None
    with _load_errors(spec):
        return _found(spec, source).load_tokenizer()


def _outline(config: Any) -> Any:
    """The model without storage: what its parts are and how large."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise refusal(config.to_dict(), "transformers has no causal language model of this type") from error


def _check_attention(outline: Any) -> None:
    """Refuse what only the code shows: attention that cannot be replaced, another rotation, other layers."""
    import torch

    code = sys.modules[type(outline).__module__]
    config = outline.config.to_dict()
    if not hasattr(code, "ALL_ATTENTION_FUNCTIONS"):
        raise refusal(config, "its attention cannot be replaced (no AttentionInterface)")
    rotate = getattr(code, "rotate_half", None)
    if rotate is None:
        raise refusal(config, "it has no half-split rotary position embedding")
    if rotate(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() != [-3.0, -4.0, 1.0, 2.0]:
        raise refusal(config, "its rotary embedding does not turn halves of a head")
    if any(name.endswith("sinks") for name, _ in outline.named_parameters()):
        raise refusal(config, "it uses learned attention sinks")
    attention = sum(hasattr(m, "layer_idx") and hasattr(m, "scaling") and hasattr(m, "config") for m in outline.modules())
    if attention != config["num_hidden_layers"]:
        raise refusal(config, f"{attention} of its {config['num_hidden_layers']} layers have standard attention")


def _bytes_of(model: Any, dtype: torch.dtype) -> int:
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize


def _check_memory(spec: ModelSpec, needed: int, device: torch.device) -> None:
    """Raise ``ResourceError`` where the weights alone exceed what is free."""
    import psutil
    import torch

    if device.type == "cpu":
        free, where = psutil.virtual_memory().available, "memory"
    elif spec.device_map:
        free, where = sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())), "all GPUs together"
    else:
        free, where = torch.cuda.mem_get_info(device)[0], str(device)
    if needed > free:
        text = f"the weights of '{spec.id}' need {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free on {where}"
        raise ResourceError(text, hint="use a smaller --model, --dtype bfloat16, or another --device")


def _device_map(spec: ModelSpec, device: torch.device) -> Any:
    """What ``from_pretrained`` is told; a CPU holds the model whole."""
    if device.type == "cpu":
        return None
    return spec.device_map or {"": device}


def _pretrained(source: Source, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Any:
    model, report = source.load_model(dtype=dtype, device_map=_device_map(spec, device))
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(f"'{spec.id}' lacks {len(missing)} weights, first {missing[0]}", hint="fetch the checkpoint again, whole")
    if any(p.device.type == "meta" or (device.type == "cuda" and p.device.type == "cpu") for p in model.parameters()):
        raise ResourceError(f"'{spec.id}' does not fit the GPUs: some layers would run from host memory", hint="use more GPUs")
    return model


def _random(config: Any, spec: ModelSpec, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Seeded random weights, built where they will be used: a large model never passes through host memory."""
    import torch
    from transformers import AutoModelForCausalLM

    gpus = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        if spec.device_map and device.type == "cuda":
            return spread_random(config, dtype)
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=dtype)


def spread_random(config: Any, dtype: torch.dtype, max_memory: dict[Any, Any] | None = None) -> Any:
    """Random weights over several devices: laid out without storage, then filled part by part in place."""
    import torch
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    whole = list(model._no_split_modules or ())
    room = max_memory or get_balanced_memory(model, no_split_module_classes=whole, dtype=dtype)
    places = infer_auto_device_map(model, max_memory=room, no_split_module_classes=whole, dtype=dtype)
    for name, place in places.items():
        model.get_submodule(name).to_empty(device=place)
    model.tie_weights()
    with torch.no_grad():
        for module in model.modules():
            model._init_weights(module)
    return dispatch_model(model, device_map=places)


def _info(spec: ModelSpec, source: Source | None, model: Any, shape: Shape, cache_dtype: torch.dtype) -> dict[str, Any]:
    """What the result says of the model, in plain values."""
    from dataclasses import asdict

    from kvbench.telemetry import device_name

    parameters = list(model.parameters())
    devices = sorted({str(p.device) for p in parameters})
    sizes = asdict(shape)
    sizes.pop("max_positions")
    return {
        "id": spec.id,
        "revision": source.revision if source else None,
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
        raise ResourceError(f"'{spec.id}' does not fit: {_first_line(error)}", hint="use a smaller --model or --dtype bfloat16") from error
    except Exception as error:
        raise ModelError(f"'{spec.id}' cannot be loaded: {_first_line(error)}", hint="check --model, or fetch it again") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
