"""Named sweeps: the questions that compression papers answer in their ablations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kvbench.errors import UnknownName, UsageError
from kvbench.spec import MethodSpec, ParamValue, format_value
from kvbench.sweeps.combinations import MEASURED_AT, Axes, Setting, Sweep, Values, check_size, with_points

HEAD_DIM = 64
"""Head size that ranks are taken from where a model's is not known before it is loaded."""
DENSE = 16


@dataclass(frozen=True)
class Ablation:
    """A question, its axes with their values, and the rows that answer it.

    Attributes:
        title: One line. axes: Axis → values of it, given the model's head size; ``--over`` replaces them.
        settings: The rows for some values of the axes.
    """

    title: str
    axes: Callable[[int], dict[str, Values]]
    settings: Callable[[Axes], Iterator[Setting]]


def of_ablation(name: str, over: Axes, head_dim: int | None = None) -> Sweep:
    """A named ablation.

    Args:
        over: Values in place of the ablation's own, and points to measure every row at.
        head_dim: The model's head size, which ranks are fractions of, if it is known.

    Raises:
        UnknownName: no such ablation, or an axis that it does not have.
        UsageError: more rows than a sweep may have.
    """
    if name not in ABLATIONS:
        raise UnknownName("ablation", name, ABLATIONS, hint=f"one of {', '.join(ABLATIONS)}")
    found = ABLATIONS[name]
    axes = found.axes(head_dim or HEAD_DIM)
    for axis in over:
        if axis not in axes and axis not in MEASURED_AT:
            raise UnknownName(f"axis of ablation {name}:", axis, [*axes, *MEASURED_AT], hint=f"its axes are {', '.join(axes)}")
    axes = {axis: over.get(axis, values) for axis, values in axes.items()}
    settings = tuple(found.settings(axes))
    _check_used(name, axes, settings)
    check_size({axis: values for axis, values in over.items() if axis in MEASURED_AT}, len(settings))
    return with_points(axes, settings, over, ablation=name)


def _check_used(name: str, axes: Axes, settings: Sequence[Setting]) -> None:
    """Every value gives a row of its own.

    Raises:
        UsageError: names the value that does not.
    """
    labels = [setting.spec.label for setting in settings]
    for axis, values in axes.items():
        for value in values:
            if not any(setting.at.get(axis) == value for setting in settings):
                raise UsageError(f"--over {axis}={format_value(value)}: no method of ablation {name} has it", hint="kvbench list methods")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UsageError(f"ablation {name} would run {twice} twice", hint="other values of --over")


def _of(method: str, text: str, **at: ParamValue) -> Setting:
    return Setting(method, MethodSpec.parse(text), at)


def _ranks(head_dim: int) -> dict[str, Values]:
    """An eighth, a quarter, a half and three quarters of the head; even, so that two 4-bit codes fill a byte."""
    return {"rank": tuple(max(2, head_dim * eighths // 8 // 2 * 2) for eighths in (1, 2, 4, 6))}


def _rank(axes: Axes) -> Iterator[Setting]:
    for method in ("v_lowrank", "orthogonal"):
        yield from (_of(method, f"{method}:rank={rank}", rank=rank) for rank in axes["rank"])


_WIDTHS: Mapping[str, tuple[str, Values]] = {
    "int8": ("int8:k_bits={0},v_bits={0}", (2, 3, 4, 8)),
    "int4": ("int4:k_bits={0},v_bits={0}", (2, 3, 4, 8)),
    "kivi": ("kivi:bits={0}", (2, 3, 4, 8)),
    "turboquant": ("turboquant:bits={0}", (1, 2, 3, 4)),
}
"""Quantiser → how its bits are written, and the widths it has: symmetric, in groups, per channel, rotated."""


def _bits(axes: Axes) -> Iterator[Setting]:
    """Each quantiser at those of the widths that it has."""
    for method, (text, widths) in _WIDTHS.items():
        yield from (_of(method, text.format(bits), bits=bits) for bits in axes["bits"] if bits in widths)


def _sides(axes: Axes) -> Iterator[Setting]:
    for method in ("int4", "kivi"):
        for side in (side for side in axes["compressed"] if side in ("keys", "values", "both")):
            for bits in axes["bits"]:
                keys, values = (bits if side in (one, "both") else DENSE for one in ("keys", "values"))
                yield _of(method, f"{method}:k_bits={keys},v_bits={values}", compressed=side, bits=bits)


def _parts(axes: Axes) -> Iterator[Setting]:
    """The quantiser alone has no ratio: it stands once."""
    ratios = axes["compression_ratio"]
    yield from (_of("snapkv", f"snapkv:compression_ratio={ratio}", compression_ratio=ratio) for ratio in ratios)
    yield _of("int4", "int4")
    yield from (_of("snapkv+int4", f"snapkv:compression_ratio={ratio}+int4", compression_ratio=ratio) for ratio in ratios)


def _bases(axes: Axes) -> Iterator[Setting]:
    for basis in axes["basis"]:
        yield from (_of("v_lowrank", f"v_lowrank:basis={basis},rank={rank}", basis=basis, rank=rank) for rank in axes["rank"])


def _given(**axes: Values) -> Callable[[int], dict[str, Values]]:
    """Axes that do not depend on the model."""
    return lambda head_dim: dict(axes)


_BITS = _given(bits=(1, 2, 3, 4, 8))
_SIDES = _given(compressed=("keys", "values", "both"), bits=(2, 4))
_RATIOS = _given(compression_ratio=(0.25, 0.5, 0.75))

ABLATIONS: Mapping[str, Ablation] = {
    "rank": Ablation("values alone, and keys and values, by rank", _ranks, _rank),
    "bits": Ablation("quantisers by bits", _BITS, _bits),
    "kv": Ablation("keys against values: one side quantised, then both", _SIDES, _sides),
    "sparse-quant": Ablation("eviction alone, quantisation alone, both", _RATIOS, _parts),
    "basis": Ablation("a calibrated basis against a random one", lambda head_dim: {"basis": ("pca", "random"), **_ranks(head_dim)}, _bases),
}
"""``--ablation``'s names."""
