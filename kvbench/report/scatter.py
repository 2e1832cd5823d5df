"""Size against quality as it is drawn: how many times smaller each method is, and how far it moves the model's answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvbench.figures.axes import Scale, padded
from kvbench.figures.colours import method_colours
from kvbench.formats import TIMES, fixed, plain_number
from kvbench.metrics import factors
from kvbench.metrics.front import Point, frontier

WIDTH, HEIGHT = 860, 400
LEFT, RIGHT, TOP, BOTTOM = 78, WIDTH - 30, 18, HEIGHT - 52
LETTER = 6.6
"""Width of a letter, about."""


@dataclass(frozen=True)
class Mark:
    """A method's place, in pixels: the bar is its interval as far as the axis shows it, ``name`` is where its name stands."""

    x: float
    y: float
    bar: tuple[float, float] | None
    told: str
    day: str
    night: str
    is_best: bool


@dataclass(frozen=True)
class Plot:
    """What the template draws: ticks as (pixel, label), marks, the front from left to right, and names as (x, y, text, side)."""

    title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    marks: Sequence[Mark]
    front: Sequence[tuple[float, float]]
    names: Sequence[tuple[float, float, str, str]]
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class _Axis:
    """A scale between two pixels."""

    scale: Scale
    start: int
    end: int

    def __call__(self, value: float) -> float:
        return self.start + self.scale.fraction(value) * (self.end - self.start)

    def ticks(self, count: int, unit: str = "") -> list[tuple[float, str]]:
        return [(self(value), f"{plain_number(value)}{unit}") for value in self.scale.ticks(count)]


def scatter(points: Sequence[Point]) -> Plot:
    """The points on logarithmic axes; every one says its name and values when it is pointed at, those of the front also beside it."""
    x = _Axis(padded([p.factor for p in points], log=True), LEFT, RIGHT)
    y = _Axis(padded([p.kl for p in points], log=True), BOTTOM, TOP)
    front = frontier(points)[::-1]
    day, night = (method_colours([p.label for p in points], dark=dark) for dark in (False, True))
    marks = [_mark(p, x, y, day[p.label], night[p.label], p in front) for p in points]
    path = [(x(p.factor), y(p.kl)) for p in front]
    title = factors.titled("compression factor", points[0].of)
    return Plot(title, x.ticks(9, TIMES), y.ticks(8), marks, path, list(_names(front, x, y)))


def _mark(point: Point, x: _Axis, y: _Axis, day: str, night: str, is_best: bool) -> Mark:
    bar = None if point.low is None or point.high is None else (y(point.low), y(point.high))
    told = f"{point.label}: {fixed(point.factor, 2)}{TIMES}, KL {fixed(point.kl, 4)}"
    return Mark(x(point.factor), y(point.kl), bar, told, day, night, is_best)


def _names(front: Sequence[Point], x: _Axis, y: _Axis) -> Iterator[tuple[float, float, str, str]]:
    """Names below and right of the best, where the line leaves room, or left of them at the edge; each below the one before."""
    last = -math.inf
    for point in sorted(front, key=lambda p: y(p.kl)):
        last = max(y(point.kl) + 16, last + 13)
        at, fits = x(point.factor), x(point.factor) + 8 + LETTER * len(point.label) <= WIDTH
        yield (at + 8, last, point.label, "start") if fits else (at - 8, last, point.label, "end")
