"""Slab-wise scores against plain log-softmax in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from making import draw
from torch import Tensor

from kvbench.instruments import scoring
from kvbench.instruments.scoring import TokenScores, score

pytestmark = pytest.mark.fast
B, S, WIDTH, VOCABULARY = 2, 37, 24, 211


class Head:
    """What scoring asks of a runner: a model with a head, and logits."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.weight = draw(VOCABULARY, WIDTH, seed=1).to(dtype)
        self.model = SimpleNamespace(get_output_embeddings=lambda: self)
        self.calls = 0

    def logits(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return hidden @ self.weight.T


class Given:
    """Logits as they are given, for extreme ones."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=torch.empty(VOCABULARY, 1)))

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


TARGETS = torch.randint(VOCABULARY, (B, S), generator=torch.Generator().manual_seed(3))


def states(apart: float, dtype: torch.dtype) -> dict[str, Tensor]:
    base = draw(B, S, WIDTH, seed=2)
    return {"baseline": base.to(dtype), "method": (base + apart * draw(B, S, WIDTH, seed=4)).to(dtype)}


def plain(logits: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """The definitions, in float64."""
    q, p = logits.double().log_softmax(-1), reference.double().log_softmax(-1)
    confidence, choice = q.exp().max(-1)
    return {
        "nll": -q.gather(-1, TARGETS[..., None])[..., 0],
        "kl": (p.exp() * (p - q)).sum(-1),
        "agrees": choice == reference.argmax(-1),
        "confidence": confidence,
        "correct": choice == TARGETS,
    }


def check(found: TokenScores, wanted: dict[str, Tensor], *, rtol: float, atol: float) -> None:
    for name in ("nll", "kl", "confidence"):
        torch.testing.assert_close(getattr(found, name).double(), wanted[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("agrees", "correct"):
        assert torch.equal(getattr(found, name), wanted[name]), name


@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-3, 0.1, 3.0])
def test_scores_are_those_of_log_softmax(apart: float) -> None:
    head, hidden = Head(torch.float64), states(apart, torch.float64)
    found = score(head, hidden, TARGETS, "baseline")
    reference = hidden["baseline"] @ head.weight.T
    for label, h in hidden.items():
        check(found[label], plain(h @ head.weight.T, reference), rtol=1e-11, atol=1e-14)


def test_float32_keeps_a_small_divergence_accurate_to_its_own_size() -> None:
    """Two log-softmaxes subtracted in float32 would be wrong by 1e-7, which is all there is."""
    head, hidden = Head(torch.float32), states(3e-4, torch.float32)
    found = score(head, hidden, TARGETS, "baseline")["method"]
    logits = {label: h @ head.weight.T for label, h in hidden.items()}
    wanted = plain(logits["method"], logits["baseline"])
    assert float(wanted["kl"].max()) < 1e-5
    torch.testing.assert_close(found.kl.double(), wanted["kl"], rtol=0.02, atol=1e-9)
    torch.testing.assert_close(found.nll.double(), wanted["nll"], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_baseline_does_not_diverge_from_itself(dtype: torch.dtype) -> None:
    hidden = states(0.1, dtype)
    found = score(Head(dtype), {**hidden, "again": hidden["baseline"].clone()}, TARGETS, "baseline")
    assert bool((found["baseline"].kl == 0).all())
    assert bool((found["again"].kl == 0).all())
    assert bool(found["baseline"].agrees.all())


@pytest.mark.parametrize("rows", [1, 5, B * S])
def test_the_size_of_a_slab_changes_no_number(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = states(0.1, torch.float64)
    whole = score(Head(torch.float64), hidden, TARGETS, "baseline")
    monkeypatch.setattr(scoring, "SLAB_BYTES", rows * VOCABULARY * 4)
    head = Head(torch.float64)
    cut = score(head, hidden, TARGETS, "baseline")
    assert head.calls == 2 * -(-B * S // rows)
    for label in hidden:
        for name in ("nll", "kl", "confidence"):
            torch.testing.assert_close(getattr(cut[label], name), getattr(whole[label], name), rtol=1e-12, atol=1e-15)
        assert torch.equal(cut[label].agrees, whole[label].agrees)


@pytest.mark.parametrize("size", [30.0, 300.0, 3e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(size: float, dtype: torch.dtype) -> None:
    """Distributions far apart, where the exponential of a difference of logits overflows."""
    base, other = (draw(B, S, VOCABULARY, seed=5) * size).to(dtype), (draw(B, S, VOCABULARY, seed=6) * size).to(dtype)
    found = score(Given(), {"baseline": base, "method": other}, TARGETS, "baseline")["method"]
    near = 1e-12 if dtype == torch.float64 else 1e-5
    check(found, plain(other, base), rtol=near, atol=near * size)


def test_a_choice_the_baseline_rules_out_may_overflow_without_a_negative_divergence() -> None:
    base = draw(B, S, VOCABULARY, seed=5).float()
    base[..., 7] = -300.0
    other = base.clone()
    other[..., 7] = -150.0  # e^150 overflows float32, and still nothing is likely to come of it
    found = score(Given(), {"baseline": base, "method": other}, TARGETS, "baseline")["method"]
    assert bool((found.kl >= 0).all())
    check(found, plain(other, base), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("whose", ["method", "baseline"])
def test_a_broken_logit_is_that_rows_failure(bad: float, whose: str) -> None:
    logits = {"baseline": draw(B, S, VOCABULARY, seed=5), "method": draw(B, S, VOCABULARY, seed=6)}
    logits[whose][0, 4, 9] = bad
    found = score(Given(), logits, TARGETS, "baseline")
    with pytest.raises(FloatingPointError, match=f"1 of {S} token scores are NaN or infinite"):
        found[whose].record(0)
    assert found[whose].record(1)["tokens"] == S


def test_a_record_sums_what_its_row_holds() -> None:
    found = score(Head(torch.float64), states(0.5, torch.float64), TARGETS, "baseline")["method"]
    record: dict[str, Any] = found.record(1)
    assert record["nll"] == pytest.approx(float(found.nll[1].sum()), rel=1e-12)
    assert record["kl"] == pytest.approx(float(found.kl[1].sum()), rel=1e-12)
    assert record["kl_max"] == float(found.kl[1].max())
    assert record["agree"] == int(found.agrees[1].sum())
    assert sum(record["kl_hist"].values()) == sum(record["ece_count"]) == S
    assert sum(record["ece_confidence"]) == pytest.approx(float(found.confidence[1].sum()), rel=1e-12)
    assert sum(record["ece_correct"]) == int(found.correct[1].sum())


def test_calibration_bins_are_fifteenths_and_certainty_is_in_the_last() -> None:
    confidence = torch.tensor([0.0, 0.06, 0.07, 0.5, 0.95, 1.0], dtype=torch.float64)
    correct = torch.tensor([False, True, True, False, True, True])
    nothing = torch.zeros(1, 6, dtype=torch.float64)
    record = TokenScores(nothing, nothing, correct[None], confidence[None], correct[None]).record(0)
    assert record["ece_count"] == [2, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert record["ece_correct"] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert record["ece_confidence"] == pytest.approx([0.06, 0.07, 0, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0, 1.95])


def test_a_vocabulary_larger_than_a_slab_is_scored_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SLAB_BYTES", 1)
    head = Head(torch.float64)
    score(head, states(0.1, torch.float64), TARGETS, "baseline")
    assert head.calls == 2 * B * S


@pytest.mark.parametrize("label", ["baseline", "method"])
def test_logits_of_sixteen_bits_are_scored_in_thirty_two(label: str) -> None:
    logits = {"baseline": draw(B, S, VOCABULARY, seed=5).bfloat16(), "method": draw(B, S, VOCABULARY, seed=6).bfloat16()}
    found = score(Given(), logits, TARGETS, "baseline")[label]
    assert found.nll.dtype == torch.float32
    check(found, plain(logits[label], logits["baseline"]), rtol=1e-5, atol=1e-5)
