"""Size against quality as an inline SVG: how many times smaller each method is, and how far it moves the model's answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from kvbench.formats import TIMES, fixed, plain_number
from kvbench.metrics import factors
from kvbench.metrics import front as pareto
from kvbench.metrics.front import Point

WIDTH, HEIGHT = 860, 400
LEFT, RIGHT, TOP, BOTTOM = 78, 30, 18, 52
LETTER = 6.6
"""Width of a letter, about."""
_STEPS = (1, 2, 5)


# Colours stand in the style sheet; those written here are for programs that draw the SVG without it, on any ground.
_GRID = 'class="grid" stroke="#8893a8" stroke-opacity="0.5"'
_DIM = 'class="dim" fill="#77829a"'


def scatter(points: Sequence[Point]) -> str:
    """A figure; every point says its name and values when it is pointed at, those that none dominates also beside it."""
    x, y = _Axis([p.factor for p in points], LEFT, WIDTH - RIGHT), _Axis([p.kl for p in points], HEIGHT - BOTTOM, TOP)
    front = frontier(points)
    title = escape(factors.titled("compression factor", points[0].of))
    label = f"KL divergence to the baseline against {title}, {len(points)} methods"
    inner = "\n".join([*_ticks(x, y, title), _line(front, x, y), *(_dot(p, p in front, x, y) for p in points), *_names(front, x, y)])
    caption = (
        "Lower and further right is better. The line joins methods that are shown to lose less than any smaller one on it; controls are"
        " not on it. Bars are 95 % intervals over samples. Both axes are logarithmic."
    )
    return (
        f'<figure>\n<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" role="img" aria-label="{label}">\n{inner}\n</svg>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


def frontier(points: Sequence[Point]) -> list[Point]:
    """The front from left to right."""
    return pareto.frontier(points)[::-1]


class _Axis:
    """A logarithmic axis between two pixels, a little wider than its values."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = math.log10(min(values)), math.log10(max(values))
        room = max(0.06 * (high - low), 0.03)
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    @property
    def least(self) -> float:
        return float(10**self.low)

    @property
    def most(self) -> float:
        return float(10**self.high)

    def __call__(self, value: float) -> float:
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        """Round values within the axis: 1, 2 and 5 of each decade, decades alone where there are many."""
        steps = _STEPS if self.high - self.low < 3 else (1,)
        for decade in range(math.floor(self.low), math.ceil(self.high) + 1):
            yield from (v for step in steps if self.low <= math.log10(v := step * 10.0**decade) <= self.high)


def _ticks(x: _Axis, y: _Axis, title: str) -> Iterator[str]:
    for value in x.ticks():
        at = f"{x(value):.1f}"
        yield f'<line {_GRID} x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield f'<text {_DIM} x="{at}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{plain_number(value)}{TIMES}</text>'
    for value in y.ticks():
        at = f"{y(value):.1f}"
        yield f'<line {_GRID} x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
        yield f'<text {_DIM} x="{LEFT - 8}" y="{float(at) + 4:.1f}" text-anchor="end">{plain_number(value)}</text>'
    yield f'<text {_DIM} x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{title}</text>'
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield f'<text {_DIM} x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">KL to the baseline, nats</text>'


def _dot(point: Point, is_best: bool, x: _Axis, y: _Axis) -> str:
    title = escape(f"{point.label}: {fixed(point.factor, 2)}{TIMES}, KL {fixed(point.kl, 4)}")
    name, radius, opacity = ("dot best", 5, 1) if is_best else ("dot", 4, 0.55)
    at = f'cx="{x(point.factor):.1f}" cy="{y(point.kl):.1f}" r="{radius}"'
    circle = f'<circle class="{name}" {at} fill="#4b7be5" fill-opacity="{opacity}"><title>{title}</title></circle>'
    return _bar(point, x, y) + circle


def _bar(point: Point, x: _Axis, y: _Axis) -> str:
    """The interval of KL, as far as the axis shows it."""
    if point.low is None or point.high is None:
        return ""
    at, (low, high) = x(point.factor), (y(min(max(bound, y.least), y.most)) for bound in (point.low, point.high))
    ends = f'x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"'
    return f'<line class="bar" stroke="#4b7be5" stroke-opacity="0.35" {ends}/>'


def _line(front: Sequence[Point], x: _Axis, y: _Axis) -> str:
    path = " ".join(f"{x(p.factor):.1f},{y(p.kl):.1f}" for p in front)
    return f'<polyline class="front" fill="none" stroke="#4b7be5" points="{path}"/>'


def _names(front: Sequence[Point], x: _Axis, y: _Axis) -> Iterator[str]:
    """Names below and right of the best, where the line leaves room, or left of them at the edge; each below the one before."""
    last = -math.inf
    for point in sorted(front, key=lambda p: y(p.kl)):
        last = max(y(point.kl) + 16, last + 13)
        at, fits = x(point.factor), x(point.factor) + 8 + LETTER * len(point.label) <= WIDTH
        place = f'x="{at + 8:.1f}"' if fits else f'x="{at - 8:.1f}" text-anchor="end"'
        yield f'<text {place} y="{last:.1f}" fill="#77829a">{escape(point.label)}</text>'
