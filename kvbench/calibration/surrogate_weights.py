"""Surrogates of KVzap (arXiv 2601.07891, §3): calibrated here, or NVIDIA's published weights. One file a model and kind.

Names are ``surrogate:WHICH/PART``, the parts those of :mod:`kvbench.caches.surrogate`. WHICH is ``linear`` (ridge
regression), ``mlp`` (two layers), or the hub id or folder of published weights: safetensors that hold
``layers.I.weight`` and ``.bias`` (linear), or ``layers.I.0`` and ``layers.I.2`` (the network's two), for layer I.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvbench.caches.surrogate import PARTS
from kvbench.calibration.artefacts import load_tensors, save_tensors
from kvbench.calibration.regression import NormalEquations, Parts, best_strength, fit_network, spread
from kvbench.calibration.replay import SAMPLES, Pair, cut, replay
from kvbench.errors import ModelError
from kvbench.models.checkpoint import weight_files
from kvbench.models.sources import find_source
from kvbench.spec import ModelSpec

if TYPE_CHECKING:
    from kvbench.caches.cache import Artefacts
    from kvbench.calibration.source import Source
    from kvbench.models.shape import Shape

PREFIX = "surrogate:"
KINDS = ("linear", "mlp")
_PUBLISHED = re.compile(r"layers\.(\d+)\.(?:([02])\.)?(weight|bias)")
_PART_OF = {
    ("", "weight"): "w1",
    ("", "bias"): "b1",
    ("0", "weight"): "w1",
    ("0", "bias"): "b1",
    ("2", "weight"): "w2",
    ("2", "bias"): "b2",
}


@dataclass(frozen=True)
class Surrogate:
    """One small model a layer.

    Attributes:
        layers: Parts of each. r2: Of held-out tokens ``[L, Hkv]``; ``None`` where it was not measured.
        tokens, held_out: Tokens learnt from and tested on. strength: Ridge penalty, linear only.
    """

    layers: tuple[Parts, ...]
    r2: Tensor | None = None
    tokens: int = 0
    held_out: int = 0
    strength: float | None = None

    @property
    def kind(self) -> str:
        return "mlp" if "w2" in self.layers[0] else "linear"


def makes(name: str) -> bool:
    """Whether ``name`` is part of a surrogate."""
    return name.startswith(PREFIX)


def stand_in(name: str, shape: Shape) -> Tensor | None:
    """``None``: what is kept follows from the scores."""
    return None


def provide(names: Sequence[str], source: Source) -> Artefacts:
    """The parts in ``names``; those of a second layer are empty where there is none.

    Raises:
        ModelError: kept or published weights cannot be read, are of other weights, or do not fit the model.
    """
    split = {name: name.rpartition("/") for name in names}
    found = {whole: _find(whole.removeprefix(PREFIX), source).layers for whole in {whole for whole, _, _ in split.values()}}
    devices, none = source.geometry.devices, torch.empty(0)
    return {name: [p.get(part, none).to(d) for p, d in zip(found[whole], devices, strict=True)] for name, (whole, _, part) in split.items()}


def _find(which: str, source: Source) -> Surrogate:
    """Read where it is kept, calibrated and kept else."""
    if which not in KINDS:
        return published(which, source)
    file = kept_file(which, source)
    if file is not None and file.exists():
        held = load_tensors(file, source.weights_hash)
        return Surrogate(_by_layer(held, source, str(file)), held.get("r2"))
    found = calibrate(which, source)
    keep(found, source)
    return found


def kept_file(kind: str, source: Source) -> Path | None:
    """Where the surrogate of one kind for these weights is kept, on whatever text it was calibrated."""
    if source.folder is None or source.weights_hash is None:
        return None
    return source.folder / f"kvzap-{kind}-{source.weights_hash[:16]}.safetensors"


def keep(found: Surrogate, source: Source) -> Path | None:
    """Write a surrogate in the published layout, with its R²; it is what ``kvzap`` then reads for these weights."""
    file = kept_file(found.kind, source)
    if file is not None:
        names = {part: name for name, part in _PART_OF.items() if bool(name[0]) == (found.kind == "mlp")}
        tensors = {".".join(filter(None, ("layers", str(i), *names[part]))): t for i, p in enumerate(found.layers) for part, t in p.items()}
        save_tensors(file, tensors | ({} if found.r2 is None else {"r2": found.r2}), source.weights_hash or "")
    return file


def calibrate(kind: str, source: Source, *, seed: int = 0) -> Surrogate:
    """Learn from the source's text, every eighth sample held out. ``seed`` is a network's.

    Raises:
        UsageError: the text is too short. UnsupportedModel: the model's output projection cannot be read.
    """
    samples = cut(source.tokens)
    tests = samples[SAMPLES // 2 :: SAMPLES]
    rest = [sample for place, sample in enumerate(samples) if place % SAMPLES != SAMPLES // 2]
    fitted = _ridge(rest, source) if kind == "linear" else _network(rest, source, seed)
    tried = [[spread(parts, *pair) for parts, pair in zip(fitted.layers, replay(source, sample), strict=True)] for sample in tests]
    r2 = [reduce(add, spreads).r2.cpu() for spreads in zip(*tried, strict=True)]
    source.stage(_WHAT, len(samples), len(samples))
    return replace(fitted, r2=torch.stack(r2), held_out=sum(map(len, tests)))


_WHAT = "calibrating KVzap"


def _ridge(samples: Sequence[Tensor], source: Source) -> Surrogate:
    """Closed form; the last sample first chooses the penalty, and is then learnt from too."""
    sums = [NormalEquations() for _ in range(source.geometry.layers)]
    for done, sample in enumerate(samples[:-1]):
        source.stage(_WHAT, done, len(samples) + 1)
        _add(sums, replay(source, sample))
    source.stage(_WHAT, len(samples) - 1, len(samples) + 1)
    last = list(replay(source, samples[-1]))
    strength = best_strength(sums, last)
    _add(sums, last)
    fits = tuple({name: part.float() for name, part in n.solve(strength).items()} for n in sums)
    return Surrogate(fits, tokens=sums[0].count, strength=strength)


def _add(sums: Sequence[NormalEquations], pairs: Iterable[Pair]) -> None:
    for equations, pair in zip(sums, pairs, strict=True):
        equations.add(*pair)


def _network(samples: Sequence[Tensor], source: Source, seed: int) -> Surrogate:
    """Every sample's hidden states are held at once: tokens x layers x hidden numbers."""
    held: list[list[Pair]] = []
    for done, sample in enumerate(samples):
        source.stage(_WHAT, done, len(samples) + 1)
        held.append(list(replay(source, sample)))
    fits = []
    for index, layer in enumerate(zip(*held, strict=True)):
        source.stage(f"{_WHAT}, layer {index}", index, source.geometry.layers)
        fits.append(fit_network(torch.cat([x for x, _ in layer]), torch.cat([y for _, y in layer]), seed=seed))
    return Surrogate(tuple(fits), tokens=sum(len(pairs[0][0]) for pairs in held))


def published(name: str, source: Source) -> Surrogate:
    """NVIDIA's weights or others of that layout, from a folder or the hub.

    Raises:
        ModelError: they are not there, are no safetensors, or do not fit the model.
    """
    where = find_source(ModelSpec(id=name), source.stage)
    held: dict[str, Tensor] = {}
    for file in weight_files(where.weights):
        held |= load_tensors(file, None, hint="give the folder or hub id of KVzap weights saved as safetensors")
    return Surrogate(_by_layer(held, source, name))


def _by_layer(held: Mapping[str, Tensor], source: Source, where: str) -> tuple[Parts, ...]:
    """Published names to parts, one dict a layer.

    Raises:
        ModelError: a part is missing, or a size is not the model's.
    """
    layers: dict[int, Parts] = {}
    for name, tensor in held.items():
        found = _PUBLISHED.fullmatch(name)
        if found is not None:
            layers.setdefault(int(found[1]), {})[_PART_OF[found[2] or "", found[3]]] = tensor
    hint = "use weights made for this model, or calibrate: kvbench calibrate kvzap"
    kinds = {tuple(sorted(parts)) for parts in layers.values()}
    if kinds not in ({("b1", "w1")}, {tuple(sorted(PARTS))}) or set(layers) != set(range(len(layers))):
        raise ModelError(f"'{where}' holds no surrogate: one or two linear layers, layers.0, layers.1, … are looked for", hint=hint)
    sizes = {(len(layers), len(parts.get("w2", parts["w1"])), parts["w1"].shape[1]) for parts in layers.values()}
    wanted = (source.geometry.layers, source.geometry.kv_heads, _hidden_size(source.model))
    if sizes != {wanted}:
        made, own = ("{} layers of {} KV heads over {} channels".format(*size) for size in (min(sizes), wanted))
        raise ModelError(f"'{where}' was made for {made}; this model has {own}", hint=hint)
    return tuple({name: part.float() for name, part in layers[i].items()} for i in range(len(layers)))


def _hidden_size(model: Any) -> int:
    return int(model.config.get_text_config().hidden_size)
