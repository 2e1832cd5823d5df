"""Which rows are called best, and which are worth their bytes: what is shown, and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kvbench.evaluators.base import Measured
from kvbench.metrics.apart import contenders, is_better
from kvbench.metrics.front import frontier, points
from kvbench.metrics.row import Row
from kvbench.report.content import _points as report_points
from kvbench.report.scatter import scatter
from kvbench.tui.columns import best_labels, columns

pytestmark = pytest.mark.fast


def figure(samples: list[float], metric: str = "kl_mean", better: str = "lower", **given: object) -> Measured:
    fields = {"evidence": "paired", "scoring": "mean", **given}
    return Measured(
        metric, sum(samples) / len(samples), "1", better=better, samples={str(i): v for i, v in enumerate(samples)}, **fields  # type: ignore[arg-type]
    )  # fmt: skip


def row(
    label: str, factor: float, kl: list[float] | float, *, audit: str = "real", status: str = "done", rounding: float | None = None
) -> Row:
    samples = [kl] * 8 if isinstance(kl, float) else kl
    measured = {"kl_mean": figure(samples, rounding=rounding)}
    mean = sum(samples) / len(samples)
    return Row(label, status, 1.0, None, audit, kl=mean, factor=factor, stored_bytes=1000 / factor, measured=measured)  # type: ignore[arg-type]


def spread(around: float, seed: int, by: float = 0.02) -> list[float]:
    draw = random.Random(seed)
    return [around + draw.uniform(-by, by) for _ in range(8)]


BASE = replace(row("baseline", 1.0, 0.0), kl=None)
KL = next(c for c in columns([]) if c.key == "kl")
FACTOR = next(c for c in columns([]) if c.key == "factor")


def front(*rows: Row) -> list[str]:
    return [p.label for p in frontier(points(rows))]


def test_a_corner_needs_a_difference_that_is_shown() -> None:
    small, large = row("small", 8.0, spread(0.5, 1, 0.2)), row("large", 2.0, spread(0.1, 2))
    noise = row("noise", 4.0, [v - 0.001 * (-1) ** i * (i + 1) for i, v in enumerate(small.measured["kl_mean"].samples.values())])
    assert noise.kl is not None
    assert small.kl is not None
    assert noise.kl != small.kl
    assert front(BASE, large, noise, small) == ["small", "large"]
    assert front(BASE, large, row("better", 4.0, spread(0.2, 3)), small) == ["small", "better", "large"]


def test_controls_the_unmasked_and_the_failed_are_not_on_the_front() -> None:
    good = row("good", 2.0, spread(0.2, 1))
    others = [
        row("random", 9.0, spread(0.1, 2)), row("random@4x", 8.0, spread(0.1, 3)), row("m", 7.0, spread(0.1, 4), audit="masked"),
        row("s", 6.0, spread(0.1, 5), audit="simulated"), row("f", 5.0, spread(0.1, 6), status="failed"),
    ]  # fmt: skip
    assert front(BASE, good, *others) == ["good"]


def test_a_difference_within_rounding_is_no_corner() -> None:
    small = row("small", 8.0, spread(0.5, 1))
    better = [v - 0.01 for v in small.measured["kl_mean"].samples.values()]
    assert front(BASE, small, row("large", 2.0, [v - 1e-4 * i for i, v in enumerate(better)])) == ["small", "large"]
    assert front(BASE, small, row("large", 2.0, [v - 1e-4 * i for i, v in enumerate(better)], rounding=0.05)) == ["small"]


def test_of_rows_of_one_size_the_shown_best_is_on_the_front() -> None:
    assert front(BASE, row("a", 2.0, spread(0.3, 1)), row("b", 2.0, spread(0.1, 2))) == ["b"]
    assert front(BASE, row("one", 4.0, [0.5]), row("other", 2.0, [0.1])) == ["one"], "one sample shows nothing"


def test_dashboard_and_report_draw_one_front() -> None:
    draw = random.Random(5)
    for _ in range(20):
        rows = [BASE, row("random", 2.0, spread(0.8, 1))]
        rows += [row(f"m{i}", draw.uniform(1.2, 9.0), spread(draw.uniform(0.05, 0.9), draw.randrange(99))) for i in range(8)]
        shown = [p for p in points(rows) if p.kl > 0]
        assert [p.label for p in frontier(shown)] == [p.label for p in frontier(report_points(rows))]
        assert scatter(report_points(rows)).count('class="bar"') == 0
    barred = [replace(r, kl_low=0.01, kl_high=0.9) for r in rows]
    assert scatter(report_points(barred)).count('class="bar"') == len(report_points(barred))


def test_a_star_is_given_to_what_is_shown_best() -> None:
    rows = [BASE, row("a", 2.0, spread(0.1, 1)), row("b", 2.0, spread(0.3, 2)), row("c", 2.0, spread(0.5, 3))]
    assert best_labels(rows, KL) == {"a"}
    noise = row("noise", 2.0, [v + 0.0005 * (-1) ** i * (i + 1) for i, v in enumerate(rows[1].measured["kl_mean"].samples.values())])
    assert best_labels([*rows, noise], KL) == set()
    assert best_labels([BASE, *[row(name, 2.0, 0.3) for name in "ab"]], KL) == set(), "all alike: none is best"


def test_stars_are_for_rows_that_clear_the_bar_of_random() -> None:
    forgetful, lavish = row("forgetful", 17.0, spread(1.1, 1)), row("lavish", 1.01, spread(1e-5, 2, 1e-6))
    rows = [BASE, row("random", 2.0, spread(0.8, 3)), forgetful, lavish, row("a", 4.0, spread(0.3, 4)), row("b", 2.0, spread(0.05, 5))]
    assert [r.label for r in contenders(rows)] == ["a", "b"]
    assert best_labels(rows, KL) == {"b"}
    assert best_labels(rows, FACTOR) == {"a"}
    assert {r.label for r in contenders(rows[:1] + rows[2:])} == {"forgetful", "lavish", "a", "b"}, "without random there is no bar"


def test_better_is_a_matter_of_evidence() -> None:
    fast, slow = (figure([100.0 * s + i for i in range(6)], "tokens_per_s", "higher", evidence="noisy") for s in (2, 1))
    assert is_better(fast, slow)
    assert not is_better(slow, fast)
    assert not is_better(replace(fast, read_path="fused"), slow)
    few = [replace(m, samples={k: v for k, v in m.samples.items() if k < "3"}) for m in (fast, slow)]
    assert not is_better(*few), "three repeats cannot show a difference"
    small, large = (Measured("stored_bytes", v, "bytes", "exact", "lower") for v in (1.0, 2.0))
    assert is_better(small, large)
    assert not is_better(small, small)
    assert not is_better(figure([1.0], "x", "neither"), figure([2.0], "x", "neither"))
