"""The rotary embedding that a GGUF file describes, as transformers' ``rope_parameters``.

A file tells it by keys (linear, YaRN) or by a tensor of divisors, one for each frequency: ``rope_freqs.weight`` (what
Llama 3.1's rule gives) and ``rope_factors_short.weight``/``rope_factors_long.weight`` (LongRoPE).
Source of what is written: llama.cpp's conversion; of what is read: transformers' ``modeling_rope_utils``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from kvbench.errors import UnsupportedModel
from kvbench.models.gguf.header import broken
from kvbench.models.gguf.keys import Keys

DIVISORS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
TENSORS = (DIVISORS, SHORT, LONG)
TOLERANCE = 4e-6
"""Relative; divisors are float32 numbers that float32 arithmetic made."""
Parameters = dict[str, Any]


def rope_parameters(keys: Keys, *, rotated: int, context: int) -> Parameters:
    """transformers' parameters of the rotation.

    Args:
        keys: The file's keys; those of RoPE are read.
        rotated: Channels of a head that turn.
        context: The longest sequence that the model was made for, tokens.

    Raises:
        UnsupportedModel: a kind of scaling, or a mixture of kinds, that is not understood.
    """
    base = {"rope_theta": float(keys.number("rope.freq_base", 10000.0))}
    kind, factor = keys.get("rope.scaling.type"), keys.optional("rope.scaling.factor") or keys.optional("rope.scale_linear") or 1.0
    original = keys.size("rope.scaling.original_context_length", context)
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    tensors = [name for name in TENSORS if name in keys.header.tensors]
    if SHORT in tensors or LONG in tensors:
        if factor != 1.0:
            raise keys.refused(f"{keys.architecture}.rope.scaling.factor", f"{factor}, with LongRoPE's factors beside it")
        return base | _long(keys, kind, rotated, original, magnitude)
    if magnitude != 1.0:
        raise keys.refused(f"{keys.architecture}.rope.scaling.attn_factor", magnitude)
    scaled = base | _by_keys(keys, kind, factor, original)
    return base | _by_divisors(keys, scaled, rotated, context) if tensors else scaled


def _by_keys(keys: Keys, kind: Any, factor: float, original: int) -> Parameters:
    # a factor without a kind is linear in llama.cpp
    if kind == "yarn" and factor > 1.0:
        names = {"yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
        given = {name: keys.optional(f"rope.scaling.{key}") for key, name in names.items()}
        return {
            "rope_type": "yarn",
            "factor": float(factor),
            "original_max_position_embeddings": original,
            **{name: float(value) for name, value in given.items() if value is not None},
        }
    if kind in (None, "linear") and factor != 1.0:
        return {"rope_type": "linear", "factor": float(factor)}
    if kind in (None, "none", "linear") or (kind == "yarn" and factor == 1.0):
        return {"rope_type": "default"}
    raise keys.refused(f"{keys.architecture}.rope.scaling.type", kind)


def _row(keys: Keys, name: str, rotated: int) -> list[float]:
    row = keys.header.floats(name)
    if len(row) != rotated // 2 or not all(math.isfinite(x) and x > 0 for x in row):
        raise broken(keys.header.path, f"tensor {name!r} should hold {rotated // 2} positive numbers")
    return row


def _long(keys: Keys, kind: Any, rotated: int, original: int, magnitude: float) -> Parameters:
    if kind not in (None, "longrope") or DIVISORS in keys.header.tensors:
        raise keys.refused(f"{keys.architecture}.rope.scaling.type", f"{kind}, with LongRoPE's factors beside it")
    for name in (SHORT, LONG):
        if name not in keys.header.tensors:
            raise broken(keys.header.path, f"tensor {name!r} is missing")
    return {
        "rope_type": "longrope",
        "short_factor": _row(keys, SHORT, rotated),
        "long_factor": _row(keys, LONG, rotated),
        "original_max_position_embeddings": original,
        "attention_factor": float(magnitude),
    }


def _by_divisors(keys: Keys, scaled: Parameters, rotated: int, context: int) -> Parameters:
    """Llama 3.1's rule where it gives these divisors, else the divisors themselves."""
    divisors = _row(keys, DIVISORS, rotated)
    if set(divisors) == {1.0}:
        return scaled
    if scaled["rope_type"] != "default":
        raise UnsupportedModel(f"'{keys.name}' cannot be benchmarked: tensor {DIVISORS!r} is given with {scaled['rope_type']} scaling")
    rule = llama3_rule(divisors, wavelengths(scaled["rope_theta"], rotated))
    # LongRoPE of one and the same divisors at any length is divisors and nothing else
    plain = {"rope_type": "longrope", "short_factor": divisors, "long_factor": divisors, "attention_factor": 1.0}
    return rule or plain | {"original_max_position_embeddings": context}


def wavelengths(theta: float, rotated: int) -> list[float]:
    """Tokens in one turn of each frequency."""
    return [2 * math.pi * theta ** (2 * i / rotated) for i in range(rotated // 2)]


def llama3_rule(divisors: Sequence[float], waves: Sequence[float]) -> Parameters | None:
    """The parameters of Llama 3.1's rule that give ``divisors``, or ``None`` where none do."""
    factor = float(f"{max(divisors):.6g}")
    for high, original in _guesses(divisors, waves, factor):
        made = [_llama3(wave, factor, high, original) for wave in waves]
        if all(abs(a - b) <= TOLERANCE * b for a, b in zip(made, divisors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": float(high),
                "original_max_position_embeddings": original,
            }
    return None


def _guesses(divisors: Sequence[float], waves: Sequence[float], factor: float) -> Iterator[tuple[float, int]]:
    """High frequency factors and original lengths to try, ``low_freq_factor`` being 1 (only the three's ratios count)."""
    between = [
        (1 / wave, _share(d, factor)) for wave, d in zip(waves, divisors, strict=True) if 1 + TOLERANCE < d < factor * (1 - TOLERANCE)
    ]
    if len(between) >= 2:  # the share is a straight line in 1 / wavelength
        (x1, y1), (x2, y2) = between[0], between[-1]
        slope = (y2 - y1) / (x2 - x1)
        start = y1 - slope * x1  # -low / (high - low)
        if slope > 0 and start < 0:
            yield round(1 - 1 / start, 3), round(-slope / start)
    elif between:
        x, y = between[0]
        yield 4.0, round((3 * y + 1) / x)
    yield from ((4.0, 1 << bits) for bits in range(3, 21))


def _share(divisor: float, factor: float) -> float:
    """How much of a frequency stays as it is, from 0 (divided by ``factor``) to 1."""
    return (1 / divisor - 1 / factor) / (1 - 1 / factor)


def _llama3(wave: float, factor: float, high: float, original: int) -> float:
    """The divisor of one frequency (Llama 3.1; transformers' ``_compute_llama3_parameters``) at ``low_freq_factor`` 1."""
    if wave < original / high:
        return 1.0
    if wave > original:
        return factor
    share = (original / wave - 1) / (high - 1)
    return 1 / ((1 - share) / factor + share)
