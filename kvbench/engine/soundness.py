"""Which events of a journal can be believed once some of its lines cannot be read.

A disk can lose a page, an editor can cut a line. What is still whole is kept, and what it means is decided here, once,
for every reader: a line that cannot be, or that speaks of a unit or method that the plan lacks, is left out and told. A
unit counts as done only if nothing of it can have been in what was lost: its events touch no damage, or its last one
tells how many facts there were and they are all here. Any other is to be done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from kvbench.errors import KvbenchError
from kvbench.record import events as ev
from kvbench.record.schema import check_record, check_told
from kvbench.spec import MethodSpec, RunSpec, Unit

LATEST = 1e11
"""Seconds since the epoch beyond which no event happens (the year 5138)."""
AUDIT = "audit"
_PASSED_ON = frozenset({ev.MethodStarted, ev.TelemetrySampled, ev.NoteWritten, ev.WorkerStarted, ev.StageEntered})
"""Kinds of events on which nothing here depends, and in which types say all."""


class Unsound(ValueError):
    """An event that this journal cannot hold; says why."""


@dataclass
class Inspector:
    """Lets sound events through, in order.

    Args:
        plan_again: Makes the first event anew where its line is lost; called with the time it happened.
    """

    plan_again: Callable[[float], ev.RunStarted]
    damaged: list[int] = field(default_factory=list)
    """Numbers of lines that were left out."""
    again: dict[str, None] = field(default_factory=dict)
    """Units that are to be done again because of them, in order."""
    _reason: str = ""
    _units: dict[str, Unit] = field(default_factory=dict)
    _methods: frozenset[str] = frozenset()
    _text: frozenset[str] = frozenset()
    _told_of: int = 0
    _open: set[str] = field(default_factory=set)
    _begun: set[str] = field(default_factory=set)
    _touched: set[str] = field(default_factory=set)
    _unproven: set[str] = field(default_factory=set)
    """Units that an earlier attempt of touched damage, so that a failure may be lost that the last attempt does not count."""
    _facts: Counter[str] = field(default_factory=Counter)
    _done: set[str] = field(default_factory=set)
    _known: set[type[ev.Event]] = field(default_factory=set)
    _at: float = 0.0

    @property
    def has_plan(self) -> bool:
        return bool(self._methods)

    @property
    def reason(self) -> str:
        """Why the first damaged line cannot be read."""
        return self._reason

    def summary(self) -> str | None:
        """What is damaged and what that costs, in a line; ``None`` of a whole journal."""
        if not self.damaged:
            return None
        lost = [unit for unit in self.again if unit not in self._done]
        cost = f"to be done again: {_few(lost)}" if lost else "no finished unit is lost"
        return f"{_lines(self.damaged)} cannot be read and left out ({self._reason}); {cost}"

    def lose(self, line: int, reason: str) -> None:
        """A line that cannot be read: whatever is going on may have been in it."""
        self._reason = self._reason or reason
        self.damaged.append(line)
        self._touched |= self._open
        self._unproven |= self._begun - self._done - self._open

    def take(self, line: int, event: ev.Event, sound: list[ev.Event]) -> None:
        """Add the event to ``sound``, with what has to be told before it; nothing in its place if it cannot be.

        Raises:
            ResultError: the plan is lost and cannot be made again.
        """
        try:
            self._check(event)
        except Unsound as error:
            self.lose(line, str(error))
            return
        if self.damaged:
            if not self.has_plan and not isinstance(event, ev.RunStarted):
                made = self.plan_again(event.at)
                self._note(made)
                sound.append(made)
            self._at = event.at
            sound.extend(self.tell())
        self._at = event.at
        sound.append(self._note(event))

    def tell(self) -> Iterator[ev.Event]:
        """A note on the lines that were lost since the last one, once there is a plan."""
        fresh = self.damaged[self._told_of :]
        if fresh and self.has_plan:
            self._told_of = len(self.damaged)
            yield ev.NoteWritten(self._at, f"{_lines(fresh)} of the journal cannot be read and left out: {self._reason}", "error")

    def _note(self, event: ev.Event) -> ev.Event:
        """Follow what is going on; the event, or what stands in its place."""
        kind = type(event)
        self._known.add(kind)
        if kind is ev.RecordMade or kind is ev.MethodFailed:
            self._facts[event.unit] += 1  # type: ignore[attr-defined]
        elif kind not in _PASSED_ON:  # what is left is rare: a large journal is mostly the kinds above
            return self._followed(event)
        return event

    def _followed(self, event: ev.Event) -> ev.Event:
        match event:
            case ev.RunStarted(spec=spec, units=units, methods=methods):
                self._units = {u["id"]: msgspec.convert(u, Unit) for u in units}
                self._methods = frozenset(methods)
                self._text = _reading_text(RunSpec.from_plain(spec)) if self.damaged else self._text
            case ev.RunResumed():
                self._begun &= self._done  # what is left is done again whole, and its failures with it
                for begun in (self._open, self._touched, self._unproven):
                    begun.clear()
            case ev.UnitStarted(unit=unit):
                if unit in self._touched:
                    self._unproven.add(unit)
                self._open.add(unit)
                self._begun.add(unit)
                self._facts[unit] = 0
            case ev.AuditRecorded():
                self._facts.update(unit for unit in self._open if self._units[unit].evaluator == AUDIT)
            case ev.UnitFinished():
                return self._finished(event)
            case ev.UnitLost(unit=unit):
                self._open.discard(unit)
                self._done.add(unit)
            case ev.RunFinished(at=at) if self.damaged and set(self._units) - self._done:
                return ev.RunInterrupted(at, f"its journal is damaged; to be done again: {_few(sorted(set(self._units) - self._done))}")
        return event

    def _finished(self, event: ev.UnitFinished) -> ev.Event:
        unit = event.unit
        whole = not self.damaged or (self._is_whole(event) and self._is_known(self._units[unit]))
        self._open.discard(unit)
        if not whole and unit not in self._done:
            self.again[unit] = None
            return ev.NoteWritten(event.at, f"{unit} is to be done again: a part of it may be among the lines that are lost", "warning")
        self._done.add(unit)
        return event

    def _is_whole(self, event: ev.UnitFinished) -> bool:
        """Whether every fact of the unit is here: nothing of it touched damage, or they are as many as it told."""
        was_seen = event.unit in self._open
        if event.unit in self._unproven:
            return False
        if was_seen and event.unit not in self._touched:
            return True
        return event.facts is not None and event.facts == self._facts[event.unit] and (was_seen or event.unit not in self._begun)

    def _is_known(self, unit: Unit) -> bool:
        """Whether it is known what the unit was measured on, so that a resumed run can be held to it."""
        return ev.ModelLoaded in self._known and (ev.CorpusLoaded in self._known or unit.evaluator not in self._text)

    def _check(self, event: ev.Event) -> None:
        """Refuse what this journal cannot hold.

        Raises:
            Unsound: says why.
        """
        if not 0 <= event.at < LATEST:
            raise Unsound(f"a time of {event.at}")
        try:
            if type(event) not in _PASSED_ON:
                self._check_content(event)
        except (KvbenchError, msgspec.ValidationError) as error:
            raise Unsound(str(error)) from error
        unit, method = getattr(event, "unit", None), getattr(event, "method", None)
        if isinstance(event, ev.WorkerDied):
            unit, method = None, None  # words alone
        if unit is not None and unit not in self._units:
            raise Unsound(f"the plan has no unit {unit!r}")
        if method is not None and method not in self._methods:
            raise Unsound(f"the plan has no method {method!r}")

    def _check_content(self, event: ev.Event) -> None:
        match event:
            case ev.RecordMade(unit=unit, evaluator=evaluator, data=data):  # first, since most are
                if unit in self._units and self._units[unit].evaluator != evaluator:
                    raise Unsound(f"a record of {evaluator!r} in {unit}")
                check_record(evaluator, data)
            case ev.RunStarted():
                if self.has_plan:
                    raise Unsound("a second plan")
                _check_plan(event)
            case ev.ModelLoaded(model=model):
                check_told("model", model)
            case ev.CorpusLoaded(corpus=corpus):
                check_told("corpus", corpus)
            case ev.EnvironmentRecorded(environment=environment):
                check_told("environment", environment)
            case ev.AuditRecorded(audit=audit):
                check_told("audit", audit)
            case ev.BudgetSolved(target_bytes=target, stored_bytes=stored, baseline_bytes=baseline) if (
                not min(target, stored, baseline) > 0
            ):
                raise Unsound("a budget without bytes")
            case ev.UnitFinished(seconds=seconds) | ev.RunFinished(seconds=seconds) if not 0 <= seconds < LATEST:
                raise Unsound(f"a duration of {seconds}")


def _check_plan(event: ev.RunStarted) -> None:
    """Every name in a plan must be one, and every unit of its methods."""
    RunSpec.from_plain(event.spec)
    for label in event.methods:
        MethodSpec.parse(label)
    for unit in msgspec.convert(event.units, list[Unit]):
        if not set(unit.methods) <= set(event.methods) or not 0 <= unit.steps <= 1 << 31:
            raise Unsound(f"unit {unit.id!r} is of methods that the plan lacks")


def _reading_text(spec: RunSpec) -> frozenset[str]:
    """Names of the evaluators that score the corpus."""
    from kvbench.evaluators.registered import evaluators_of

    try:
        return frozenset(e.name for e in evaluators_of(spec) if e.needs_text)
    except KvbenchError:
        return frozenset(e.name for e in spec.evaluators)


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _lines(numbers: list[int]) -> str:
    """``line 3``, ``lines 3–7``."""
    return f"line {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} lines ({numbers[0]}–{numbers[-1]})"
