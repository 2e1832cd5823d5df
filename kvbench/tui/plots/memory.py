"""Memory over time: the device's by NVML where there is one, and the worker's resident memory."""

from __future__ import annotations

from rich.style import Style

from kvbench.tui.axes import Frame, Scale, framed
from kvbench.tui.canvas import Canvas
from kvbench.tui.facts import memory_series
from kvbench.tui.format import GIB, MIB, duration, plain_number, size
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
    _fill(frame, [(t, v / unit) for t, v in main], scene.palette.ink("primary"), scene.palette.line)
    legend = [("━ " + name, scene.palette.ink("primary"), main)]
    if series.gpu and series.resident:
        frame.path([(t, v / unit) for t, v in series.resident], scene.palette.ink("accent"))
        legend.append(("━ worker, resident", scene.palette.ink("accent"), series.resident))
    _legend(canvas, legend, series.gpu_total, scene)


def _fill(frame: Frame, points: Series, line: Style, ground: Style) -> None:
    """A line over a field of sparse dots."""
    floor = (frame.top + frame.height) * 4 - 1
    dots = [frame.dot(t, v) for t, v in points]
    for (x0, y0), (x1, y1) in zip(dots, dots[1:], strict=False):
        for x in range(x0, x1):
            y = round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
            for row in range(y + (x + y) % 2, floor + 1):
                if (x + row) % 2 == 0 and row % 2 == 0:
                    frame.canvas.dot(x, row, ground)
    frame.path(points, line)


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
