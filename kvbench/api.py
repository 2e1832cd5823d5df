"""A compressed cache for any supported model.

>>> cache = kvbench.make_cache(model, "kivi:bits=2")
>>> out = model.generate(**inputs, past_key_values=cache)
>>> cache.ledger().stored
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from kvbench.errors import UsageError
from kvbench.spec import RunSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from kvbench.caches.cache import Artefacts, Geometry, KVCache
    from kvbench.methods.method import Method


def make_cache(
    model: Any,
    method: str | Method,
    *,
    compression_ratio: float = 0.5,
    cache_dtype: torch.dtype | None = None,
    calibration_tokens: torch.Tensor | None = None,
    seed: int = 0,
    prompt_tokens: int | None = None,
    later: Literal["refuse", "append"] = "refuse",
) -> KVCache:
    """An empty cache for ``model.generate(..., past_key_values=cache)`` or for ``model(...)``.

    The model's attention function is set to kvbench's, which serves other caches as before.
    A cache serves one batch of sequences once; left-padded batches need their ``attention_mask``.

    The first forward is the prompt, which is compressed after its own attention; the tokens after it come one at a time.
    ``generate(prefill_chunk_size=...)`` gives the cache that the whole prompt gives. Of two turns the second prompt
    would not be compressed with the first, so several tokens at once after the prompt are refused unless ``later`` says
    otherwise; the baseline, which stores all as it is, takes them.

    Args:
        model: A decoder-only ``transformers`` model with standard grouped-query attention.
        method: ``name`` or ``name:param=value,...`` as on the command line, or a method object.
        compression_ratio: Fraction removed, for methods that have one and are not told.
        cache_dtype: Format in which keys and values are stored; ``None`` is the model's own, as in a cache of transformers. (A run's
            ``auto`` is 16 bit instead: its factors are over a deployed cache, and here there is no baseline to be over.)
        calibration_tokens: Text ``[n]`` for methods that need a basis, all of which is used; ``None`` takes the embedded
            language reference through the model's own tokenizer.
        seed: Seed of methods that draw.
        prompt_tokens: Length of a prompt that several forwards of your own bring, piece by piece; it is held uncompressed
            until then. ``None``: the first forward is all of it.
        later: ``append`` stores several tokens in one forward after the prompt as if each were decoded, exactly as one at
            a time: to score a given continuation, or for methods that go on compressing.

    Raises:
        UnknownName, UsageError: the method or a parameter does not exist or does not fit the model.
        UnsupportedModel: attention that kvbench does not understand.
    """
    from kvbench.caches.cache import CacheOptions, Geometry, build_cache, use_kvbench_attention
    from kvbench.methods.registered import free, objections, resolve
    from kvbench.models.loading import check_attention
    from kvbench.models.shape import check_supported, shape_of

    check_supported(model.config)
    check_attention(model)
    if isinstance(method, str):
        method = resolve(free(method), RunSpec(compression_ratio=compression_ratio))
    with objections(method.label):
        method.check(shape_of(model.config.to_dict()))
    use_kvbench_attention(model)
    geometry = Geometry.of(model)
    artefacts = _artefacts(model, geometry, method, calibration_tokens)
    if prompt_tokens is not None and prompt_tokens < 1:
        raise UsageError(f"prompt_tokens={prompt_tokens}; a prompt has at least one token")
    return build_cache(method, geometry, CacheOptions(cache_dtype, seed=seed, prompt_tokens=prompt_tokens, later=later), artefacts)


def _artefacts(model: Any, geometry: Geometry, method: Method, tokens: torch.Tensor | None) -> Artefacts:
    """What ``method`` reads; of the default text, kept with the model for its next caches."""
    from kvbench.caches.cache import embeddings_of
    from kvbench.calibration import provide
    from kvbench.calibration.excerpt import calibration_tokens
    from kvbench.models.weights import silent
    from kvbench.texts.tokens import reader_of

    kept: dict[str, Sequence[torch.Tensor]] = {} if tokens is not None else getattr(model, "_kvbench_artefacts", {})
    missing = set(method.artefacts) - set(kept)
    if missing:
        rows = embeddings_of(model)
        tokenizer = reader_of(_tokenizer_of(model), rows=rows) if tokens is None else None
        text = calibration_tokens(tokenizer, rows) if tokens is None else _checked(tokens, rows)
        found = provide(
            missing, model, geometry, text.to(model.device), weights_hash=None, folder=None, stage=silent, tokenizer=tokenizer
        )  # fmt: skip
        kept = {**kept, **found}
        if tokens is None:
            model._kvbench_artefacts = kept
    return {name: kept[name] for name in method.artefacts}


def _checked(tokens: torch.Tensor, rows: int) -> torch.Tensor:
    """Calibration text as it was given.

    Raises:
        UsageError: no text. CorpusError: an id beyond the model's embeddings.
    """
    from kvbench.texts.tokens import check_ids

    if tokens.ndim != 1 or not len(tokens) or tokens.is_floating_point() or int(tokens.min()) < 0:
        raise UsageError(f"calibration_tokens {list(tokens.shape)} is no text", hint="pass a tensor [n] of token ids")
    check_ids(int(tokens.max()), rows)
    return tokens


def _tokenizer_of(model: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.name_or_path, trust_remote_code=False)
    except Exception as error:
        hint = "pass calibration_tokens=, a tensor of token ids of ordinary text"
        raise UsageError(f"this method is calibrated on text, and no tokenizer is found at '{model.name_or_path}'", hint=hint) from error
