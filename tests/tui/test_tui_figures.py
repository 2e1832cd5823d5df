"""Evaluators' figures on the dashboard: computed seldom, drawn at any size, reached by keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import made_up_run
import made_up_scores
import pytest
from made_up_run import FIGURES
from made_up_scores import HEADS, LAYERS, LENGTHS, MADE_UP, TASKS, MadeUpTasks, events
from rich.cells import cell_len

from kvbench.figures import Figure, Grid, Table
from kvbench.metrics.row import Row
from kvbench.record import summary
from kvbench.record.events import RecordMade
from kvbench.record.state import RunState, apply, replay
from kvbench.record.summary import rows
from kvbench.spec import EvaluatorSpec, SweepRow, SweepSpec
from kvbench.tui import live_figures as live
from kvbench.tui.app import Dashboard
from kvbench.tui.canvas import Canvas
from kvbench.tui.columns import columns, columns_of, plan
from kvbench.tui.feed import LapseFeed
from kvbench.tui.live_figures import REST, LiveFigures, clean, sound
from kvbench.tui.panels import PlotPanel
from kvbench.tui.plots import PLOTS, Scene, View, grid, heat, opening, scores
from kvbench.tui.reading import Reading
from kvbench.tui.table import MethodTable
from kvbench.tui.theme import THEMES, Palette

Following = Callable[[Path], Dashboard]
SIZES = [(40, 8), (68, 16), (76, 9), (115, 27), (196, 40)]


def lines(app: Dashboard) -> list[str]:
    return ["".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()]


def drawn(plot: str, scene: Scene, size: tuple[int, int]) -> list[str]:
    canvas = Canvas(*size)
    PLOTS[plot].draw(canvas, scene)
    return [strip.text for strip in canvas.strips()]


@pytest.fixture
def scene(made_up: None) -> Scene:
    """The whole made-up run, ``snapkv`` selected."""
    return _scene()


@cache
def _scene() -> Scene:
    state = replay(events())
    palette = Palette.of(THEMES[0].to_color_system().generate(), True)
    return Scene(state, rows(state), palette, {}, "snapkv", figures=LiveFigures().of(state, final=True))


# -- when they are computed


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, clock: Clock, made_up: None) -> list[str]:
    """Which evaluators' figures were computed, each in one second."""
    found: list[str] = []

    def figures(state: RunState) -> dict[str, list[Figure]]:
        clock.now += 1.0
        assert state.spec is not None
        found.extend(e.name for e in state.spec.evaluators)
        return summary.figures(state)

    monkeypatch.setattr(live, "figures", figures)
    return found


def folded() -> Iterator[tuple[RecordMade, RunState]]:
    state = RunState()
    for event in events():
        state = apply(state, event)
        if isinstance(event, RecordMade):
            yield event, state


def test_figures_are_computed_again_only_for_new_records_and_seldom(clock: Clock, computed: list[str]) -> None:
    kept, seen = LiveFigures(clock), list(folded())
    needle = [state for event, state in seen if event.evaluator == "needle"]
    first = kept.of(needle[0], final=False)
    assert kept.of(needle[0], final=False) is first
    assert kept.of(needle[1], final=False) is first
    assert computed == ["needle"]
    assert not kept.is_due
    clock.now += REST
    assert kept.is_due
    second = kept.of(needle[1], final=False)
    assert second is not first
    assert not kept.is_due
    assert computed == ["needle", "needle"]
    last = seen[-1][1]
    assert list(kept.of(last, final=False)) == ["needle", "tasks", "layers"]
    assert kept.of(last, final=True)["needle"] == [sound(f) for f in summary.figures(last)["needle"]]
    assert computed == ["needle", "needle", "tasks", "layers", "needle"]


def test_a_sweep_s_own_figures_come_first_and_show_a_row_s_method() -> None:
    sweep = SweepSpec((("bits", (2, 4)),), tuple(SweepRow(f"kivi:bits={n}", "kivi", (n,)) for n in (2, 4)), contexts=(512,))
    state = replay(made_up_run.events())
    assert state.spec is not None
    state = replace(state, spec=replace(state.spec, sweep=sweep))
    found = LiveFigures().of(state, final=True)
    assert next(iter(found)) == "sweep"
    assert [f.title for f in found["sweep"]] == [f.title for f in summary.figures(state)["sweep"]]
    heat_map = Grid("kl", "KL", "kivi", ["2", "4"], ["256", "512"], [[0.1, 0.2], [0.3, 0.4]])
    other = replace(heat_map, method="turboquant")
    palette = Palette.of(THEMES[0].to_color_system().generate(), True)
    shown = grid.arrange(Scene(state, [], palette, {}, "kivi:bits=2", figures={"sweep": [other, heat_map]}), 80, 14)
    assert shown is not None
    assert shown.grids == (heat_map,)


def test_an_evaluator_that_breaks_is_a_line_in_the_log_and_hides_no_other(monkeypatch: pytest.MonkeyPatch, made_up: None) -> None:
    monkeypatch.setattr(MadeUpTasks, "figures", lambda *_: 1 / 0)
    reading = Reading(LapseFeed(list(events()), iter([0.0, 1e9]).__next__))
    reading.advance()
    assert list(reading.figures()) == ["needle", "layers"]
    reading.figures()
    told = [entry.text for entry in reading.log if "cannot be shown" in entry.text]
    assert told == ["figures of tasks cannot be shown: ZeroDivisionError: division by zero"]
    assert reading.figures_problem == told[0]


@pytest.mark.parametrize(
    "figure",
    [
        Table("t", "title", ["a", "b"], [["1"]]),
        Table("t", "title", [], []),
        Grid("g", "title", "m", ["r"], ["c"], [[0.1, 0.2]]),
        Grid("g", "title", "m", ["r"], ["c"], []),
        Grid("g", "title", "m", ["r"], ["c"], [["high"]]),  # type: ignore[list-item]
    ],
)
def test_a_figure_whose_parts_do_not_fit_is_refused(figure: Figure) -> None:
    with pytest.raises(ValueError, match=r"headings and a row of|rows, .* columns and other values|could not convert"):
        sound(figure)


def test_texts_lose_what_a_terminal_would_obey() -> None:
    assert clean("a\n b\t\x1b[31mc\u200b") == "a b \N{REPLACEMENT CHARACTER}[31mc"


def test_wide_characters_take_two_cells_and_accents_none() -> None:
    canvas = Canvas(6, 1)
    canvas.text(0, 0, "a巴e\u0301黎京")
    strip = canvas.strips()[0]
    assert strip.text == "a巴e\u0301黎"
    assert cell_len(strip.text) == 6


# -- heat maps


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("plot", ["grid", "scores"])
@pytest.mark.parametrize("key", [("needle", "recall"), ("layers", "cosine_K"), ("tasks", "tasks"), ("tasks", "worst")])
def test_every_figure_is_drawn_within_its_canvas(scene: Scene, plot: str, key: tuple[str, str], size: tuple[int, int]) -> None:
    for label in ("baseline", "v_lowrank"):
        shown = drawn(plot, replace(scene, selected=label, view=View(chosen=key)), size)
        assert {cell_len(line) for line in shown} == {size[0]}
        if (plot == "grid") == (key[0] != "tasks"):
            assert shown[0].startswith(key[0])


def test_a_heat_map_shows_its_figures_and_the_baseline_s_beside(scene: Scene) -> None:
    text = "\n".join(drawn("grid", scene, (80, 14)))
    found = next(f for f in scene.figures["needle"] if isinstance(f, Grid) and f.method == "snapkv")
    for row in found.values:
        assert "  ".join(f"{v:.2f}" for v in row if v is not None) in text
    assert text.count("1.00") >= len(LENGTHS)
    assert all(length in text for length in LENGTHS)
    assert "high is good" in text


def test_narrow_cells_lose_the_zero_then_become_columns_by_height(scene: Scene) -> None:
    assert ".98 .8" in "\n".join(drawn("grid", scene, (28, 9)))
    layers = replace(scene, selected="random", view=View(chosen=("layers", "cosine_K")))
    text = "".join(drawn("grid", layers, (68, 14)))
    assert set("▂▃▄▅▆▇") <= set(text)


def test_a_grid_that_is_too_high_is_laid_on_its_side(scene: Scene) -> None:
    layers = replace(scene, view=View(chosen=("layers", "cosine_K")))
    lying, upright = (grid.arrange(layers, 100, height) for height in (14, 40))
    assert lying is not None
    assert upright is not None
    assert (len(lying.rows), len(lying.columns)) == (HEADS, LAYERS)
    assert (len(upright.rows), len(upright.columns)) == (LAYERS, HEADS)
    assert lying.grids[0].values[3][7] == upright.grids[0].values[7][3]


def test_every_row_of_a_grid_that_does_not_fit_can_be_reached(scene: Scene) -> None:
    layers = replace(scene, view=View(chosen=("layers", "cosine_K")))
    seen: set[int] = set()
    for _ in range(LAYERS):
        layout = grid.arrange(layers, 60, 9)
        assert layout is not None
        seen |= set(layout.rows)
        layers = replace(layers, view=grid.scroll_grid(layers, 60, 9, 1, 0))
    assert seen == set(range(LAYERS))
    assert grid.scroll_grid(layers, 60, 9, -99, 0).row == 0


def test_what_is_not_measured_yet_stays_empty(made_up: None, scene: Scene) -> None:
    told = list(events())
    first = next(i for i, e in enumerate(told) if isinstance(e, RecordMade))
    state = replay(told[: first + 5])
    early = replace(scene, state=state, figures=LiveFigures().of(state, final=False))
    empty, started = grid.arrange(early, 80, 14), grid.arrange(replace(early, selected="baseline"), 80, 14)
    assert empty is not None
    assert started is not None
    assert {v for row in empty.grids[0].values for v in row} == {None}
    assert empty.grids[0].method == "snapkv"
    assert [v is None for v in started.grids[0].values[0]] == [False, True, True, True, True]
    assert "25 of 25 not measured" in "".join(drawn("grid", early, (80, 14)))


def test_colours_run_from_bad_to_good(scene: Scene) -> None:
    high = Grid("g", "t", "m", ["r"], ["c"], [[None]])
    low, palette = replace(high, good="low"), scene.palette
    assert heat.colour(high, 1.0, palette) == heat.colour(low, 0.0, palette) != heat.colour(high, 0.0, palette)
    assert heat.colour(high, 7.0, palette) == heat.colour(high, 1.0, palette)
    assert heat.colour(high, float("nan"), palette) == heat.colour(high, 0.0, palette)
    assert len({heat.colour(high, n / 8, palette) for n in range(9)}) == 9


@pytest.mark.parametrize(
    ("low", "high", "values", "text"),
    [
        (0.0, 1.0, [0.2, 0.9], "0.20"),
        (0.0, 1.0, [0.991, 0.998], "0.991"),
        (0.0, 64.0, [12.0, 60.0], "12.0"),
        (1.0, 1541.0, [16.1, 1.27], "16.1"),
        (0.0, 1e-6, [3e-7, 9e-7], "3e-07"),
    ],
)
def test_decimals_follow_the_scale_and_the_values(low: float, high: float, values: list[float], text: str) -> None:
    found = Grid("g", "t", "m", ["r"], ["a", "b"], [values], low=low, high=high)
    assert heat.full(values[0], heat.decimals([found])) == text


# -- tables


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["tasks", "worst"])
def test_the_selected_method_s_rows_are_in_sight(scene: Scene, name: str, size: tuple[int, int]) -> None:
    for label in FIGURES:
        chosen = replace(scene, selected=label, view=View(chosen=("tasks", name)))
        layout = scores.arrange(chosen, *size)
        assert layout is not None
        assert layout.marked
        assert layout.marked & set(layout.rows)
        assert any(line.startswith(label) for line in drawn("scores", chosen, size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["tasks", "worst"])
def test_all_columns_and_rows_are_reached(scene: Scene, name: str, size: tuple[int, int]) -> None:
    at = replace(scene, view=View(chosen=("tasks", name), row=0))
    columns, shown = set(), set()
    for across, down in [(1, 0)] * len(TASKS) + [(0, 1)] * 40:
        layout = scores.arrange(at, *size)
        assert layout is not None
        columns |= {number for number, _ in layout.columns}
        shown |= set(layout.rows)
        whole = len(layout.rows) == len(layout.table.rows) and layout.last == 0
        assert bool(layout.hint) != whole
        at = replace(at, view=scores.scroll_scores(at, *size, down, across))
    table = next(f for f in scene.figures["tasks"] if f.name == name)
    assert isinstance(table, Table)
    assert columns == set(range(len(table.headings)))
    assert shown == set(range(len(table.rows)))


# -- the methods' table


def test_headlines_of_all_evaluators_are_put_together(made_up: None) -> None:
    found = next(r for r in rows(replay(events())) if r.label == "baseline")
    assert found.headline == {"needle": 1.0, "tasks": 0.62}


def test_a_run_without_perplexity_has_columns_for_its_main_scores(scene: Scene) -> None:
    shown = [c.key for c in plan(scene.rows, 80, set(MADE_UP)).columns]
    assert shown == ["headline:needle", "headline:tasks", "factor", "stored", "audit"]
    needle = next(c for c in columns(scene.rows) if c.key == "headline:needle")
    assert (needle.title, needle.text(scene.rows[0])) == ("needle %", "100.0")
    bare = [replace(row, headline={}, factor=None, stored_bytes=None) for row in scene.rows]
    assert [c.key for c in columns_of(bare, {"needle"})] == ["audit"]
    assert {"perplexity", "delta_ci", "stored"} <= {c.key for c in columns_of(bare, {"needle", "perplexity"})}
    assert "delta_ci" in {c.key for c in columns_of([Row("a", "done", 1.0, None, None, delta_pct=1.0)], {"needle"})}


def test_a_run_opens_on_what_it_measures(scene: Scene, made_up: None) -> None:
    def opened(*names: str) -> str:
        assert scene.state.spec is not None
        chosen = tuple(e for n in names for e in [replace(scene.state.spec.evaluators[0], name=n)])
        return opening(replace(scene.state, spec=replace(scene.state.spec, evaluators=chosen)))

    found = [
        opened("tasks", "perplexity"),
        opened("needle", "speed"),
        opened("speed", "tasks"),
        opened("speed", "memory"),
        opened("memory"),
    ]
    assert found == ["pareto", "grid", "scores", "speed", "memory"]


# -- keys


async def test_heat_maps_and_tables_are_reached_by_keys(scored: Path) -> None:
    app = Dashboard(scored, live=False)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        assert app.query_one(PlotPanel).plot == "grid"
        app.query_one(MethodTable).selected = "knorm"

        async def after(*keys: str) -> str:
            await pilot.press(*keys)
            await pilot.pause()
            return "\n".join(lines(app)[20:])

        assert "needle · knorm · words of the needle recalled" in await after("5")
        assert "layers · knorm · cosine of K" in await after("]")
        assert "layers · baseline · cosine of K" in await after("b")
        assert "needle · knorm" in await after("b", "[")
        assert "arc_challenge" in await after("6")
        assert "winogrande" in await after(*["right"] * 9)
        assert "winogrande" not in await after(*["left"] * 9)
        text = await after("shift+up")
        assert "baseline" in text
        assert "v_lowrank" in await after("J", "J")
        assert "answers furthest" in await after("]")
        assert "v_lowrank" in await after("end")


async def test_cells_fill_as_the_run_goes(scoring: Path, following: Following) -> None:
    from kvbench.engine.journal import EVENTS
    from kvbench.record import events as ev

    app = following(scoring)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("5")
        app.query_one(MethodTable).selected = "v_lowrank"
        await pilot.pause()
        assert any("10 of 25 not measured" in line for line in lines(app))
        told = list(events())
        (scoring / EVENTS).write_bytes(b"".join(map(ev.encode, told[: round(len(told) * 0.6)])))
        app._look()
        app._reading._live_figures._kept = {}  # its rest is over
        app._draw()
        await pilot.pause()
        assert not any("10 of 25 not measured" in line for line in lines(app))


async def test_figures_are_not_computed_while_another_plot_is_shown(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def figures(state: RunState) -> Mapping[str, Any]:
        calls.append(1)
        return {}

    monkeypatch.setattr(live, "figures", figures)
    app = Dashboard(finished, live=False)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("1", "2", "3", "4")
        assert not calls
        await pilot.press("5", "d")
        await pilot.pause()
        assert calls
        assert any("kvbench run --evals needle" in line for line in lines(app))
        await pilot.press("6")
        await pilot.pause()
        assert any("kvbench run --evals tasks" in line for line in lines(app))


async def test_an_evaluator_that_this_machine_lacks_is_told(tmp_path: Path, made_up: None, monkeypatch: pytest.MonkeyPatch) -> None:
    told = made_up_scores.spec()
    monkeypatch.setattr(made_up_scores, "spec", lambda: replace(told, evaluators=(EvaluatorSpec("nowhere"), *told.evaluators)))
    app = Dashboard(made_up_scores.write(tmp_path / "run"), live=False)
    async with app.run_test(size=(160, 48)) as pilot:
        await pilot.press("6", "l")
        await pilot.pause()
        assert any("figures cannot be computed: unknown evaluator 'nowhere'" in line for line in lines(app))
        assert any("accuracy, % of the questions" in line for line in lines(app))


async def test_a_broken_evaluator_does_not_end_the_dashboard(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MadeUpNeedle", "MadeUpLayers"):
        monkeypatch.setattr(f"made_up_scores.{name}.figures", lambda *_: [Grid("g", "t", "m", ["r"], [], [[]])])
    app = Dashboard(scored, live=False)
    async with app.run_test(size=(160, 48)) as pilot:
        await pilot.press("5", "l")
        await pilot.pause()
        assert sum("figures of needle cannot be shown" in line for line in lines(app)) == 2  # in the panel and in the log
