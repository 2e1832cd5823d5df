"""Size against quality as it is drawn: how many times smaller each method is, and how far it moves the model's answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvbench.figures import html
from kvbench.figures.axes import Scale, padded
from kvbench.figures.colours import method_colours
from kvbench.formats import plain_number
from kvbench.metrics import factors
from kvbench.metrics.front import Point, frontier

LEFT, RIGHT, TOP, BOTTOM, WIDTH = 78, 830, 18, 348, 860
"""Pixels of the axes' ends, and of the whole."""
LETTER = 6.6
"""Width of a letter, about."""


@dataclass(frozen=True)
class Axis:
    """A scale between two pixels; a value beyond its ends is drawn there."""

    scale: Scale
    start: int
    end: int

    def __call__(self, value: float) -> float:
        return self.start + self.scale.fraction(value) * (self.end - self.start)

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Pixel and label."""
        return [(self(value), plain_number(value)) for value in self.scale.ticks(count)]


def scatter(points: Sequence[Point]) -> str:
    """An SVG of the points on logarithmic axes; each says its name and values when it is pointed at, those of the front also beside it."""
    x = Axis(padded([p.factor for p in points], log=True), LEFT, RIGHT)
    y = Axis(padded([p.kl for p in points], log=True), BOTTOM, TOP)
    front = frontier(points)[::-1]
    day, night = (method_colours([p.label for p in points], dark=dark) for dark in (False, True))
    title, names = factors.titled("compression factor", points[0].of), _names(front, x, y)
    return html.page("report/scatter.svg", points=points, front=front, names=names, x=x, y=y, day=day, night=night, title=title)


def _names(front: Sequence[Point], x: Axis, y: Axis) -> Iterator[tuple[float, float, str, str]]:
    """Names below and right of the best, where the line leaves room, or left of them at the edge; each below the one before."""
    last = -math.inf
    for point in sorted(front, key=lambda p: y(p.kl)):
        last = max(y(point.kl) + 16, last + 13)
        at, fits = x(point.factor), x(point.factor) + 8 + LETTER * len(point.label) <= WIDTH
        yield (at + 8, last, point.label, "start") if fits else (at - 8, last, point.label, "end")
