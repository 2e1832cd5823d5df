"""Memory over time: the device's by NVML where there is one, and the worker's resident memory."""

from __future__ import annotations

from itertools import pairwise

from rich.style import Style

from kvbench.figures.axes import Scale
from kvbench.formats import GIB, MIB, duration, plain_number, size
from kvbench.tui.canvas import Canvas
from kvbench.tui.frame import Frame, framed
from kvbench.tui.panel_facts import memory_series
from kvbench.tui.plots.scene import Scene, say, too_small

Series = list[tuple[float, float]]


def draw_memory(canvas: Canvas, scene: Scene) -> None:
    """One or two filled lines with their peaks."""
    series = memory_series(scene.state)
    main, name = (series.gpu, "GPU in use (NVML)") if series.gpu else (series.resident, "worker, resident")
    if too_small(canvas) or not main:
        say(canvas, scene, "no memory readings yet")
        return
    both = main + (series.resident if series.gpu else [])
    top = max(v for _, v in both)
    unit, unit_name = (GIB, "GiB") if top >= 4 * GIB else (MIB, "MiB")
    end = max(both[-1][0], main[-1][0])
    frame = framed(
        canvas, Scale(main[0][0], max(end, main[0][0] + 1.0)), Scale(0.0, top / unit * 1.12), scene.palette,
        x_title="elapsed", y_title=unit_name, x_label=duration, y_label=plain_number,
    )  # fmt: skip
    _fill(frame, [(t, v / unit) for t, v in _peaks(main, frame.width * 2)], scene.palette.ink("primary"), scene.palette.line)
    legend = [("━ " + name, scene.palette.ink("primary"), main)]
    if series.gpu and series.resident:
        frame.path([(t, v / unit) for t, v in _peaks(series.resident, frame.width * 2)], scene.palette.ink("accent"))
        legend.append(("━ worker, resident", scene.palette.ink("accent"), series.resident))
    _legend(canvas, legend, series.gpu_total, scene)


def _fill(frame: Frame, points: Series, line: Style, ground: Style) -> None:
    """A line over a field of sparse dots, one a cell."""
    dots = [frame.dot(t, v) for t, v in points]
    for (x0, y0), (x1, y1) in pairwise(dots):
        for x in range(x0 + x0 % 2, x1, 2):
            top = round(y0 + (y1 - y0) * (x - x0) / (x1 - x0)) // 4 + 1
            for row in range(top, frame.top + frame.height):
                frame.canvas.dot(x, row * 4 + 2, ground)
    frame.path(points, line)


def _peaks(series: Series, columns: int) -> Series:
    """At most one reading a column of dots: its highest, so that no peak is lost."""
    first, span = series[0][0], max(series[-1][0] - series[0][0], 1e-9)
    highest: dict[int, tuple[float, float]] = {}
    for at, value in series:
        column = int((at - first) / span * columns)
        if column not in highest or value > highest[column][1]:
            highest[column] = (at, value)
    return list(highest.values())


def _legend(canvas: Canvas, entries: list[tuple[str, Style, Series]], total: int | None, scene: Scene) -> None:
    """Names with the value now and the peak, along the top, as many as fit."""
    x = 6
    for name, style, series in entries:
        figures = f" {size(series[-1][1])} now, {size(max(v for _, v in series))} peak"
        if x + len(name) + len(figures) > canvas.width:
            return
        canvas.text(x, 0, name, style)
        canvas.text(x + len(name), 0, figures, scene.palette.dim)
        x += len(name) + len(figures) + 3
    if total is not None and x + 16 < canvas.width:
        canvas.text(x, 0, f"of {size(total)}", scene.palette.dim)
