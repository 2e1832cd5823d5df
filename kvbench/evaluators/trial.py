"""An evaluator tried on a tiny model, in this process and in seconds: what an author's tests need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from kvbench.evaluators.base import BASELINE, Evaluator, Figure, MethodRecords, RunSpec, Summary, UnitContext
from kvbench.methods.base import resolve
from kvbench.spec import MethodSpec

if TYPE_CHECKING:
    from kvbench.instruments.session import Session

_SPEC = RunSpec(samples=2, context=40, continuation=12)


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        records: Method → key → data, as a file gives them back. summaries: Method → what is said of it.
        figures: Tables and heat maps.
    """

    records: Mapping[str, MethodRecords]
    summaries: Mapping[str, Summary]
    figures: Sequence[Figure]


def tried(
    evaluator: Evaluator, methods: Sequence[str] = (BASELINE, "random"), *, spec: RunSpec = _SPEC, family: str = "qwen2", seed: int = 0
) -> Trial:
    """All units of a run of ``methods`` on a seeded model in float64 and random tokens.

    Args:
        methods: Row labels as on the command line, the baseline first.
        spec: Sizes and protocol; its model, text and methods are not read.
        family: One of :data:`kvbench.instruments.tiny.FAMILIES`.

    Raises:
        Exception: whatever the evaluator or a method raises; nothing becomes a row's failure here.
        msgspec.ValidationError: a record is not what ``evaluator.record`` says.
    """
    context = _Kept(evaluator.record)
    session = _session(spec, methods, family, seed)
    facts = evaluator.prepare(session, lambda *_: None)
    for unit in evaluator.units(spec, methods):
        evaluator.run(unit, session, context)
    found = context.records
    return Trial(found, evaluator.summarise(found, BASELINE), evaluator.figures(found, BASELINE, facts))


def _session(spec: RunSpec, methods: Sequence[str], family: str, seed: int) -> Session:
    import torch

    from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
    from kvbench.calibration import provide
    from kvbench.instruments.protocol import Runner
    from kvbench.instruments.session import Session
    from kvbench.instruments.tiny import make_tiny_model
    from kvbench.models.loading import LoadedModel
    from kvbench.models.shape import shape_of
    from kvbench.texts.windows import Windows

    model = make_tiny_model(family, seed=seed)
    use_kvbench_attention(model)
    shape, geometry = shape_of(model.config.to_dict()), Geometry.of(model)
    drawn = torch.Generator().manual_seed(seed)
    tokens: Any = torch.randint(3, shape.vocab_size, (spec.samples, spec.context + spec.continuation), generator=drawn)
    chosen = {label: resolve(MethodSpec.parse(label), spec) for label in methods}
    names = {name for method in chosen.values() for name in method.artefacts}
    artefacts = provide(names, model, geometry, tokens.flatten(), weights_hash=None, folder=None, stage=lambda *_: None)
    dtype = torch.float64
    loaded = LoadedModel(model, None, model.config, shape, torch.device("cpu"), dtype, dtype, {})
    options = CacheOptions(dtype, spec.protocol, spec.context, spec.chunk_size, spec.seed)
    return Session(spec, chosen, loaded, Runner(model, geometry, artefacts, options), Windows(tokens, {}))


@dataclass
class _Kept(UnitContext):
    """Keeps records as a journal would give them back, and lets every error through."""

    kind: Any
    records: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)

    def method_started(self, method: str) -> None:
        self.records.setdefault(method, {})

    def record(self, method: str, key: str, data: Mapping[str, Any]) -> None:
        plain = msgspec.json.decode(msgspec.json.encode(dict(data)))
        if self.kind is not None:
            msgspec.convert(plain, self.kind, str_keys=True)
        self.records.setdefault(method, {})[key] = plain

    def audited(self, method: str, label: str, checks: Mapping[str, Any]) -> None:
        self.records.setdefault(method, {})["audit"] = {"label": label}

    def guard(self, method: str, action: Callable[[], None]) -> bool:
        action()
        return True

    def is_alive(self, method: str) -> bool:
        return True
