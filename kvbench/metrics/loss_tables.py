"""Tables and heat maps of what was lost of keys and values, from the records of ``reconstruction``; pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvbench.figures import Figure, Grid, Table
from kvbench.formats import NONE, TIMES, fixed, size
from kvbench.metrics import losses
from kvbench.metrics.losses import SIDE_NAMES, SIDES, THRESHOLDS, Point, Side

MOST_COLUMNS = 16
"""Heads of both sides that a heat map shows apart; beyond, their means."""
Records = Sequence[Mapping[str, Any]]
Ladders = Mapping[tuple[str, Side], Sequence[Point]]
"""(what is turned, side) → its settings."""


def figures(
    found: Mapping[str, Records], rungs: Records, ladders: Mapping[str, Any], baseline: str | None, broken: Mapping[str, str]
) -> list[Figure]:
    """Everything that the records so far can show.

    Args:
        found: Method → its records. rungs: Records of the sweep's settings.
        ladders: Name → ``title`` and ``sides`` of what is turned. baseline: Its label; it has no heat map.
        broken: Settings of the sweep that could not be tried → why.
    """
    read = {label: of for label, of in found.items() if of and "k" in of[0]}
    points = _points(rungs, ladders)
    tables = [_by_method(found), _boundaries(points, read), _sweep(points, broken), _budgets(found)]
    grids = [_heat(label, of) for label, of in read.items() if label != baseline]
    return [*(table for table in tables if table.rows), *grids]


_ALL_NOTE = "all tokens: one that is not held counts as zeros (cosine 0, relative error 1); held: over the tokens held"


def _by_method(found: Mapping[str, Records]) -> Table:
    headings = ["method", "held %"]
    for over in ("all", "held"):
        headings += [f"{name} {what} {over}" for name in SIDE_NAMES.values() for what in ("cos", "rel")]
    headings += [*(f"{name} worst layer" for name in SIDE_NAMES.values()), *(f"{name} {TIMES}" for name in SIDE_NAMES.values())]
    unread = {label: of[0]["unread"] for label, of in found.items() if of and "unread" in of[0]}
    return Table(
        "methods",
        "What is read back of K and V, mean over layers and KV heads",
        headings,
        [[label, *_cells(of)] for label, of in found.items() if of],
        notes=(_ALL_NOTE, "K after RoPE; × is the side's baseline bytes over its stored bytes", *(f"{k}: {v}" for k, v in unread.items())),
        factors=True,
    )


def _cells(records: Records) -> list[str]:
    if "unread" in records[0]:
        return [NONE] * 11 + [_times(losses.factor(records, side)) for side in SIDES]
    found = {(side, over): losses.means(records, side, over) for over in ("all", "held") for side in SIDES}
    cells = [fixed(100 * losses.held_share(records), 1)]
    for means in found.values():
        cells += [NONE, NONE] if means is None else [fixed(means.loss.cosine, 4), fixed(means.loss.relative, 4)]
    for side in SIDES:
        means = found[side, "held"]
        cells.append(NONE if means is None else f"{fixed(means.worst_cosine, 4)} (layer {means.worst_layer})")
    return [*cells, *(_times(losses.factor(records, side)) for side in SIDES)]


def _times(value: float | None) -> str:
    return NONE if value is None else f"{fixed(value, 2)}{TIMES}"


def _points(rungs: Records, ladders: Mapping[str, Any]) -> dict[tuple[str, Side], list[Point]]:
    """The sweep's settings, in the order in which they were tried."""
    steps: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for data in rungs:
        steps.setdefault((data["ladder"], data["step"]), []).append(data)
    found: dict[tuple[str, Side], list[Point]] = {}
    for ladder, about in ladders.items():
        for (name, step), of in steps.items():
            for side in about["sides"] if name == ladder else ():
                means, factor = losses.means(of, side, "all"), losses.factor(of, side)
                if means is not None and factor is not None:
                    found.setdefault((about["title"], side), []).append(Point(str(step), factor, means))
    return found


def _sweep(ladders: Ladders, broken: Mapping[str, str]) -> Table:
    rows = [
        [title, SIDE_NAMES[side], p.step, _times(p.factor), fixed(p.means.loss.cosine, 4), fixed(p.means.loss.relative, 4),
         fixed(p.means.worst_cosine, 4), str(p.means.worst_layer)]
        for (title, side), points in ladders.items() for p in points
    ]  # fmt: skip
    headings = ["turned", "side", "value", f"side {TIMES}", "cos", "rel", "worst layer's cos", "worst layer"]
    turned = "ranks: PCA of calibration text for each layer and KV head; bits: asymmetric, groups of 32"
    notes = (turned, *(f"{label} could not be tried: {why}" for label, why in broken.items()))
    return Table("sweep", "Ranks and bits: what each leaves of K and of V", headings, rows, left=2, notes=notes, factors=True)


def _boundaries(ladders: Ladders, read: Mapping[str, Records]) -> Table:
    """The failure boundary of every ladder, and of the run's own methods."""
    own = {("methods of this run", side): _methods_as_points(read, side) for side in SIDES}
    rows = [
        [title, SIDE_NAMES[side], "mean" if where == "mean" else "worst", *(_edge(points, t, where) for t in THRESHOLDS)]
        for (title, side), points in {**ladders, **own}.items() if points for where in ("mean", "worst")
    ]  # fmt: skip
    notes = (
        "the side's own compression and the value or method that gives it, of those tried; mean over layers, or in the worst layer",
        "≥: the last that was tried still keeps it; methods of this run: cosine over all tokens, an evicted one counting 0",
    )
    title = "Failure boundary: the largest compression of K, and of V, that keeps a cosine"
    return Table(
        "boundaries",
        title,
        ["turned", "side", "layers", *(f"cos ≥ {fixed(t, 2)}" for t in THRESHOLDS)],
        rows,
        left=3,
        notes=notes,
        factors=True,
    )


def _methods_as_points(read: Mapping[str, Records], side: Side) -> list[Point]:
    found = ((label, losses.factor(of, side), losses.means(of, side, "all")) for label, of in read.items())
    return [Point(label, factor, means) for label, factor, means in found if factor is not None and means is not None]


def _edge(points: Sequence[Point], threshold: float, where: str) -> str:
    edge = losses.boundary(points, threshold, where)
    return NONE if edge is None else f"{'≥ ' if edge.is_last else ''}{_times(edge.factor)} ({edge.step})"


def _budgets(found: Mapping[str, Records]) -> Table:
    """Bytes and tokens by layer of the methods whose layers or heads differ."""
    uneven = {label: of for label, of in found.items() if of and _is_uneven(of)}
    layers = range(max((len(of[0]["layer_bytes"]) for of in uneven.values()), default=0))
    return Table(
        "budgets",
        "Layer budgets, where layers or heads differ: stored bytes, and tokens held by a KV head",
        ["layer", *uneven],
        [[str(layer), *(_budget(of, layer) for of in uneven.values())] for layer in layers],
        notes=(
            "mean over windows; tokens are the mean over heads, and (fewest–most) where heads differ",
            "what two layers store together is counted in the upper one",
        ),
    )


def _is_uneven(records: Records) -> bool:
    sizes = {round(value) for record in records for value in record["layer_bytes"]}
    counts = {count for record in records for layer in record.get("held", ()) for count in layer}
    return max(sizes) > 1.001 * min(sizes) or len(counts) > 1


def _budget(records: Records, layer: int) -> str:
    stored = size(sum(record["layer_bytes"][layer] for record in records) / len(records))
    if "held" not in records[0]:
        return stored
    heads = [sum(column) / len(records) for column in zip(*(record["held"][layer] for record in records), strict=True)]
    spread = "" if max(heads) == min(heads) else f" ({min(heads):.0f}–{max(heads):.0f})"
    return f"{stored} · {sum(heads) / len(heads):.0f}{spread}"


def _heat(label: str, records: Records) -> Grid:
    """Cosine by layer and head, or by layer where there are many heads."""
    sides = [losses.cells(records, side, "all") for side in SIDES]
    heads = len(sides[0][0])
    apart = 2 * heads <= MOST_COLUMNS
    columns = [f"{name} {h}" for name in SIDE_NAMES.values() for h in range(heads)] if apart else list(SIDE_NAMES.values())
    rows = [[cell for row in pair for cell in (row if apart else [losses.mean(row)])] for pair in zip(*sides, strict=True)]
    return Grid(
        "cosine",
        f"Cosine of what {label} reads to what it was given",
        label,
        [str(layer) for layer in range(len(rows))],
        columns,
        [[None if loss is None else loss.cosine for loss in row] for row in rows],
        row_name="layer",
        column_name="side and KV head" if apart else "side",
        notes=(_ALL_NOTE,),
    )
