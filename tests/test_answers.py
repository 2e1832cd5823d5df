"""Questions about a compressed prompt: every method together gives what each gives alone, token by token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kvbench.instruments.answers import Answer, Ask, ask_of, choose, generate, split_at
from kvbench.instruments.session import Session
from kvbench.instruments.tiny import make_tiny_config
from kvbench.methods.base import expand, resolve
from kvbench.models.weights import silent
from kvbench.spec import CorpusSpec, EvaluatorSpec, ModelSpec, RunSpec

LABELS = [
    "baseline",
    "snapkv:window=8",
    "kivi:bits=2,group=16,residual=16",
    "h2o",
    "adakv:window=8",
    "v_lowrank:rank=6",
    "minicache",
    "tova:decode=hold",
]
PROMPT = torch.randint(3, 128, (90,), generator=torch.Generator().manual_seed(3)).tolist()[6:]
OPTIONS = [[5, 9, 17], [11], [40, 41, 42, 43, 44, 45]]


@pytest.fixture(scope="module")
def session() -> Session:
    model = ModelSpec("tiny", "float64", cache_dtype="float64", device="cpu", random_weights=True, config=make_tiny_config("llama"))
    spec = RunSpec(model=model, methods=expand(LABELS), evaluators=(EvaluatorSpec("speed"),), corpus=CorpusSpec(), context=64, samples=1)
    return Session.open(spec, {m.label: resolve(m, spec) for m in spec.methods}, silent)


def guard(label: str, action: Any) -> bool:
    action()
    return True


class Alone:
    """One method by itself: a cache of its own for each walk, and one token at a time."""

    def __init__(self, session: Session, label: str, ask: Ask) -> None:
        self.runner, self.method, self.question = session.runner, session.methods[label], ask.question
        self.prompt = self.runner.prefill(torch.tensor([ask.context]), self.method.needs)

    def begin(self) -> torch.Tensor:
        """Read the question; log-probabilities after it."""
        self.cache = self.runner.compress(self.method, self.prompt)
        return self.read(self.question)[-1]

    def read(self, tokens: list[int]) -> torch.Tensor:
        """Log-probabilities after each of the tokens."""
        hidden = self.runner.stepwise(torch.tensor([tokens]), self.cache)[0]
        return self.runner.logits(hidden).log_softmax(-1)


@pytest.mark.parametrize("split", [len(PROMPT) - 1, 70], ids=["one token held back", "hidden question"])
def test_choices_of_all_methods_together_equal_each_alone_token_by_token(session: Session, split: int) -> None:
    ask = ask_of(PROMPT, split)
    found = choose(session, ask, OPTIONS, LABELS, guard)
    assert list(found) == LABELS
    for label in LABELS:
        own = Alone(session, label, ask)
        for option, log, greedy in zip(OPTIONS, found[label].loglikelihoods, found[label].greedy, strict=True):
            logs = torch.cat((own.begin()[None], own.read(option)[:-1]))
            assert log == pytest.approx(float(logs[range(len(option)), option].sum()), abs=1e-10)
            assert greedy == (logs.argmax(-1).tolist() == option)
    assert len({tuple(choice.loglikelihoods) for choice in found.values()}) == len(LABELS)
    assert all(found[label].stored_bytes < found[label].baseline_bytes for label in LABELS[1:6])


def test_options_of_one_token_read_the_compressed_cache(session: Session) -> None:
    found = choose(session, ask_of(PROMPT, None), [[5], [7]], LABELS, guard)
    assert found["kivi:bits=2,group=16,residual=16"].loglikelihoods != found["baseline"].loglikelihoods


def test_answers_of_all_methods_together_equal_each_alone(session: Session) -> None:
    ask = ask_of(PROMPT, 70)
    found = generate(session, ask, LABELS, guard, max_tokens=12)
    for label in LABELS:
        own, tokens = Alone(session, label, ask), list[int]()
        logs = own.begin()
        while len(tokens) < 12 and (token := int(logs.argmax())) != 2:
            tokens.append(token)
            logs = own.read([token])[-1]
        assert found[label].tokens == tokens, label
        assert found[label].ended == (len(tokens) < 12)


def test_each_method_stops_for_itself(session: Session) -> None:
    whole = generate(session, ask_of(PROMPT, 70), LABELS, guard, max_tokens=12)
    last = whole["baseline"].tokens[3]
    found = generate(session, ask_of(PROMPT, 70), LABELS, guard, max_tokens=12, stop=lambda tokens: tokens[-1:] == [last])
    for label in LABELS:
        expected = whole[label].tokens
        cut = expected.index(last) + 1 if last in expected else len(expected)
        assert found[label].tokens == expected[:cut], label


def test_an_end_token_ends_the_answer_and_is_no_part_of_it(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generate(session, ask_of(PROMPT, 70), ["baseline"], guard, max_tokens=6)["baseline"].tokens
    monkeypatch.setattr("kvbench.instruments.answers.end_tokens", lambda _: {whole[2]})
    found = generate(session, ask_of(PROMPT, 70), ["baseline"], guard, max_tokens=6)["baseline"]
    assert found == Answer(found.stored_bytes, found.baseline_bytes, whole[: whole.index(whole[2])], True)


def test_a_method_that_breaks_is_its_own_failure(session: Session) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(session.methods["h2o"], name)

        def layer(self, context: Any) -> Any:
            raise RuntimeError("broken on purpose")

    broken = replace(session, methods={**session.methods, "h2o": Broken()})
    failed: list[str] = []

    def recording(label: str, action: Any) -> bool:
        try:
            action()
        except RuntimeError:
            failed.append(label)
            return False
        return True

    found = choose(broken, ask_of(PROMPT, 70), OPTIONS, LABELS, recording)
    assert failed == ["h2o"]
    whole = choose(session, ask_of(PROMPT, 70), OPTIONS, LABELS, guard)
    for label in set(LABELS) - {"h2o"}:
        assert found[label].loglikelihoods == pytest.approx(whole[label].loglikelihoods, abs=1e-10)


def test_groups_do_not_change_a_number(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = choose(session, ask_of(PROMPT, 70), OPTIONS, LABELS, guard)
    monkeypatch.setattr(Session, "free_memory", lambda self: 3 * 4 * len(OPTIONS) * self.baseline_bytes(70))
    found = choose(session, ask_of(PROMPT, 70), OPTIONS, LABELS, guard)
    for label in LABELS:
        assert found[label].loglikelihoods == pytest.approx(whole[label].loglikelihoods, abs=1e-10)


def test_a_prompt_always_has_a_token_that_reads_the_cache() -> None:
    assert ask_of([1, 2, 3], None) == Ask([1, 2], [3])
    assert ask_of([1, 2, 3], 3) == ask_of([1, 2, 3], 0) == Ask([1, 2], [3])
    assert ask_of([1, 2, 3], 1) == Ask([1], [2, 3])
    with pytest.raises(ValueError, match=r"1 \+ 0|0 \+ 1"):
        ask_of([1], None)


def test_an_option_needs_a_token(session: Session) -> None:
    for options in ([], [[5], []]):
        with pytest.raises(ValueError, match="needs a token"):
            choose(session, ask_of(PROMPT, None), options, LABELS, guard)


def test_a_cut_through_a_token_leaves_it_to_the_question() -> None:
    def tokenizer(text: str, verbose: bool = False) -> dict[str, list[int]]:
        """Two characters a token."""
        return {"input_ids": [hash(text[i : i + 2]) for i in range(0, len(text), 2)]}

    ids = tokenizer("abcdef")["input_ids"]
    assert split_at(tokenizer, "abcdef", 4, ids) == 2
    assert split_at(tokenizer, "abcdef", 3, ids) == 1
    assert split_at(tokenizer, "abcdef", 0, ids) == 0
    assert split_at(tokenizer, "abcdef", 6, ids) == 3
