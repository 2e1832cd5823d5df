"""The result file: what a run found, in one JSON document that outlives the program.

Schema 1: ``results`` is the summary, a row a method; ``records`` holds every measurement (evaluator → method → key → data), so
that each figure of a row can be computed again; ``prepared`` what evaluators said of their data; ``lost`` the units that killed
their worker; ``seconds`` the time of running. A row's ``cache_dtype`` is what its factors are of. Rows with a byte budget say
what was asked (``budget``, ``target_*``), what was turned for it (``budget_solved``) and whether the measured bytes meet it
(``budget_met``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

import orjson

from kvbench.errors import KvbenchError, ResourceError, ResultError
from kvbench.files import read_bytes, write_whole
from kvbench.metrics.measured import Measured
from kvbench.metrics.row import MethodStatus
from kvbench.record import events as ev
from kvbench.record.redacted import Sharing
from kvbench.record.schema import check_result
from kvbench.record.state import MethodState, Records, RunState
from kvbench.record.summary import cache_dtype_of, fields_of, measured_of, same_tokens, summarise
from kvbench.spec import BASELINE, MethodSpec, RunSpec
from kvbench.spec.budgets import is_met

SCHEMA = 1
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "schema": int,
    "run": str,
    "complete": bool,
    "kvbench_version": str,
    "protocol": str,
    "spec": dict,
    "environment": dict,
    "model": dict,
    "corpus": dict,
    "baseline_perplexity": (float, int, type(None)),
    "results": list,
    "records": dict,
    "lost": dict,
    "seconds": (float, int),
}
"""What every result file holds."""


def build(state: RunState, name: str) -> dict[str, Any]:
    """The result of a run in ``state``; of a run that is not over, what there is so far.

    Raises:
        ResultError: the run has not begun.
    """
    if state.spec is None:
        raise ResultError(f"run '{name}' has not begun: there is nothing to report", hint=f"kvbench run --resume {name}")
    summaries = summarise(state)
    of = {"cache_dtype": cache_dtype_of(state)}
    same = {label: {"same_tokens_as": first} for label, first in same_tokens(state, summaries).items()}
    rows = [
        _row(row, of | fields_of(summaries, row.label) | same.get(row.label, {}), measured_of(summaries, row.label))
        for row in state.methods.values()
    ]
    share = Sharing(state.spec.to_plain())
    built = {
        "schema": SCHEMA,
        "run": name,
        "complete": state.status == "finished" and not state.lost,
        "kvbench_version": state.kvbench_version or str(state.environment.get("kvbench") or ""),
        "protocol": state.spec.protocol,
        "spec": share.facts(state.spec.to_plain()),
        "environment": share.facts(state.environment),
        "model": share.facts(state.model),
        "corpus": share.facts(state.corpus),
        "prepared": share.messages(state.prepared),
        "baseline_perplexity": fields_of(summaries, BASELINE).get("perplexity"),
        "results": [{**share.facts(row), **share.messages({key: row[key] for key in MESSAGES})} for row in rows],
        "records": _shared(state.records, share),
        "lost": share.messages(state.lost),
        "seconds": state.active_seconds,
    }
    plain: dict[str, Any] = orjson.loads(dumps(built))
    return plain


MESSAGES = ("error", "audit_checks")
"""What a row says in words of others."""


def _shared(records: Records, share: Sharing) -> dict[str, Any]:
    """Records under labels without paths, and what failed in them told without."""
    return {
        evaluator: {share.facts(label): {key: share.record(data) for key, data in of.items()} for label, of in methods.items()}
        for evaluator, methods in records.items()
    }


def _row(row: MethodState, found: Mapping[str, Any], measured: Sequence[Measured]) -> dict[str, Any]:
    return {
        "method": row.label,
        "method_name": _title(row.label),
        "status": row.status,
        "error": row.error,
        "error_kind": row.error_kind,
        "audit": row.audit_label,
        "audit_checks": dict(row.audit) if row.audit is not None else None,
        **_budget(row.budget, found.get("stored_bytes")),
        **found,
        "measured": [asdict(m) for m in measured],
    }


def _budget(found: ev.BudgetSolved | None, stored: float | None) -> dict[str, Any]:
    """What was asked of a row with a budget, and whether what it stored (else the run's first prompt, as stored) meets it."""
    if found is None:
        return {}
    asked = {"target_stored_bytes": found.target_bytes, "target_compression_factor": found.baseline_bytes / found.target_bytes}
    met = is_met(found.stored_bytes if stored is None else stored, found.target_bytes)
    return {"budget": found.budget, **asked, "budget_met": met, "budget_solved": asdict(found)}


def _title(label: str) -> str:
    """The method's name as papers write it; its label once the plug-in that gave it is gone."""
    from kvbench.errors import UsageError
    from kvbench.methods.registered import METHODS

    name = MethodSpec.parse(label).name
    try:
        return METHODS.load(name).title
    except UsageError:
        return name


def dumps(result: Mapping[str, Any]) -> bytes:
    """The document's bytes: indented JSON, a newline at the end."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(result, default=_plain, option=options)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def save(result: Mapping[str, Any], path: Path) -> None:
    """Write ``result`` to ``path``, whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    try:
        write_whole(path, dumps(result))
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror}", hint="choose another place with --output") from error


def load(path: Path) -> dict[str, Any]:
    """Read a result file back.

    Args:
        path: The file, or a run's folder.

    Raises:
        ResultError: missing, not JSON, of another schema, or lacking what a result must have; says which.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        data = orjson.loads(read_bytes(file))
    except OSError as error:
        hint = f"kvbench run --resume {path}" if path.is_dir() else "kvbench run"
        raise ResultError(f"{file} cannot be read: {error.strerror}", hint=hint) from error
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise ResultError(f"{file} is not JSON: {error}", hint=_AGAIN) from error
    fault = _fault(data)
    if fault:
        raise ResultError(f"{file} is no kvbench result: {fault}", hint=_AGAIN)
    try:
        _check(data)
    except KvbenchError as error:
        raise ResultError(f"{file}: {error.message}", hint=_AGAIN) from error
    return data  # type: ignore[no-any-return]


_AGAIN = "kvbench run writes a new one"


def _fault(data: Any) -> str | None:
    """What keeps ``data`` from being a result of this kvbench at all, or ``None``."""
    if not isinstance(data, dict) or "schema" not in data:
        return "it has no schema"
    if data["schema"] != SCHEMA:
        return f"its schema is {data['schema']}, this kvbench reads {SCHEMA}"
    missing = [key for key in KINDS if key not in data]
    if missing:
        return f"it lacks {', '.join(missing)}"
    wrong = [key for key, kind in KINDS.items() if not isinstance(data[key], kind)]
    if wrong:
        return f"{', '.join(wrong)} of the wrong kind"
    if not all(isinstance(row, dict) and {"method", "status", "measured"} <= row.keys() for row in data["results"]):
        return "a row of results lacks method, status or measured"
    return None


def _check(data: Mapping[str, Any]) -> None:
    """Every field of the kind that readers take it for, and every name one.

    Raises:
        KvbenchError: names the place.
    """
    check_result(data)
    RunSpec.from_plain(data["spec"])
    labels = [row["method"] for row in data["results"]]
    for label in labels:
        MethodSpec.parse(label)
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ResultError(f"results: method '{twice}' is there twice")


def to_state(result: Mapping[str, Any]) -> RunState:
    """A state that shows what ``result`` says, for files that come without their journal.

    Raises:
        ResultError: its specification cannot be read.
    """
    rows = {row["method"]: _method_state(row) for row in result["results"]}
    return RunState(
        status="finished" if result["complete"] else "interrupted", spec=RunSpec.from_plain(result["spec"]),
        methods=MappingProxyType(rows), records=result["records"], environment=result["environment"], model=result["model"],
        corpus=result["corpus"], prepared=result.get("prepared") or {},
        lost=result["lost"], active_seconds=result["seconds"], kvbench_version=result["kvbench_version"],
    )  # fmt: skip


def _method_state(row: Mapping[str, Any]) -> MethodState:
    known: MethodStatus = row["status"] if row["status"] in get_type_hints(MethodState)["status"].__args__ else "waiting"
    done = int(known == "done")
    budget = row.get("budget_solved")
    return MethodState(
        row["method"], known, units_done=done, units_planned=1, error=row.get("error"), error_kind=row.get("error_kind"),
        audit_label=row.get("audit"), audit=row.get("audit_checks"),
        budget=ev.BudgetSolved(**budget) if budget else None,
    )  # fmt: skip
