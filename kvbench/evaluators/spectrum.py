"""How many directions the model's keys and values use, by layer: what a low rank could keep, whatever the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.evaluators.base import BASELINE, Evaluator, Measured, MethodRecords, Summary, UnitContext, param
from kvbench.figures import Figure, Grid, Table
from kvbench.formats import fixed
from kvbench.metrics import recorded
from kvbench.metrics.points import batches, parse_list
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from kvbench.instruments.session import Session
    from kvbench.instruments.spectra import Spread

KEY = "spectrum"
SIDES = {"k_before_rope": "K pre-RoPE", "k": "K", "v": "V"}
SCOPES = {"heads": "one KV head", "joined": "all KV heads"}
SHARES = (90, 95, 99)


@dataclass(frozen=True)
class Spectrum(Evaluator):
    """Variance spread of K (before and after RoPE) and V, for each KV head and for all heads of a layer side by side.

    Eigenvalues of the covariance over the prompts of all windows together: the share of variance in the first ``ranks``
    components, how many hold 90, 95 and 99 %, the effective rank (Roy and Vetterli 2007) and the participation ratio.
    A property of the model and the text, not of a method: it is recorded with the baseline. With fewer tokens than channels
    nothing can use more directions than there are tokens; ``tokens`` in the record says how many there were. ``centred=false`` takes
    the second moment about zero, whose leading directions a basis without a mean keeps, as those of the low-rank methods here.
    """

    name: ClassVar[str] = "spectrum"
    title: ClassVar[str] = "variance spread and effective rank of K (before and after RoPE) and V by layer; of the model, not of a method"
    record: ClassVar[Any] = recorded.Spectrum
    needs_text: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = True
    samples: int = param(0, "windows looked at, the run's first; 0 is all of them", least=0)
    ranks: str = param("8+16+32+64", "components whose share of the variance is given, as 8+16+32")
    centred: bool = param(True, "about the mean (variance); otherwise about zero")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_list("ranks", self.ranks)

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        """One: the moments of all windows are added up, and are far larger than what is read off them."""
        return [Unit(f"{self.name}/0", self.name, 0, (BASELINE,), steps=1)]

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """Prefill the prompts one batch after the other, then decompose."""
        context.alone(BASELINE, partial(self._measure, session, context))

    def _measure(self, session: Session, context: UnitContext) -> None:
        spreads = self._spreads(session)
        ranks = parse_list("ranks", self.ranks)
        geometry = session.runner.geometry
        data: dict[str, Any] = {"tokens": next(iter(spreads.values()))[0].count, "ranks": ranks, "centred": self.centred}
        data |= {"kv_heads": geometry.kv_heads, "head_dim": geometry.head_dim}
        for side, layers in spreads.items():
            data[side] = {scope: _described(layers, scope, ranks, self.centred) for scope in SCOPES}
        context.record(BASELINE, KEY, data)

    def _spreads(self, session: Session) -> dict[str, list[Spread]]:
        """Side → moments by layer."""
        from kvbench.caches.needs import Needs
        from kvbench.instruments.spectra import Spread

        spec, rope = session.spec, session.runner.geometry.rope
        sides = [side for side in SIDES if rope is not None or side != "k_before_rope"]
        found = {side: [Spread(session.runner.geometry.kv_heads) for _ in range(session.runner.geometry.layers)] for side in sides}
        for index in range(batches(spec, self.samples)):
            prompt = session.runner.prefill(session.batch(index)[:, : spec.context], Needs())
            for layer, view in enumerate(prompt.views):
                found["k"][layer].add(view.keys)
                found["v"][layer].add(view.values)
                if rope is not None:
                    found["k_before_rope"][layer].add(rope.unrotate(view.keys, 0))
        return found

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {label: _summary(of[KEY]) for label, of in records.items() if KEY in of}

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        data = records.get(BASELINE, {}).get(KEY)
        if data is None:
            return []
        return [_shares(data), *(_by_layer(data, scope) for scope in SCOPES), *(_heat(data, scope) for scope in SCOPES)]


def _described(layers: Sequence[Spread], scope: str, ranks: Sequence[int], centred: bool) -> dict[str, Any]:
    """Name → ``[L][H]`` of each head, or ``[L][1]`` of all together."""
    from kvbench.instruments.fidelity import plain
    from kvbench.instruments.spectra import figures

    values = [spread.by_head(centred=centred) if scope == "heads" else spread.joined(centred=centred) for spread in layers]
    found = [figures(of, ranks) for of in values]
    return {name: [plain(of[name]) for of in found] for name in found[0]}


def _over(data: Mapping[str, Any], side: str, scope: str, name: str) -> list[float]:
    """Means over heads, by layer."""
    return [fmean(row) for row in data[side][scope][name]]


def _sides(data: Mapping[str, Any]) -> dict[str, str]:
    return {side: title for side, title in SIDES.items() if side in data}


def _summary(data: Mapping[str, Any]) -> Summary:
    fields = {
        f"spectrum_{side}_effective_rank{'' if scope == 'heads' else '_joined'}": fmean(_over(data, side, scope, "effective_rank"))
        for side in _sides(data) for scope in SCOPES
    }  # fmt: skip
    return Summary(fields, [Measured(name, value, "components", "exact", "neither") for name, value in fields.items()])


# Figures ------------------------------------------------------------------------------------


def _notes(data: Mapping[str, Any]) -> list[str]:
    about = "the mean (variance)" if data["centred"] else "zero"
    notes = [
        f"{data['tokens']:,} tokens, moments about {about}",
        "effective rank (erank): exp of the entropy of the eigenvalues' shares; participation ratio (PR): (Σ λ)² / Σ λ²",
    ]
    width = data["kv_heads"] * data["head_dim"]
    if data["tokens"] < 2 * width:
        notes.append(f"few tokens for {width} channels: ranks of all heads together are too low, use more --samples or --context")
    return notes


def _shares(data: Mapping[str, Any]) -> Table:
    """Share of the variance in the first components, mean over layers."""
    ranks = data["ranks"]
    rows = [
        [title, about, *(fixed(100 * fmean(_over(data, side, scope, f"share_{r}")), 1) for r in ranks),
         *(fixed(fmean(_over(data, side, scope, name)), 1) for name in ("effective_rank", "participation")),
         *(fixed(fmean(_over(data, side, scope, f"components_{share}")), 1) for share in SHARES)]
        for scope, about in SCOPES.items() for side, title in _sides(data).items()
    ]  # fmt: skip
    headings = ["side", "over", *(f"% in {r}" for r in ranks), "effective rank", "participation", *(f"for {share} %" for share in SHARES)]
    title = f"Variance spread of K and V, mean over layers ({data['head_dim']} channels a head, {data['kv_heads']} KV heads)"
    return Table("shares", title, headings, rows, left=2, notes=_notes(data))


def _by_layer(data: Mapping[str, Any], scope: str) -> Table:
    columns = {"effective_rank": "erank", "participation": "PR", **{f"components_{share}": f"{share} %" for share in SHARES}}
    found = [(f"{title} {head}", _over(data, side, scope, name)) for side, title in _sides(data).items() for name, head in columns.items()]
    rows = [[str(layer), *(fixed(values[layer], 1) for _, values in found)] for layer in range(len(found[0][1]))]
    title = f"Effective rank, participation ratio and components for a share of the variance: {SCOPES[scope]}"
    return Table(f"layers_{scope}", title, ["layer", *(head for head, _ in found)], rows, notes=_notes(data))


def _heat(data: Mapping[str, Any], scope: str) -> Grid:
    """Effective rank over the number of channels, by layer; heads apart where there is more than one."""
    width = data["head_dim"] * (1 if scope == "heads" else data["kv_heads"])
    sides = _sides(data)
    heads = len(data["k"][scope]["effective_rank"][0])
    columns = [f"{title} {h}" if heads > 1 else title for title in sides.values() for h in range(heads)]
    layers = range(len(data["k"][scope]["effective_rank"]))
    values = [[value / width for side in sides for value in data[side][scope]["effective_rank"][layer]] for layer in layers]
    title = f"Effective rank over channels, {SCOPES[scope]}: low can be compressed"
    return Grid(
        f"effective_rank_{scope}", title, BASELINE, [str(i) for i in layers], columns, values,
        row_name="layer", column_name="side and KV head" if heads > 1 else "side", good="low", notes=_notes(data),
    )  # fmt: skip
