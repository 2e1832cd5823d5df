"""Sweeps: from axes to rows, points and back to tables; what cannot be swept is refused with the nearest that can."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sessions import loaded_of, opened, told_by
from stub_fixtures import stubbed  # noqa: F401
from test_evaluators import made_up

from kvbench import sweeps
from kvbench.cli import main
from kvbench.cli.question import spec_of, sweep_of
from kvbench.engine.plan import plan
from kvbench.errors import UsageError
from kvbench.evaluators.base import Measured, Summary
from kvbench.evaluators.perplexity import Perplexity
from kvbench.figures import Grid, Table
from kvbench.spec import MethodSpec, RunSpec

FLAGS: dict[str, Any] = {"method": (), "over": (), "ablation": None, "methods": None}


def of(methods: str, *over: str) -> sweeps.Sweep:
    return sweeps.of_methods([MethodSpec.parse(m) for m in methods.split()], sweeps.parse_axes(over))


def numbers(axis: str, count: int) -> str:
    return f"{axis}={','.join(str(i + 1) for i in range(count))}"


def asked(**flags: Any) -> RunSpec:
    return sweep_of({**FLAGS, **flags})


def test_every_combination_is_a_row() -> None:
    found = of("v_lowrank", "rank=32,48", "bits=4,8")
    assert [s.spec.label for s in found.settings] == [f"v_lowrank:rank={r},bits={b}" for r in (32, 48) for b in (4, 8)]
    assert found.settings[1].at == {"rank": 32, "bits": 8}
    assert [s.method for s in of("kivi:group=64 turboquant", "bits=2,4").settings] == ["kivi:group=64"] * 2 + ["turboquant"] * 2


def test_a_plus_is_what_stores_the_tokens() -> None:
    found = of("snapkv+int4", "compression_ratio=0.25", "+group=32,64")
    assert [s.spec.label for s in found.settings] == [f"snapkv:compression_ratio=0.25+int4:group={g}" for g in (32, 64)]


def test_lengths_and_batches_are_points_of_every_row() -> None:
    spec = asked(method=("kivi",), over=("bits=2,4", "context=256,512", "batch=1,8"))
    assert [m.label for m in spec.methods] == ["baseline", "random", "kivi:bits=2", "kivi:bits=4"]
    assert spec.context == 512
    assert {e.name: e.options.get("context") for e in spec.evaluators} == dict.fromkeys(("perplexity", "speed", "memory"), "512+256")
    assert {e.name: e.options.get("batch") for e in spec.evaluators} == {"perplexity": None, "speed": "1+8", "memory": "1+8"}
    assert spec.sweep is not None
    assert (spec.sweep.contexts, spec.sweep.batches, spec.sweep.axes) == ((256, 512), (1, 8), (("bits", (2, 4)),))
    plan(spec)


def test_the_specification_remembers_the_sweep_and_older_ones_still_load() -> None:
    spec = asked(method=("kivi",), over=("bits=2,4", "symmetric=true,false"), methods="snapkv")
    assert RunSpec.from_plain(json.loads(json.dumps(spec.to_plain()))) == spec
    assert [m.label for m in spec.methods][:3] == ["baseline", "random", "snapkv"]
    plain = {key: value for key, value in spec.to_plain().items() if key != "sweep"}
    older = RunSpec.from_plain(plain)
    assert older.sweep is None
    assert older.digest == spec.digest


def test_a_budget_is_an_axis_too() -> None:
    spec = asked(method=("kivi",), over=("group=32,64",), budget="4x,8x")
    assert spec.sweep is not None
    assert spec.sweep.axes[-1] == ("budget", ("4x", "8x"))
    assert {row.label: row.at for row in spec.sweep.rows}["kivi:group=64@8x"] == (64, "8x")
    assert len(spec.sweep.rows) == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"method": ("v_lowrank",), "over": ("rnak=32",)}, "did you mean rank"),
        ({"method": ("snapkv+int4",), "over": ("k_bits=2,4",)}, r"did you mean \+k_bits"),
        ({"method": ("snapkv",), "over": ("+k_bits=2,4",)}, r"unknown parameter of method snapkv: '\+k_bits'"),
        ({"method": ("kivi", "int4"), "over": ("bits=2,4",)}, "parameter of method int4: 'bits'; did you mean [kv]_bits"),
        ({"method": ("kiwi",), "over": ("bits=2",)}, "did you mean kivi"),
        ({"method": ("kivi:bits=2",), "over": ("bits=2,4",)}, "fixes bits"),
        ({"method": ("turboquant:3",), "over": ("bits=2,4",)}, "fixes bits"),
        ({"method": ("kivi", "kivi"), "over": ("bits=2,4",)}, "kivi twice"),
        ({"method": ("kivi",), "over": ("bits=2", "bits=4")}, "axis 'bits' is given twice"),
        ({"method": ("kivi",), "over": ("bits=2,2",)}, "names 2 twice"),
        ({"method": ("kivi",), "over": ("bits=",)}, "empty value"),
        ({"method": ("kivi",), "over": ("bits=2,,4",)}, "empty value"),
        ({"method": ("kivi",), "over": ("2,4",)}, "is not PARAMETER=VALUE"),
        ({"method": ("kivi",), "over": ("context=0,4",)}, "no whole number above 0"),
        ({"method": ("kivi",), "over": ("batch=1.5",)}, "no whole number above 0"),
        ({"method": ("kivi",)}, "needs an axis"),
        ({"over": ("bits=2",)}, "needs a method"),
        ({"method": ("v_lowrank",), "over": (numbers("rank", 21), "bits=0,4", numbers("context", 10))}, "420 rows"),
        ({"method": ("kivi",), "over": ("context=256,512",), "context": 512}, "--context is what"),
        ({"method": ("kivi",), "over": ("batch=1,8",), "evals": "perplexity"}, "no evaluator of this run"),
        ({"method": ("kivi",), "over": ("batch=1,8",), "evals": "speed:batch=2"}, "fixes batch"),
        ({"method": ("kivi",), "ablation": "bits"}, "names its own methods"),
        ({"ablation": "bit"}, "did you mean bits"),
        ({"ablation": "rank", "over": ("bits=2",)}, "unknown axis of ablation rank"),
        ({"ablation": "bits", "over": ("bits=2,5",)}, "bits=5: no method"),
        ({"ablation": "kv", "over": ("compressed=queries",)}, "compressed=queries: no method"),
        ({"ablation": "kv", "over": ("bits=16",)}, "twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked(**flags)


@pytest.mark.parametrize(("over", "said"), [("bits=two", "bits=two is not int"), ("bits=5", "bits=5; it must be")])
def test_values_of_the_wrong_kind_or_range_are_refused_before_the_run(over: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(asked(method=("kivi",), over=(over,)))


@pytest.mark.parametrize("preset", ["smollm2", "llama8b"])
@pytest.mark.parametrize("name", sweeps.ABLATIONS)
def test_each_ablation_can_be_run(name: str, preset: str) -> None:
    """Every method, parameter and value of it exists and fits models with heads of 64 and of 128."""
    made = plan(asked(ablation=name, preset=preset))
    assert made.spec.sweep is not None
    assert made.spec.sweep.ablation == name
    assert {row.label for row in made.spec.sweep.rows} | {"baseline", "random"} == set(made.methods)


def test_ranks_are_shares_of_the_models_heads_and_can_be_given() -> None:
    assert [asked(ablation="rank", preset=p).sweep.axes for p in ("smollm2", "llama8b")] == [  # type: ignore[union-attr]
        (("rank", (8, 16, 32, 48)),),
        (("rank", (16, 32, 64, 96)),),
    ]
    assert asked(ablation="basis", over=("rank=4",)).sweep.axes == (("basis", ("pca", "random")), ("rank", (4,)))  # type: ignore[union-attr]


# --- several prompt lengths ------------------------------------------------------------------------------------------


def test_one_length_plans_and_reads_as_ever_and_several_are_paired() -> None:
    spec = RunSpec(samples=4, batch_size=2, context=512)
    assert len(Perplexity().units(spec, ["baseline"])) == 2
    assert len(Perplexity(context="512+256").units(spec, ["baseline"])) == 4
    plain = {"baseline": made_up(1, 0.0), "method": made_up(2, 0.08)}
    short = {"baseline": made_up(3, 0.0), "method": made_up(4, 0.2)}
    both = {label: {f"context=256/{k}": d for k, d in short[label].items()} | plain[label] for label in plain}
    found, own, other = (Perplexity(context="512+256").summarise(r, "baseline")["method"] for r in (both, plain, short))
    assert found.fields == own.fields
    assert [m for m in found.measured if not m.point] == list(own.measured)
    assert [replace(m, point="") for m in found.measured if m.point == "context=256"] == list(other.measured)
    assert {len(m.samples) for m in found.measured if m.metric == "perplexity"} == {len(plain["method"])}


@pytest.mark.parametrize(("context", "said"), [("512+1024", "beyond the run's --context 512"), ("256+256", "twice")])
def test_lengths_that_a_run_does_not_have_are_refused(context: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Perplexity(context=context).check(RunSpec(context=512))


@pytest.mark.parametrize("protocol", ["prefill", "streaming"])
def test_a_shorter_prompt_is_the_end_of_the_longer_one(tiny_model: Any, protocol: str) -> None:
    """As a run of that length on the last tokens of the same windows, to the last digit."""
    long = scored(tiny_model, protocol, 48, "48+24", TOKENS)
    short = scored(tiny_model, protocol, 24, "", TOKENS[:, 24:])
    plain = scored(tiny_model, protocol, 48, "", TOKENS)
    for label in ("baseline", "knorm"):
        assert {k: v for k, v in long[label].items() if "/" not in k} == plain[label]
        assert {k.removeprefix("context=24/"): v for k, v in long[label].items() if "/" in k} == short[label]
    assert "kept" not in long["baseline"]["0"]
    assert len({data["kept"] for data in long["knorm"].values()}) == len(long["knorm"]) == 4
    assert long["knorm"]["0"]["keys_held"] == 2 * long["knorm"]["context=24/0"]["keys_held"] > 0


TOKENS = torch.randint(96, (2, 56), generator=torch.Generator().manual_seed(0))


def scored(tiny_model: Any, protocol: str, context: int, lengths: str, tokens: torch.Tensor) -> dict[str, dict[str, Any]]:
    from kvbench.methods.base import expand, resolve

    spec = RunSpec(methods=expand(["knorm"]), samples=2, context=context, continuation=8, protocol=protocol)  # type: ignore[arg-type]
    methods = {m.label: resolve(m, spec) for m in spec.methods if m.label != "random"}
    session = opened(loaded_of(tiny_model("llama", torch.float64)), spec, methods, tokens=tokens)
    told = told_by(Perplexity(context=lengths), session)
    return {label: {key: {**data, "seconds": None} for key, data in of.items()} for label, of in told.records.items()}


# --- what a sweep shows ----------------------------------------------------------------------------------------------


def summaries(spec: RunSpec) -> dict[str, dict[str, Summary]]:
    """Figures that say where they stand: the rank, then the length, and the batch in times."""
    found: dict[str, dict[str, Summary]] = {"perplexity": {}, "speed": {}}
    for label in [m.label for m in spec.methods]:
        rank = int(MethodSpec.parse(label).options.get("rank", 64))
        quality, times = [], []
        for context in (512, 256):
            loss = (64 - rank) / 100 + context / 10_000
            samples = {str(i): 2.0 + i / 10 + loss * (1 + (i - 1) / 100) for i in range(3)}
            point = "" if context == spec.context else f"context={context}"
            quality.append(Measured("perplexity", math.exp(2.1 + loss), "1", "paired", "lower", point, samples=samples, scale="log"))
            quality += [Measured("kl_mean", loss, "nats", "paired", "lower", point)] if label != "baseline" else []
            times += [Measured("tpot_s", b / 1000, "seconds", "noisy", "lower", f"batch={b},context={context}") for b in (1, 8)]
        found["perplexity"][label] = Summary({}, quality)
        found["speed"][label] = Summary({}, times)
    return found


def test_figures_stand_under_their_axes_sorted_and_beside_the_baseline() -> None:
    spec = asked(method=("v_lowrank",), over=("rank=32,8,16", "context=256,512", "batch=8,1"), evals="perplexity,speed")
    quality, times, *grids = sweeps.figures(spec, summaries(spec))
    assert isinstance(quality, Table)
    assert quality.headings[:3] == ["method", "rank", "context"]
    assert [row[:3] for row in quality.rows] == [
        ["baseline", "–", "256"], ["baseline", "–", "512"],
        *(["v_lowrank", str(rank), str(context)] for rank in (8, 16, 32) for context in (256, 512)),
    ]  # fmt: skip
    at = quality.headings.index("ΔPPL % [95 %]")
    assert quality.rows[2][at].startswith(f"+{100 * math.expm1(0.56):.2f} [")
    assert isinstance(times, Table)
    assert times.headings[:4] == ["method", "rank", "context", "batch"]
    assert len(times.rows) == 4 * 2 * 2
    assert [row[-1] for row in times.rows[:4]] == ["1.0", "8.0", "1.0", "8.0"]
    assert {(g.name, g.row_name, g.column_name) for g in grids if isinstance(g, Grid)} >= {("kl_mean", "rank", "context")}
    kl = next(g for g in grids if g.name == "kl_mean")
    assert isinstance(kl, Grid)
    assert (kl.method, kl.rows, kl.columns, kl.good) == ("v_lowrank", ["8", "16", "32"], ["256", "512"], "low")
    assert kl.values[0] == [pytest.approx(0.5856), pytest.approx(0.6112)]
    assert (kl.low, kl.high) == (pytest.approx(0.3456), pytest.approx(0.6112))


def test_the_change_is_the_evaluators_own() -> None:
    spec = asked(method=("kivi",), over=("bits=2",), evals="perplexity")
    records = {"baseline": made_up(1, 0.0), "kivi:bits=2": made_up(2, 0.08)}
    found = Perplexity().summarise(records, "baseline")
    (table,) = sweeps.figures(spec, {"perplexity": found})
    assert isinstance(table, Table)
    fields = found["kivi:bits=2"].fields
    shown = table.rows[-1][table.headings.index("ΔPPL % [95 %]")]
    assert shown == f"{fields['ppl_delta_pct']:+.2f} [{fields['delta_low']:+.2f}, {fields['delta_high']:+.2f}]"


def test_two_axes_of_a_method_are_a_heat_map_and_what_is_not_there_yet_is_empty() -> None:
    spec = asked(ablation="kv", evals="perplexity")
    kl = {"int4:k_bits=2,v_bits=16": 0.5, "int4:k_bits=4,v_bits=16": 0.25, "int4:k_bits=16,v_bits=2": 0.125, "kivi:k_bits=2,v_bits=16": 1.0}
    found = {"perplexity": {m: Summary({}, [Measured("kl_mean", v, "nats", "paired", "lower")]) for m, v in kl.items()}}
    table, grid = sweeps.figures(spec, found)  # kivi has one value so far: nothing to map
    assert isinstance(table, Table)
    assert [row for row in table.rows if row[0] == "int4"] == [
        ["int4", "keys", "2", "0.5000"], ["int4", "keys", "4", "0.2500"], ["int4", "values", "2", "0.1250"],
    ]  # fmt: skip
    assert isinstance(grid, Grid)
    assert (grid.method, grid.rows, grid.columns, grid.values) == ("int4", ["keys", "values"], ["2", "4"], [[0.5, 0.25], [0.125, None]])


def test_a_run_that_sweeps_nothing_shows_nothing() -> None:
    assert sweeps.figures(spec_of({"methods": "kivi"}), {}) == []


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_sweep_is_one_run_that_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, stubbed: None) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    args = ["sweep", "--model", "stub", "--method", "knorm", "--method", "snapkv", "--over", "compression_ratio=0.25,0.5"]
    assert main([*args, "--evals", "counting:ms=1", "--samples", "2", "--name", "mine"]) == 0
    out = capsys.readouterr().out
    assert "\n  compression_ratio=0.25" in out  # a long label is broken between its parts
    assert "sweep: Settings by compression_ratio" in out
    assert [path.name for path in (tmp_path / "bench_results").iterdir()] == ["mine"]
    for command in ("sweep", "run"):
        assert main([command, "--resume", "mine"]) == 0
        again = capsys.readouterr()
        assert again.out == out
        assert "nothing is left to do" in again.err
    assert main(["show", "mine"]) == 0
    assert capsys.readouterr().out == out
    assert main(["sweep", "--resume", "mine", "--method", "knorm"]) == 2
    assert "--method cannot change" in capsys.readouterr().err
    spec = RunSpec.from_plain(json.loads(Path("bench_results/mine/spec.json").read_text()))
    assert spec.sweep is not None
    assert [row.label for row in spec.sweep.rows] == [f"{m}:compression_ratio={r}" for m in ("knorm", "snapkv") for r in (0.25, 0.5)]
