"""``--fail-on``: how much worse B may be before the shell is told.

A threshold is ``[METHOD/]METRIC:±LIMIT[%]``. Its sign is the direction in which the metric gets worse: ``perplexity:+1%``
fails when B's perplexity lies more than 1 % above A's, ``tokens_per_s:-5%`` when B's lies more than 5 % below,
``kl_mean:+0.01`` when it rises by more than 0.01 in the metric's own unit. Without a method it asks it of every
method that both files hold, at every point. What counts as "more than":

- ``exact``: the change itself.
- ``paired`` and ``noisy``: the change must be shown, and its whole 95 % interval lie beyond the limit, so noise does not fail a
  build; a change that cannot be tested (one sample, three repeats), or whose interval alone is beyond the limit while its test
  does not show it (three answers of three lost), is told as a warning and does not fail either.
- A figure that cannot be compared, or that A has and B lacks (its method failed), fails: a gate that could not look
  must not say that all is well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvbench.compare.judge import Finding
from kvbench.errors import UnknownName, UsageError

_FORM = re.compile(r"(?:(?P<method>.+)/)?(?P<metric>[^/:]+):(?P<limit>[+-]\d*\.?\d+(?:[eE][+-]?\d+)?)(?P<percent>%?)")


@dataclass(frozen=True)
class Threshold:
    """A limit on the worsening of one metric; ``limit`` carries the sign of the worse direction."""

    metric: str
    limit: float
    percent: bool
    rising: bool
    method: str | None = None
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read ``[METHOD/]METRIC:±LIMIT[%]``.

        Raises:
            UsageError: another form.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise UsageError(
                f"--fail-on '{text}' is not [METHOD/]METRIC:+LIMIT[%]",
                hint="for example --fail-on perplexity:+1% or --fail-on kivi:bits=2/tokens_per_s:-5%",
            )
        limit = found["limit"]
        return cls(found["metric"], float(limit), bool(found["percent"]), limit.startswith("+"), found["method"], text.strip())


@dataclass(frozen=True)
class Checked:
    """What the thresholds found: ``crossed`` lines fail the comparison, ``untested`` ones are only told."""

    crossed: Sequence[str] = field(default_factory=tuple)
    untested: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class _Outcome:
    line: str
    fails: bool


def check(thresholds: Sequence[Threshold], findings: Sequence[Finding], methods: Sequence[str]) -> Checked:
    """Hold every threshold against every finding it speaks of.

    Args:
        methods: Labels of both files, so that a method that only one of them holds is known.

    Raises:
        UnknownName: a metric or method that neither file holds.
        UsageError: a sign that points to where the metric gets better.
    """
    outcomes = [outcome for threshold in thresholds for outcome in _outcomes(threshold, findings, methods)]
    return Checked([o.line for o in outcomes if o.fails], [o.line for o in outcomes if not o.fails])


def _outcomes(threshold: Threshold, findings: Sequence[Finding], methods: Sequence[str]) -> list[_Outcome]:
    _refuse_unknown(threshold, findings, methods)
    spoken_of = [f for f in findings if f.metric == threshold.metric and threshold.method in (None, f.method)]
    if not spoken_of:
        return [_Outcome(f"{threshold.text}: the files do not both hold {threshold.metric} of {threshold.method}", fails=True)]
    return [outcome for finding in spoken_of if (outcome := _outcome(threshold, finding)) is not None]


def _refuse_unknown(threshold: Threshold, findings: Sequence[Finding], methods: Sequence[str]) -> None:
    metrics = {f.metric: f for f in findings}
    if threshold.metric not in metrics:
        raise UnknownName("metric", threshold.metric, metrics, hint=f"one of {', '.join(metrics) or 'none: the files share no method'}")
    if threshold.method is not None and threshold.method not in methods:
        raise UnknownName("method", threshold.method, methods, hint=f"one of {', '.join(methods)}")
    better = metrics[threshold.metric].better
    if better == ("higher" if threshold.rising else "lower"):
        name, colon, limit = threshold.text.rpartition(":")
        raise UsageError(
            f"--fail-on '{threshold.text}' would fail when {threshold.metric} gets better ({better} is better)",
            hint=f"--fail-on '{name}{colon}{'-' if threshold.rising else '+'}{limit[1:]}'",
        )


def _outcome(threshold: Threshold, finding: Finding) -> _Outcome | None:
    """What to tell of one finding; ``None`` where the limit holds, or where A has no figure to hold it to."""
    where = f"{finding.method}/{finding.metric}" + (f" at {finding.point}" if finding.point else "")
    limit = f"limit {threshold.text.rpartition(':')[2]}"
    if finding.verdict == "x":
        return _Outcome(f"{where}: {limit}, cannot be checked: {finding.note}", fails=True) if finding.a is not None else None
    bound = _bound(threshold, finding)
    if bound is None:
        return _Outcome(f"{where}: {limit}, not checked: {finding.note or 'no interval'}", fails=False)
    beyond = bound > threshold.limit if threshold.rising else bound < threshold.limit
    if not beyond:
        return None
    if finding.evidence != "exact" and finding.verdict == "~":
        why = finding.note or f"p = {finding.p or 1.0:.2g}"
        return _Outcome(f"{where}: {_told(threshold, finding)}, {limit}, not shown: {why}", fails=False)
    return _Outcome(f"{where}: {_told(threshold, finding)}, {limit}", fails=True)


def _bound(threshold: Threshold, finding: Finding) -> float | None:
    """The end of the change nearest to "no worse", in the threshold's unit; infinite for % of a zero."""
    change = finding.change
    if finding.p == 1.0 and change.absolute == 0.0 and change.low is None:
        return 0.0  # every sample is the same
    if finding.evidence == "exact":
        absolute, relative = change.absolute, change.percent
    elif threshold.rising:
        absolute, relative = change.low, change.percent_low
    else:
        absolute, relative = change.high, change.percent_high
    if not threshold.percent or absolute is None or change.percent is not None:
        return relative if threshold.percent else absolute
    return math.copysign(math.inf, absolute) if absolute else 0.0


def _told(threshold: Threshold, finding: Finding) -> str:
    change, unit = finding.change, "" if finding.unit == "1" else f" {finding.unit}"
    middle, low, high = change.absolute, change.low, change.high
    if threshold.percent and change.percent is not None:
        middle, low, high, unit = change.percent, change.percent_low, change.percent_high, " %"
    interval = "" if low is None or high is None else f" [{low:+.4g}, {high:+.4g}]"
    return f"{middle:+.4g}{unit}{interval}"
