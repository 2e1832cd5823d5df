"""An evaluator tried on a tiny model, in this process and in seconds: what an author's tests need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from kvbench.evaluators.base import BASELINE, Evaluator, Figure, MethodRecords, RunSpec, Summary, UnitContext
from kvbench.methods.base import Method, resolve
from kvbench.spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from kvbench.instruments.session import Session
    from kvbench.models.loading import LoadedModel

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


def _session(spec: RunSpec, labels: Sequence[str], family: str, seed: int) -> Session:
    import torch

    from kvbench.caches.cache import Geometry, use_kvbench_attention
    from kvbench.calibration import provide
    from kvbench.instruments.tiny import make_tiny_model

    loaded = loaded_of(make_tiny_model(family, seed=seed))
    use_kvbench_attention(loaded.model)
    drawn = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, loaded.shape.vocab_size, (spec.samples, spec.context + spec.continuation), generator=drawn)
    methods = {label: resolve(MethodSpec.parse(label), spec) for label in labels}
    names = {name for method in methods.values() for name in method.artefacts}
    geometry = Geometry.of(loaded.model)
    artefacts = provide(names, loaded.model, geometry, tokens.flatten(), weights_hash=None, folder=None, stage=lambda *_: None)
    return opened(loaded, spec, methods, tokens=tokens, artefacts=artefacts)


def loaded_of(model: Any, tokenizer: Any = None, cache: torch.dtype | None = None) -> LoadedModel:
    """A model of random weights as if it had been loaded; its cache is in its own numbers unless ``cache`` says otherwise."""
    import torch

    from kvbench.models.loading import LoadedModel
    from kvbench.models.shape import shape_of

    info = {"random_weights": True, "weights_hash": None}
    device, shape = torch.device("cpu"), shape_of(model.config.to_dict())
    return LoadedModel(model, tokenizer, model.config, shape, device, model.dtype, cache or model.dtype, info)


def opened(
    loaded: LoadedModel,
    spec: RunSpec,
    methods: Mapping[str, Method] | None = None,
    *,
    tokens: Any = None,
    artefacts: Mapping[str, Any] | None = None,
) -> Session:
    """The session, its model's attention kvbench's from now on; ``methods`` are the spec's unless given, ``tokens`` its windows."""
    from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
    from kvbench.instruments.protocol import Runner
    from kvbench.instruments.session import Session
    from kvbench.texts.windows import Windows

    use_kvbench_attention(loaded.model)
    made = {m.label: resolve(m, spec) for m in spec.methods} if methods is None else methods
    options = CacheOptions(loaded.cache_dtype, spec.protocol, spec.context, spec.chunk_size, spec.seed)
    runner = Runner(loaded.model, Geometry.of(loaded.model), artefacts or {}, options)
    return Session(spec, made, loaded, runner, None if tokens is None else Windows(tokens, {}))


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
