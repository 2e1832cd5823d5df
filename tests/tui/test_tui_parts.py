"""Parts of the dashboard that can be tried without a screen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_run import FIGURES, events, spec

from kvbench.figures.axes import Scale, padded
from kvbench.figures.colours import method_colours
from kvbench.formats import duration, fixed, plain_number, signed, size
from kvbench.metrics.front import frontier, points
from kvbench.metrics.row import Row
from kvbench.record import events as ev
from kvbench.record.state import RunState, apply, replay
from kvbench.record.summary import rows
from kvbench.tui import panel_facts
from kvbench.tui.canvas import Canvas, bar, spark
from kvbench.tui.columns import best_labels, columns, ordered, plan
from kvbench.tui.details import details
from kvbench.tui.feed import LAPSE_SECONDS, LapseFeed
from kvbench.tui.plots.scene import Scene, spread
from kvbench.tui.plots.speed import draw_speed
from kvbench.tui.reading import Reading
from kvbench.tui.rows import LiveRows
from kvbench.tui.svg import tidy
from kvbench.tui.theme import NIGHT, PAPER, THEMES, Palette


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (fixed(17.384, 2, 6), "17.38"), (fixed(12345.678, 2, 6), "12346"), (fixed(1.5e9, 2, 6), "2e9"), (fixed(None, 2), "–"),
        (fixed(math.inf, 2), "∞"), (signed(0.5, 2, 8), "+0.50"), (signed(-0.5, 2, 8), "-0.50"), (duration(3723), "1:02:03"),
        (duration(59.6), "1:00"), (size(1024), "1.0 KiB"), (size(1000), "1000 B"), (size(3 * 1024**3), "3.0 GiB"),
        (plain_number(0.0003), "3e-4"), (plain_number(20.0), "20"),
    ],
)  # fmt: skip
def test_figures_as_text(text: str, wanted: str) -> None:
    assert text == wanted


def test_braille_dots_of_one_cell_add_up_and_text_hides_them() -> None:
    canvas = Canvas(2, 1)
    canvas.dot(0, 0)
    canvas.dot(1, 3)
    assert canvas.strips()[0].text == "⢁ "
    canvas.text(0, 0, "a")
    assert canvas.strips()[0].text == "a "
    canvas.dot(99, 99)
    canvas.text(1, 0, "cut")
    assert canvas.strips()[0].text == "ac"


def test_bars_fill_their_width() -> None:
    assert {len("".join(bar(i / 50, 11))) for i in range(-5, 60)} == {11}
    assert bar(1.0, 4) == ("━━━━", "")
    assert spark([0.0, 0.01, 1.0]) == " ▁█"


@pytest.mark.parametrize(
    "scale", [Scale(0.0, 23.7), Scale(1e-4, 0.7, log=True), Scale(16.9, 26.3, log=True), padded([5.0]), padded([0.0, 0.0])]
)
@pytest.mark.parametrize("count", [1, 2, 4, 12])
def test_ticks_lie_on_the_scale_in_order(scale: Scale, count: int) -> None:
    ticks = scale.ticks(count)
    assert ticks == sorted(set(ticks))
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert [scale.fraction(v) for v in (scale.low, scale.high)] == [0.0, 1.0]


def test_labels_are_spread_over_the_rows_there_are() -> None:
    assert spread([3, 3, 3], 0, 9) == [3, 4, 5]
    assert spread([9, 9, 9], 0, 9) == [7, 8, 9]
    assert spread([0, 5, 5, 9, 9], 0, 9) == [0, 5, 6, 8, 9]
    assert spread([4] * 10, 0, 9) == list(range(10))


def test_colours_are_distinct_stable_and_contrast_with_both_grounds() -> None:
    labels = [*FIGURES, "kivi:bits=3", "my_plugin"]
    colours = method_colours(labels, dark=True)
    assert len(set(colours.values())) == len(labels)
    assert method_colours(["tova"], dark=True)["tova"] == colours["tova"]
    from textual.color import Color

    night, paper = Color.parse(NIGHT.background), Color.parse(PAPER.background)
    assert all(Color.parse(c).brightness - night.brightness > 0.35 for c in colours.values())
    assert all(paper.brightness - Color.parse(c).brightness > 0.3 for c in method_colours(labels, dark=False).values())


@pytest.mark.parametrize("width", [40, 80, 100, 120, 160, 240])
def test_columns_fit_their_width(width: int) -> None:
    found = plan(rows(replay(events())), width)
    used = 3 + found.method + sum(c.width + (1 if c.beside else 2) for c in found.columns) + 2 + found.progress
    assert used <= max(width, 27)
    if width >= 80:
        assert {"perplexity", "delta", "kl", "factor", "stored"} <= {c.key for c in found.columns}


def row(label: str, **changes: Any) -> Row:
    return replace(Row(label, "done", 1.0, None, "real"), **changes)


def test_best_is_what_is_printed_best_among_ranked_rows() -> None:
    kl = next(c for c in columns([]) if c.key == "kl")
    found = [row("baseline", kl=0.0), row("a", kl=0.01), row("b", kl=0.010001), row("c", kl=0.5), row("d", kl=0.001, audit="masked")]
    assert best_labels(found, kl) == {"a", "b"}
    assert best_labels(found[:2], kl) == set()
    assert [r.label for r in ordered(found[1:], kl, reverse=True)] == ["c", "b", "a", "d"]


def test_the_frontier_is_undominated_and_ranked() -> None:
    found = points([row(n, stored_bytes=b, factor=2.0, kl=k) for n, b, k in (("a", 1.0, 3.0), ("b", 2.0, 1.0), ("c", 3.0, 2.0))])
    assert [p.label for p in frontier(found)] == ["a", "b"]
    masked = points([row("m", stored_bytes=0.5, factor=2.0, kl=0.1, audit="masked"), row("a", stored_bytes=1.0, factor=2.0, kl=1.0)])
    assert [p.label for p in frontier(masked)] == ["a"]


def test_running_perplexity_ends_where_the_summary_is() -> None:
    state = replay(events())
    lines = panel_facts.running_perplexity(state)
    for found in rows(state):
        if found.status == "done":
            assert lines[found.label][-1] == (8, pytest.approx(found.perplexity))


def test_subject_names_the_baseline_s_cost_per_token() -> None:
    told = panel_facts.subject(replay(events()))
    assert told[0] == "smollm2"
    assert "baseline 45.0 KiB/token" in told
    assert "C 512 + S 256" in told


def test_rows_between_full_computations_equal_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import kvbench.tui.rows as live

    calls: list[int] = []
    monkeypatch.setattr(live, "rows", lambda state: calls.append(len(state.methods)) or rows(state))
    now = iter(range(10**6))
    kept, state = LiveRows(lambda: next(now) * 1e-3), RunState()
    for event in events():
        state = apply(state, event)
        found = kept.of(state, final=False)
    assert found == rows(state)
    assert sum(n == len(FIGURES) for n in calls) < len(calls) / 2


def test_dear_rows_are_computed_one_at_a_look_and_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """At very many samples a look must not cost more the more there are; what was put off comes, also when nothing else does."""
    import kvbench.tui.rows as live

    now, calls, told = [0.0], list[int](), list(events())

    def dear(state: RunState) -> Any:
        now[0] += 1.0
        calls.append(len(state.methods))
        return rows(state)

    monkeypatch.setattr(live, "rows", dear)
    middle = next(i for i, e in enumerate(told) if isinstance(e, ev.UnitFinished) and e.unit == "perplexity/2")
    kept, state = LiveRows(lambda: now[0]), replay(told[:middle])
    kept.of(state, final=False)
    calls.clear()
    for event in told[middle : middle + 60]:
        state = apply(state, event)
        kept.of(state, final=False)
    assert len(calls) == 1
    for _ in range(len(FIGURES)):
        assert not kept.is_due
        now[0] += live.REST_OF_ROWS
        if kept.is_due:
            found = kept.of(state, final=False)
    assert found == rows(state)


def test_records_that_cannot_be_summarised_leave_bare_rows_and_a_line_in_the_log() -> None:
    broken = [
        ev.RecordMade(e.at, e.unit, e.evaluator, e.method, e.key, {"odd": 1}) if isinstance(e, ev.RecordMade) else e for e in events()
    ]
    reading = Reading(LapseFeed(broken, iter([0.0, 1e9]).__next__))
    reading.advance()
    assert [r.label for r in reading.rows()] == list(FIGURES)
    assert any("figures cannot be computed" in entry.text for entry in reading.log)


def test_a_replay_gives_every_event_once_in_order_and_in_time() -> None:
    told = list(events())
    now = [0.0]
    feed = LapseFeed(told, lambda: now[0])
    found: list[ev.Event] = []
    while not feed.at_end:
        now[0] += 0.5
        found += feed.poll()
    assert found == told
    assert now[0] == pytest.approx(LAPSE_SECONDS, abs=1.0)


def test_remaining_time_shrinks_with_the_clock() -> None:
    whole = list(events())
    told = whole[: whole.index(next(e for e in whole if isinstance(e, ev.UnitStarted) and e.unit == "perplexity/3")) + 4]
    now = [told[-1].at]
    reading = Reading(LapseFeed(told, iter([0.0, 1e9]).__next__), lambda: now[0])
    reading.advance()
    before, elapsed = reading.remaining, reading.elapsed
    now[0] += 5
    assert before is not None
    assert reading.remaining == pytest.approx(before - 5)
    assert reading.elapsed == pytest.approx(elapsed + 5)
    now[0] += 1000
    assert 0 < reading.remaining < before - 5  # later units take their time however long this one takes


def test_spaces_around_a_text_move_it_instead() -> None:
    raw = '<text class="a" x="12.2" y="20" textLength="61" clip-path="url(#b)">&#160;&#160;ab&#160;</text>'
    assert tidy(raw) == '<text class="a" x="36.6" y="20" textLength="24.4" clip-path="url(#b)">ab</text>'
    dots = f'<text class="a" x="0" y="20" textLength="122" clip-path="url(#b)">{"⠐" * 10}</text>'
    assert tidy(dots).count("<text") == 2


def test_the_package_imports_textual_only_when_a_dashboard_opens() -> None:
    import subprocess
    import sys

    code = "import kvbench.tui, sys; sys.exit(any(m in sys.modules for m in ('textual', 'rich', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import kvbench.tui.app, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_style_sheet_lies_beside_the_code() -> None:
    import kvbench.tui.app as app

    assert (Path(app.__file__).parent / app.Dashboard.CSS_PATH).is_file()


def test_the_made_up_run_asks_for_what_it_records() -> None:
    assert [m.label for m in spec().methods] == list(FIGURES)


def test_speed_shows_the_rooflines_share_and_forms_no_ratio_with_another_read_path() -> None:
    state = replay(list(events()))
    timed = [replace(r, roofline_fraction=0.8, roofline_tokens_per_s=302.4, joules_per_token=0.31, read_path="fused") for r in rows(state)]
    timed = [replace(r, read_path="reference", other_read_path="reference") if r.label == "tova" else r for r in timed]
    palette = Palette.of(THEMES[0].to_color_system().generate(), True)
    scene = Scene(state, timed, palette, method_colours([r.label for r in timed], dark=True), selected="tova")
    canvas = Canvas(90, 20)
    draw_speed(canvas, scene)
    lines = [strip.text.rstrip() for strip in canvas.strips()]
    assert lines[0].endswith("× baseline  roofline")
    assert next(line for line in lines if "snapkv" in line).endswith("1.05×    80.0 %")
    assert next(line for line in lines if "tova" in line).endswith("ref path    80.0 %")
    text = details(scene, 70).plain
    assert "reference path, not the baseline's" in text
    assert "80.0 %" in text
    assert "of 302.4 tok/s" in text
    (column,) = [c for c in columns(timed) if c.key == "speed"]
    assert [r.label for r in timed if column.text(r).endswith("*")] == ["tova"]
