"""What ``speed`` times, what it says of it, and the pieces it is made of: decoders, random fills, the roofline, energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sessions import loaded_of, opened, told_by
from telling import Told

from kvbench.caches.needs import Needs
from kvbench.cli import main
from kvbench.cli.speed import timing_of
from kvbench.compare.align import Pair, _unlike
from kvbench.errors import UsageError
from kvbench.evaluators.base import Measured
from kvbench.evaluators.speed import Speed
from kvbench.instruments import roofline
from kvbench.instruments.decode import decoder_for
from kvbench.instruments.filled_cache import DrawnObserver, random_cache
from kvbench.instruments.out_of_memory import OverBudget, attempt, is_out_of_memory
from kvbench.instruments.roofline import Roofline, copy_bandwidth, folded_difference, weight_bytes
from kvbench.instruments.session import Session
from kvbench.instruments.stopwatch import Stopwatch
from kvbench.instruments.tiny import FAMILIES, make_tiny_config, make_tiny_model
from kvbench.methods.base import expand
from kvbench.methods.random import Random
from kvbench.metrics.points import Point
from kvbench.models import telemetry
from kvbench.models.shape import shape_of
from kvbench.record.results import build as build_result
from kvbench.record.state import RunState
from kvbench.record.summary import rows
from kvbench.spec import EvaluatorSpec, ModelSpec, RunSpec, presets

LABELS = ["baseline", "random", "int8", "kivi:bits=2,group=16,residual=16", "snapkv:window=8", "v_lowrank:8"]


def session_of(labels: list[str], dtype: torch.dtype = torch.float64, context: int = 64, family: str = "qwen2", **spec: Any) -> Session:
    """A session on a tiny model without a corpus, as a worker opens it."""
    run = RunSpec(
        model=ModelSpec(id="tiny", config=make_tiny_config(family), random_weights=True, device="cpu"),
        methods=expand(labels, None, "prefill"), evaluators=(EvaluatorSpec("speed"),), context=context, continuation=1, samples=1, **spec,
    )  # fmt: skip
    session = opened(loaded_of(make_tiny_model(family, dtype)), run)
    return replace(session, runner=session.calibrated(session.methods, lambda *_: None))


@pytest.fixture(autouse=True)
def a_short_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bandwidth that rooflines ask for is taken of little memory."""
    monkeypatch.setattr(roofline, "CPU_BUFFER", 1 << 20)


def timed(session: Session, **params: Any) -> tuple[Speed, Told]:
    evaluator = Speed(**{"steps": 3, "repeats": 1, "warmup": 0, **params})
    return evaluator, told_by(evaluator, session)


# -- decoders


def greedy(session: Session, label: str, prompt: Any, count: int) -> torch.Tensor:
    """Tokens one by one through the model's forward and its head."""
    runner, cache, found = session.runner, session.runner.compress(session.methods[label], prompt), []
    token = runner.logits(prompt.last_hidden).argmax(-1)
    for _ in range(count):
        hidden = runner.forward(token[:, None], cache)
        token = runner.logits(hidden[:, -1]).argmax(-1)
        found.append(token)
    return torch.stack(found, 1)


@pytest.mark.parametrize(
    ("label", "path"), [*((label, "reference") for label in LABELS), *((label, "fused") for label in LABELS if "kivi" not in label)]
)
def test_both_paths_give_the_greedy_tokens(label: str, path: Any) -> None:
    session = session_of([label], context=40)
    prompt = session.runner.prefill(session.prompt(2, 40), session.needs([label]))
    wanted = greedy(session, label, prompt, 24)
    decoder = decoder_for(session, label, session.runner.compress(session.methods[label], prompt), path=path, reserve=24)
    decoder.start(prompt.last_hidden)
    first, rest = decoder.steps(5), decoder.steps(19)
    assert decoder.read_path == path
    assert torch.equal(torch.cat((first, rest), 1), wanted)
    assert torch.equal(decoder.tokens, wanted)
    decoder.close()


def test_a_decoder_starts_from_tokens_states_or_logits_alike() -> None:
    session = session_of(["baseline"])
    prompt = session.runner.prefill(session.prompt(2, 30), Needs())
    logits = session.runner.logits(prompt.last_hidden)
    found = []
    for first in (prompt.last_hidden, logits, logits.argmax(-1)):
        cache = session.runner.compress(session.methods["baseline"], prompt)
        decoder = decoder_for(session, "baseline", cache, path="reference", reserve=4)
        decoder.start(first)
        found.append(decoder.steps(4))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_auto_says_why_it_takes_the_reference_path_and_fused_fails_with_the_reason() -> None:
    label = "minicache"
    session = session_of([label])
    prompt = session.runner.prefill(session.prompt(1, 30), session.needs([label]))
    cache = session.runner.compress(session.methods[label], prompt)
    decoder = decoder_for(session, label, cache, path="auto", reserve=4)
    assert (decoder.read_path, decoder.reason) == ("reference", "no GPU")
    with pytest.raises(UsageError, match=r"'minicache' cannot be read by the fused path: .+") as caught:
        decoder_for(session, label, cache, path="fused", reserve=4)
    assert "path=auto" in str(caught.value.hint)
    decoder.start(prompt.last_hidden)
    assert decoder.steps(2).shape == (1, 2)


def test_a_cache_that_the_fused_path_took_in_vain_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvbench.fused import decoder as fused
    from kvbench.fused.layer import NotFused

    session = session_of(["baseline"])
    prompt = session.runner.prefill(session.prompt(1, 30), Needs())
    wanted = greedy(session, "baseline", prompt, 3)

    def refuse(*_: Any, **__: Any) -> None:
        raise NotFused("no decoder for this model")

    monkeypatch.setattr(fused, "FusedDecoder", refuse)
    monkeypatch.setattr("kvbench.instruments.decode.unfit", lambda session: "")
    make: Callable[[], Any] = lambda: session.runner.compress(session.methods["baseline"], prompt)  # noqa: E731
    decoder = decoder_for(session, "baseline", make(), path="auto", reserve=3, again=make)
    decoder.start(prompt.last_hidden)
    assert (decoder.read_path, decoder.reason) == ("reference", "no decoder for this model")
    assert torch.equal(decoder.steps(3), wanted)


# -- the roofline


def preset_model(name: str) -> Any:
    """A preset's model without storage."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = presets.to_spec(presets.read_preset(name), {})["model"].config
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)


def test_the_roofline_of_qwen7b_is_what_its_shapes_say() -> None:
    weights = weight_bytes(preset_model("qwen7b"))
    assert weights is not None
    assert weights / 1e9 == pytest.approx(14.14, abs=0.005)
    shape = shape_of(presets.to_spec(presets.read_preset("qwen7b"), {})["model"].config)
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2
    assert per_token == 56 * 1024
    wanted = {(1, 2048): 302, (1, 32768): 268, (8, 32768): 1179, (32, 8192): 4717, (32, 32768): 1853}
    found = {(b, c): Roofline(weights, b * c * per_token, 4.3e12).limit(b) for b, c in wanted}
    assert {key: round(value) for key, value in found.items()} == pytest.approx(wanted, abs=1)


def test_a_tied_head_counts_once_and_the_embedding_of_an_untied_one_not() -> None:
    model = make_tiny_model("llama", torch.float32)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    whole = sum(p.nbytes for p in model.parameters())
    assert weight_bytes(model) == whole - embedding.nbytes
    model.get_output_embeddings().weight = embedding
    assert head.nbytes == embedding.nbytes
    assert weight_bytes(model) == whole - embedding.nbytes == sum(p.nbytes for p in model.parameters())
    model.config.num_local_experts = 8
    assert weight_bytes(model) is None


@pytest.mark.parametrize("path", ["reference", "fused"])
def test_folded_projections_are_read_in_place_of_the_modules_own(path: Any) -> None:
    session = session_of(["v_lowrank:8"], family="llama")
    watch = Stopwatch(session, Point(1, 40), path, 2)
    plain, folded = (watch.decode(label, watch.drawn(label), None)["weight_bytes"] for label in ("baseline", "v_lowrank:8"))
    heads, kv_heads, dim, hidden, rank, layers = 6, 2, 16, 96, 8, 4
    assert plain == weight_bytes(session.loaded.model)
    assert folded - plain == -8 * layers * hidden * (heads + kv_heads) * (dim - rank)
    assert folded_difference([]) == 0


def test_bandwidth_counts_bytes_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_second(device: torch.device, action: Callable[[], None]) -> tuple[None, float]:
        action()
        return None, 1.0

    monkeypatch.setattr(roofline, "timed", one_second)
    assert copy_bandwidth(torch.device("cpu")) == 2 * roofline.CPU_BUFFER


# -- random fills


FILLED = ("baseline", "int4", "h2o", "expected_attention", "adakv", "pyramidkv", "minicache", "palu", "kvzap:window=8")


@pytest.mark.parametrize(
    ("label", "family"), [*((label, FAMILIES[i % 2]) for i, label in enumerate(FILLED)), ("h2o", "llama"), ("adakv", "llama")]
)
def test_a_random_fill_stores_what_a_prefill_would(label: str, family: str) -> None:
    session = session_of([label], torch.float32, family=family)
    method = session.methods[label]
    drawn = random_cache(session.runner, method, 2, 48, 0)
    prompt = session.runner.prefill(session.prompt(2, 48), session.needs([label]))
    real = session.runner.compress(method, prompt)
    assert drawn.get_seq_length() == 48
    if label not in ("minicache", "kvzap:window=8"):  # those store what the numbers themselves say
        assert drawn.ledger().items == real.ledger().items
    again = random_cache(session.runner, method, 2, 48, 0)
    for a, b in zip(drawn.layers, again.layers, strict=True):
        assert all(torch.equal(x.tensor, y.tensor) for x, y in zip(a.all_parts(), b.all_parts(), strict=True) if x.tensor.numel() == x.used)
    assert session.runner.forward(torch.zeros(2, 1, dtype=torch.long), drawn).isfinite().all()


def test_a_random_fill_observes_what_is_asked_for() -> None:
    session = session_of(["kvzap"], torch.float32)
    name = session.methods["kvzap"].needs.surrogate
    needs = Needs(window=8, attention=True, moments=(4,), hidden=True, surrogate=name)
    seen: list[Any] = []

    class Spy(Random):
        def layer(self, context: Any) -> Any:
            layer = super().layer(context)
            layer.needs = needs
            layer.compress = lambda prompt: seen.append(prompt)
            return layer

    random_cache(session.runner, Spy(), 2, 40, 1)
    observed = seen[0].observed
    assert isinstance(observed, DrawnObserver)
    assert (len(seen), seen[0].keys.shape, seen[0].values.shape) == (4, (2, 2, 40, 16), (2, 2, 40, 16))
    assert (observed.window.shape, observed.attention.shape, observed.hidden.shape) == ((2, 4, 8, 16), (2, 4, 40), (2, 40, 64))
    assert observed.surrogate(name[0]).shape == (2, 2, 40)
    assert [m.shape for m in observed.moments[0].mean_and_covariance()] == [(2, 4, 16), (2, 4, 16, 16)]
    assert observed.attention.min() >= 0
    assert not torch.equal(seen[0].keys, seen[1].keys)


def test_no_more_than_a_layer_is_dense_at_a_time() -> None:
    session = session_of(["int4"], torch.float32)
    seen: list[tuple[int, int]] = []
    cache = random_cache(session.runner, session.methods["int4"], 2, 64, 0, lambda held, dense: seen.append((held, dense)))
    each = [layer.ledger().allocated for layer in cache.layers]
    assert seen == [(sum(each[:i]), 2 * 2 * 2 * 64 * 16 * 4) for i in range(4)]


# -- what a run records


def test_records_hold_what_figures_need() -> None:
    session = session_of(LABELS, torch.float32)
    evaluator, told = timed(session, batch="1+2", context="40")
    assert set(told.records) == set(LABELS)
    for found in told.records.values():
        assert set(found) == {"batch=1,context=40/repeat=0", "batch=2,context=40/repeat=0"}
        for record in found.values():
            assert (record["read_path"], record["reason"], record["steps"], record["warmup"]) == ("reference", "no GPU", 3, False)
            assert record["energy_joules"] is record["allocator_bytes"] is record["flush_s"] is None
            assert min(record[key] for key in ("prefill_s", "compress_s", "decode_s", "weight_bytes", "bandwidth")) > 0
            read = record["weight_bytes"] + record["stored_bytes"]
            assert record["limit"] == pytest.approx(record["batch"] * record["bandwidth"] / read)
    assert len({r["bandwidth"] for of in told.records.values() for r in of.values()}) == 1
    summary = evaluator.summarise(told.records, "baseline")["int8"]
    record = told.records["int8"]["batch=1,context=40/repeat=0"]
    assert summary.fields["roofline_fraction"] == pytest.approx(3 / record["decode_s"] / record["limit"])
    assert summary.fields["read_paths"] == {"batch=1,context=40": "reference", "batch=2,context=40": "reference"}
    assert {"roofline_fraction", "roofline_tokens_per_s", "ttft_s"} <= {m.metric for m in summary.measured}
    assert {"joules_per_token", "capture_s"}.isdisjoint(m.metric for m in summary.measured)


def test_a_random_fill_has_no_first_token() -> None:
    evaluator, told = timed(session_of(["int8"], torch.float32), fill="random", path="fused")
    fields = evaluator.summarise(told.records, "baseline")["int8"].fields
    assert fields["read_path"] == "fused"
    assert {"ttft_s", "prefill_s", "compress_s"}.isdisjoint(fields)
    assert {"tokens_per_s", "capture_s", "prepare_s", "roofline_fraction"} <= set(fields)
    assert fields["other_read_path"] is None


def test_streaming_is_timed_too() -> None:
    session = session_of(["knorm"], torch.float32, protocol="streaming")
    _, told = timed(session)
    assert all(r["compress_s"] == 0 and r["prefill_s"] > 0 for of in told.records.values() for r in of.values())
    with pytest.raises(UsageError, match="fill=random"):
        Speed(fill="random").check(session.spec)


def test_a_point_that_runs_out_of_memory_says_so_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    session, tries = session_of(["int8"], torch.float32), []
    own = Stopwatch.compressed

    def compressed(self: Stopwatch, label: str, *prompt: Any) -> Any:
        tries.append((label, self.point.batch))
        if self.point.batch == 2 and label != "int8":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 60 GiB.\nMore")
        return own(self, label, *prompt)

    monkeypatch.setattr(Stopwatch, "compressed", compressed)
    evaluator, told = timed(session, batch="2+1", repeats=2)
    assert not told.failed
    assert tries.count(("baseline", 2)) == 1  # and not again in later repeats
    record = told.records["baseline"]["batch=2,context=64/repeat=0"]
    assert (record["out_of_memory"], record["reason"]) == (True, "CUDA out of memory. Tried to allocate 60 GiB.")
    assert set(told.records["baseline"]) == {"batch=2,context=64/repeat=0", *(f"batch=1,context=64/repeat={i}" for i in (0, 1))}
    found = evaluator.summarise(told.records, "baseline")
    assert "tokens_per_s" not in found["baseline"].fields  # its first point has none, and another point's is no stand-in
    assert found["baseline"].fields["out_of_memory"] == ["batch=2,context=64"]
    assert {m.point for m in found["baseline"].measured} == {"batch=1,context=64"}
    table = evaluator.figures(told.records, "baseline", {})[0]
    cells = {row[0]: row[1:] for row in table.rows}
    assert table.headings == ["method", "1×64", "2×64"]
    assert cells["baseline"][1] == "out of memory"
    assert cells["int8"][1] != "out of memory"


def test_a_prefill_that_does_not_fit_is_every_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    def prefilled(self: Stopwatch, *_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stopwatch, "prefilled", prefilled)
    evaluator, told = timed(session_of(["int8"], torch.float32))
    assert all(r["out_of_memory"] for of in told.records.values() for r in of.values())
    assert set(told.records) == {"baseline", "random", "int8"}
    (table,) = evaluator.figures(told.records, "baseline", {})
    assert [row[1] for row in table.rows] == ["out of memory"] * 3


def test_memory_that_runs_out_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
    session = session_of(["baseline"])

    def raising(error: Exception) -> Callable[[], None]:
        def action() -> None:
            raise error

        return action

    assert attempt(session, lambda: None) is None
    assert isinstance(attempt(session, raising(OverBudget("over"))), OverBudget)
    with pytest.raises(ValueError, match="other"):
        attempt(session, raising(ValueError("other")))


# -- what is shown


def record(decode: float, path: str = "fused", batch: int = 1, context: int = 64, **more: Any) -> dict[str, Any]:
    return {
        "batch": batch, "context": context, "warmup": False, "read_path": path, "reason": "", "prefill_s": 1.0, "compress_s": 0.5,
        "decode_s": decode, "steps": 10, "capture_s": 2.0, "prepare_s": 3.0, "flush_s": None, "stored_bytes": 2**20,
        "weight_bytes": 3 * 2**20, "bandwidth": 2.0**32, "limit": 100.0, "allocator_bytes": 2**21, "energy_joules": 50.0, **more,
    }  # fmt: skip


def shown(**paths: str) -> dict[str, dict[str, Any]]:
    return {label: {f"p/repeat={i}": record(d, path) for i, d in enumerate((0.2, 0.25, 0.5))} for label, path in paths.items()}


def test_another_read_path_is_said_and_forms_no_ratio() -> None:
    records = shown(baseline="fused", int8="fused", palu="reference")
    decode, beside = Speed().figures(records, "baseline", {})
    assert decode.headings == ["method", "tokens/s", "× baseline", "roofline %", "limit tokens/s", "J/token", "read path"]
    assert decode.rows[1] == ["int8", "40.0", "1.00×", "40.0", "100.0", "5.0000", "fused"]
    assert decode.rows[2] == ["palu", "40.0 (reference)", "–", "40.0", "100.0", "5.0000", "reference"]
    assert any("no ratio" in note for note in decode.notes)
    assert any("75.0%" in note for note in decode.notes)  # (50 - 20) / 40
    assert beside.rows[0][1:] == ["1500.0", "1000.0", "500.0", "3.00", "2.00", "1.00", "2.00"]
    found = Speed().summarise(records, "baseline")
    assert {label: s.fields["other_read_path"] for label, s in found.items()} == {"baseline": None, "int8": None, "palu": "reference"}
    assert {m.read_path for m in found["palu"].measured} == {""}
    assert {m.read_path for m in found["int8"].measured} == {"fused"}


def test_compare_sets_no_fused_time_against_a_reference_one() -> None:
    one, other = (Measured("tokens_per_s", 1.0, "tokens/s", "noisy", "higher", read_path=path) for path in ("", "fused"))
    assert _unlike(Pair("m", "tokens_per_s", "", one, other)) == "read path reference in A, fused in B"
    assert _unlike(Pair("m", "tokens_per_s", "", other, other)) is None


def test_the_report_and_the_table_say_it() -> None:
    from kvbench.report.overview import main_table

    spec = RunSpec(methods=expand(["palu"]), evaluators=(EvaluatorSpec("speed"),))
    state = _state(spec, shown(baseline="fused", random="fused", palu="reference"))
    (column,) = [i for i, heading in enumerate(main_table(rows(state)).headings) if heading.startswith("tokens")]
    assert [row[column] for row in main_table(rows(state)).rows] == ["40.0", "40.0", "40.0 (reference)"]
    assert build_result(state, "r")["results"][2]["other_read_path"] == "reference"


def _state(spec: RunSpec, records: dict[str, Any]) -> RunState:
    from kvbench.engine.journal import SCHEMA
    from kvbench.record import events as ev
    from kvbench.record.state import replay

    units = [{"id": "speed/0", "evaluator": "speed", "index": 0, "methods": list(records), "steps": 1}]
    told = [ev.RecordMade(2.0, "speed/0", "speed", label, key, data) for label, of in records.items() for key, data in of.items()]
    return replay([ev.RunStarted(1.0, spec.to_plain(), units, list(records), "0", SCHEMA), *told])


def test_energy_that_did_not_move_is_not_shown_and_coarse_readings_are_averaged() -> None:
    still = {"m": {f"p/repeat={i}": record(0.2, energy_joules=0.0) for i in range(3)}}
    assert "joules_per_token" not in Speed().summarise(still, None)["m"].fields
    coarse = {"m": {f"p/repeat={i}": record(0.2, energy_joules=joules) for i, joules in enumerate((0.0, 30.0, 0.0))}}
    assert Speed().summarise(coarse, None)["m"].fields["joules_per_token"] == pytest.approx(1.0)


# -- energy


def test_energy_is_the_sum_of_the_counters_of_torchs_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nvml:
        NVMLError = RuntimeError

        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
            return index

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
            if handle == 2:
                raise RuntimeError("not supported")
            return 1500 * (handle + 1)

    monkeypatch.setattr(telemetry, "_loaded", [Nvml()])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0,2")
    assert telemetry.energy_joules([0]) == 3.0
    assert telemetry.energy_joules([0, 1]) == 4.5
    assert telemetry.energy_joules([0, 2]) is None
    assert telemetry.energy_joules([]) is None


# -- the command


def test_the_command_asks_for_speed_alone() -> None:
    spec = timing_of(
        {"preset": "qwen7b", "random_weights": True, "methods": "int8", "batch": "1,8", "context": "2048,32768", "fill": "random"}
    )
    assert [e.label for e in spec.evaluators] == ["speed:batch=1+8,context=2048+32768,fill=random"]
    assert (spec.context, [m.label for m in spec.methods]) == (2048, ["baseline", "random", "int8"])
    found = timing_of({"preset": "qwen7b", "random_weights": True, "methods": "int8", "find_max": "batch", "context": "32768", "most": 64})
    assert [e.label for e in found.evaluators] == ["capacity:context=32768,find=batch,most=64"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch", "1,x"], "--batch 1,x is no list"),
        (["--most", "3"], "--most is of --find-max"),
        (["--find-max", "batch", "--batch", "3"], "--batch is what --find-max batch finds"),
        (["--find-max", "batch", "--context", "64,128"], "takes one --context"),
        (["--find-max", "batch", "--fill", "random"], "--fill is of a timing"),
        (["--steps", "0"], "steps=0"),
        (["--methods", "itn8"], "did you mean int8"),
    ],
)
def test_mistakes_are_one_line_and_a_hint(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["speed", *args]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "try: " in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "--preset", "qwen7b", "--random-weights", "--methods", "int4", "--batch", "1,8", "--dry-run"]) == 0
    assert "speed       12 units" in capsys.readouterr().out
