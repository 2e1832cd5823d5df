"""What ``kvbench verify METHOD`` tries: conformance on tiny models of every family, then the audit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kvbench.errors import UsageError, told
from kvbench.instruments.audit import Auditor
from kvbench.instruments.check import Check
from kvbench.instruments.conformance import Sizes, conformance
from kvbench.instruments.context import Stage
from kvbench.instruments.session import Session
from kvbench.instruments.tiny import FAMILIES, make_tiny_config
from kvbench.methods.registered import METHODS, expand, free, resolve
from kvbench.spec import BASELINE, CorpusSpec, EvaluatorSpec, MethodSpec, ModelSpec, RunSpec

__all__ = ["Sizes", "conformance", "on_tiny", "verify"]


def verify(method_text: str, stage: Stage, *, model: ModelSpec | None = None) -> list[Check]:
    """Run the suite on tiny models of every family, then the audit (on ``model`` if one is named).

    Raises:
        KvbenchError: the method or model does not exist or they do not fit.
    """
    spec = free(method_text)
    tried = on_tiny(spec)
    method = resolve(tried, RunSpec())
    checks: list[Check] = []
    for family in FAMILIES:
        checks += conformance(method, family, Sizes(), stage)
    audited = tried if model is None else spec
    stage(f"audit of {audited.label}", 0, 1)
    return checks + list(_audit(audited, model, stage))


def on_tiny(spec: MethodSpec) -> MethodSpec:
    """As it is tried on tiny random models."""
    trial = METHODS.load(spec.name).trial
    return spec if trial is None or spec.params or spec.store is not None else MethodSpec.parse(trial)


def _audit(spec: MethodSpec, model: ModelSpec | None, stage: Stage) -> Iterator[Check]:
    tiny = ModelSpec("tiny qwen2", "float64", device="cpu", random_weights=True, config=make_tiny_config("qwen2"))
    run = RunSpec(
        model=model or tiny, methods=expand([spec.label]), evaluators=(EvaluatorSpec("speed"),), corpus=CorpusSpec(), context=512, samples=1
    )  # fmt: skip
    methods = {m.label: resolve(m, run) for m in run.methods}
    session = Session.open(run, methods, stage)
    try:
        verdict = Auditor(session, run.context, 16, [spec.label]).examine(spec.label)
    except UsageError:
        raise
    except Exception as error:
        yield Check("audit", False, type(error).__name__, told(error))
        return
    for name, check in verdict.checks.items():
        yield replace(check, name=f"audit: {name}", passed=check.passed or (spec.label == BASELINE and name == "fewer bytes"))
    yield Check("audit label", verdict.label in ("real", "reference"), verdict.label, f"at {run.context} tokens of {run.model.id}")
