"""The dashboard as its users meet it: keys in, text out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_run import FAILING, FIGURES, OUT_OF_MEMORY, events

from kvbench.engine.journal import EVENTS, RunFolder
from kvbench.errors import ResultError
from kvbench.record import events as ev
from kvbench.tui import screenshot
from kvbench.tui.app import Dashboard
from kvbench.tui.panels import DetailsPanel, LogPanel, PlotPanel
from kvbench.tui.screens import ConfirmCancel, Help
from kvbench.tui.table import MethodTable

Following = Callable[[Path], Dashboard]


def lines(app: Dashboard) -> list[str]:
    """What the screen shows, as text."""
    return ["".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()]


def line_of(app: Dashboard, label: str) -> str:
    return next(line for line in lines(app) if line[3:].startswith(label))


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 48), (200, 50), (40, 12), (300, 90)])
async def test_every_size_shows_the_run_and_its_reference(finished: Path, size: tuple[int, int]) -> None:
    app = Dashboard(finished, live=False)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        shown = lines(app)
        assert len(shown) == size[1]
        assert all(len(line) == size[0] for line in shown)
        assert "kvbench" in shown[0]
        assert line_of(app, "baseline")
        for key in ("2", "3", "4", "5", "6", "d", "l", "z", "1"):
            await pilot.press(key)
            assert all(len(line) == size[0] for line in lines(app))


async def test_rows_show_the_summary_s_figures_failures_stars_and_what_was_unmasked(finished: Path) -> None:
    from kvbench.record.summary import rows

    app = Dashboard(finished, live=False)
    async with app.run_test(size=(160, 48)) as pilot:
        await pilot.pause()
        row = next(r for r in rows(RunFolder(finished).state()) if r.label == "int4")
        shown = line_of(app, "int4")
        assert row.perplexity is not None
        assert row.delta_pct is not None
        assert row.kl is not None
        assert row.factor is not None
        for figure in (f"{row.perplexity:.2f}", f"{row.delta_pct:+.2f}", f"{row.kl:.4f}", f"{row.factor:.2f}"):
            assert figure in shown
        assert line_of(app, FAILING).startswith(" ✗ ")
        assert OUT_OF_MEMORY in line_of(app, FAILING)
        assert "★11.40" in line_of(app, "hybrid_12x")
        assert "⚠ masked" in line_of(app, "knorm")
        assert not any("★" in line_of(app, label) for label in ("random", "knorm"))


async def test_rows_follow_the_journal_while_it_grows(tmp_path: Path) -> None:
    told = list(events(failing=None))
    folder = tmp_path / "run"
    folder.mkdir()
    journal = folder / EVENTS
    app = Dashboard(folder, live=True, clock=lambda: told[0].at)
    async with app.run_test(size=(120, 40)) as pilot:
        assert any("waiting for the run to start" in line for line in lines(app))
        first = next(i for i, e in enumerate(told) if isinstance(e, ev.RecordMade) and e.method == "int8")
        journal.write_bytes(b"".join(map(ev.encode, told[:first])))
        app._look()
        app._draw()
        await pilot.pause()
        assert "0.0002" not in line_of(app, "int8")
        with journal.open("ab") as file:
            line = ev.encode(told[first])
            file.write(line[:40])
            file.flush()
            app._look()
            file.write(line[40:])
            file.flush()
            app._look()
        app._draw()
        await pilot.pause()
        assert "0.0002" in line_of(app, "int8")


async def test_baseline_stays_on_top_in_every_order(finished: Path) -> None:
    app = Dashboard(finished, live=False)
    async with app.run_test(size=(200, 50)) as pilot:
        await pilot.pause()
        table = app.query_one(MethodTable)
        for _ in range(9):
            await pilot.press("s")
            assert table.lines[0].label == "baseline"
            assert table.lines[-1].label == FAILING
        table.sort_by("factor")
        assert table.lines[1].label == "hybrid_12x"
        await pilot.press("r")
        assert table.lines[-2].label == "hybrid_12x"


async def test_the_selection_can_be_moved_to_every_row_and_stays_in_sight(finished: Path) -> None:
    app = Dashboard(finished, live=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        await pilot.press("home")
        seen = []
        for _ in FIGURES:
            table = app.query_one(MethodTable)
            assert table.selected is not None
            assert line_of(app, table.selected)
            seen.append(table.selected)
            await pilot.press("down")
            await pilot.pause()
        assert seen == list(FIGURES)


async def test_plots_are_chosen_by_number_and_by_tab(finished: Path) -> None:
    app = Dashboard(finished, live=False)
    async with app.run_test(size=(160, 48)) as pilot:
        await pilot.pause()
        for key, word in (
            ("2", "perplexity over the samples"),
            ("3", "resident"),
            ("4", "tokens/s while decoding"),
            ("tab", "kvbench run --evals needle"),
            ("tab", "Greedy decoding at batch 1"),
            ("tab", "KL to baseline"),
        ):
            await pilot.press(key)
            await pilot.pause()
            assert any(word in line for line in lines(app))
        await pilot.press("x")
        await pilot.pause()
        assert any("compression factor" in line for line in lines(app))


async def test_details_itemise_bytes_audit_and_parameters(finished: Path) -> None:
    app = Dashboard(finished, live=False)
    async with app.run_test(size=(200, 60)) as pilot:
        app.query_one(MethodTable).selected = "kivi:bits=4"
        await pilot.pause()
        text = "\n".join(lines(app))
        for word in ("ledger equals storages", "residual window", "30 layers", "bits", "group"):
            assert word in text


async def test_panels_are_shown_and_hidden(finished: Path) -> None:
    app = Dashboard(finished, live=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        plot, details, log = (app.query_one(kind) for kind in (PlotPanel, DetailsPanel, LogPanel))
        assert (plot.display, details.display, log.display) == (True, False, False)
        await pilot.press("d")
        assert (plot.display, details.display, log.display) == (False, True, False)
        await pilot.press("l")
        assert (plot.display, details.display, log.display) == (False, False, True)
        await pilot.pause()
        assert any("finished in" in line for line in lines(app))
        await pilot.resize_terminal(160, 48)
        await pilot.pause()
        assert plot.display
        assert details.display


async def test_leaving_a_run_under_way_detaches(midway: Path, following: Following) -> None:
    app = following(midway)
    async with app.run_test() as pilot:
        await pilot.press("q")
    assert app.return_value == "detached"


async def test_an_ended_run_says_so_stays_and_is_left_as_finished(finished: Path) -> None:
    app = Dashboard(finished, live=True)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        assert any("Finished in" in line and "q leaves" in line for line in lines(app))
        await pilot.press("q")
    assert app.return_value == "finished"


async def test_ctrl_c_asks_before_it_cancels(midway: Path, following: Following) -> None:
    app = following(midway)
    async with app.run_test() as pilot:
        for no in ("n", "escape", "ctrl+c", "enter"):
            await pilot.press("ctrl+c")
            await pilot.pause()
            assert isinstance(app.screen, ConfirmCancel)
            await pilot.press(no)
            await pilot.pause()
            assert not isinstance(app.screen, ConfirmCancel)
            assert app.is_running
        await pilot.press("ctrl+c")
        await pilot.pause()
        await pilot.press("y")
    assert app.return_value == "cancel"


async def test_ctrl_c_on_an_ended_run_leaves(finished: Path) -> None:
    app = Dashboard(finished, live=True)
    async with app.run_test() as pilot:
        await pilot.pause()
        await pilot.press("ctrl+c")
    assert app.return_value == "finished"


async def test_a_run_without_a_process_is_reported(midway: Path) -> None:
    app = Dashboard(midway, live=False)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        app._look()
        app._draw()
        await pilot.pause()
        assert any("process is gone" in line and "--resume smollm2-midway" in line for line in lines(app))


async def test_a_run_that_a_process_holds_is_not(midway: Path) -> None:
    import os

    lock = RunFolder(midway).acquire()
    try:
        app = Dashboard(midway, live=True)
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.pause()
            assert not any("process is gone" in line for line in lines(app))
            assert any("quiet for" in line for line in lines(app))
    finally:
        os.close(lock)


async def test_help_and_themes(finished: Path) -> None:
    app = Dashboard(finished, live=False)
    async with app.run_test(size=(120, 50)) as pilot:
        await pilot.pause()
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, Help)
        assert any("command palette" in line for line in lines(app))
        await pilot.press("escape")
        seen = {app.theme}
        for _ in range(2):
            await pilot.press("t")
            seen.add(app.theme)
        assert len(seen) == 3


async def test_every_theme_of_textual_can_be_worn(finished: Path) -> None:
    app = Dashboard(finished, live=False)
    async with app.run_test(size=(80, 24)) as pilot:
        for name in app.available_themes:
            app.theme = name
            await pilot.pause()
            assert line_of(app, "baseline")


async def test_the_command_palette_knows_our_commands(finished: Path) -> None:
    app = Dashboard(finished, live=False)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        given = {command.title: command.callback for command in app.get_system_commands(app.screen)}
        assert {"Plot: memory", "Plot: heat map", "Plot: scores", "Next figure", "Sort by KL", "Next theme", "Log", "Help"} <= set(given)
        for title in ("Plot: memory", "Next figure", "Previous figure", "Log"):
            await given[title]()
        assert (app.query_one(PlotPanel).plot, app.query_one(LogPanel).display) == ("memory", True)


async def test_a_replay_starts_empty_and_ends_with_the_result(finished: Path) -> None:
    app = Dashboard(finished, live=False)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        result = lines(app)[4:20]
        await pilot.press("p")
        app._look()
        app._draw()
        await pilot.pause()
        assert "replay" in lines(app)[0]
        assert not any("Finished in" in line for line in lines(app))
        await pilot.press("p")
        app._look()
        app._draw()
        await pilot.pause()
        assert lines(app)[4:20] == result
        await pilot.press("q")
    assert app.return_value == "finished"


async def test_a_broken_journal_is_told_and_does_not_end_the_app(midway: Path, following: Following) -> None:
    app = following(midway)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        with (midway / EVENTS).open("ab") as file:
            file.write(b"{broken\n")
        app._look()
        app._draw()
        await pilot.pause()
        assert any("cannot be read" in line for line in lines(app))


def test_the_screenshot_is_an_svg_of_the_run(finished: Path, tmp_path: Path) -> None:
    import xml.etree.ElementTree as ElementTree

    path = screenshot(finished, tmp_path / "shot.svg", (160, 48))
    root = ElementTree.parse(path).getroot()
    texts = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert root.tag.endswith("svg")
    assert "hybrid_12x" in texts
    assert not any(text != text.strip("\xa0") for text in texts)


def test_a_folder_without_a_journal_has_no_screenshot(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"holds no events\.jsonl"):
        screenshot(tmp_path, tmp_path / "shot.svg")
