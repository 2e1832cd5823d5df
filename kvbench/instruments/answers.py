"""Questions about a compressed prompt: which option is likeliest, and what the model writes.

A prompt is cut in two. Its *context* is prefilled once for all methods and compressed by each; its *question* is fed
through each compressed cache, so that a method which looks at the prompt's end cannot know what will be asked. The
question holds the prompt's last token at least: what predicts the first token of an answer has read the compressed
cache. (Were the whole prompt prefilled, an answer of one token would be the uncompressed model's own for every method.)

All methods go through the model together, a forward for all of them, each through its own cache
(:mod:`kvbench.caches.joint`).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from kvbench.caches.cache import KVCache
from kvbench.instruments.protocol import Prompt, Runner
from kvbench.instruments.scoring import SLAB_BYTES
from kvbench.instruments.session import Session
from kvbench.spec import BASELINE

Guard = Callable[[str, Callable[[], None]], bool]
Stop = Callable[[list[int]], bool]
SHARE = 0.25
"""Part of the free memory that the caches of methods that go together may take, were they uncompressed."""


@dataclass(frozen=True)
class Ask:
    """One prompt, as token ids: what is compressed, and what is fed through the compressed cache after it.

    Raises:
        ValueError: one of them is empty.
    """

    context: list[int]
    question: list[int]

    def __post_init__(self) -> None:
        if not self.context or not self.question:
            raise ValueError(f"a prompt needs a token to compress and one that reads it; it has {len(self.context)} + {len(self.question)}")


@dataclass(frozen=True)
class Stored:
    """Bytes of the compressed context, of one sequence, and what the model's own cache would have taken."""

    stored_bytes: int
    baseline_bytes: int


@dataclass(frozen=True)
class Choices(Stored):
    """What a method makes of every option.

    Attributes:
        loglikelihoods: Natural logarithm of each option's probability after the prompt, summed over its tokens.
        greedy: Whether greedy decoding would write the option. tokens: How many tokens it has.
    """

    loglikelihoods: list[float]
    greedy: list[bool]
    tokens: list[int]


@dataclass(frozen=True)
class Answer(Stored):
    """What a method writes, greedily: up to and including the token at which it was stopped, without an end-of-sequence token.

    Attributes:
        tokens: Token ids. ended: Whether it ended by itself or was stopped, rather than cut off for its length.
    """

    tokens: list[int]
    ended: bool


def ask_of(ids: list[int], split: int | None) -> Ask:
    """A prompt's token ids, of which the first ``split`` are compressed; where that leaves no question, all but the last are.

    Raises:
        ValueError: fewer than two tokens.
    """
    at = split if split is not None and 0 < split < len(ids) else len(ids) - 1
    return Ask(ids[:at], ids[at:])


def split_at(tokenizer: Any, text: str, end: int, ids: Sequence[int]) -> int:
    """How many of ``ids``, the tokens of ``text``, are tokens of ``text[:end]`` too: those before the cut, unless it goes through one."""
    before = tokenizer(text[:end], verbose=False)["input_ids"]
    return next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))


def choose(session: Session, ask: Ask, options: Sequence[list[int]], labels: Sequence[str], guard: Guard) -> dict[str, Choices]:
    """Score every option after the prompt, through every method's cache.

    Args:
        options: Token ids of each, at least one. labels: Methods, by row label.
        guard: :meth:`UnitContext.guard`: a method that fails becomes its row's failure and is absent from what is returned.

    Raises:
        ValueError: no options, or an empty one.
    """
    if not options or not all(options):
        raise ValueError("every option needs a token")
    return _over_methods(session, ask, labels, guard, lambda group: group.choose(options), rows=len(options))


def generate(
    session: Session, ask: Ask, labels: Sequence[str], guard: Guard, *, max_tokens: int, stop: Stop | None = None
) -> dict[str, Answer]:  # fmt: skip
    """Let every method write its greedy answer, a forward a token for all of them.

    Args:
        max_tokens: The longest answer. stop: Told the tokens so far, whether to end there. Others: as :func:`choose`.
    """
    return _over_methods(session, ask, labels, guard, lambda group: group.generate(max_tokens, stop or (lambda _: False)))


T = TypeVar("T")


def _over_methods(
    session: Session, ask: Ask, labels: Sequence[str], guard: Guard, act: Callable[[_Group], Mapping[str, T]], rows: int = 1
) -> dict[str, T]:
    """Methods together, as many as fit; a group in which something breaks is done again one by one."""
    tokens = torch.tensor([ask.context], device=session.loaded.device)
    prompts: list[Prompt] = []
    found: dict[str, T] = {}

    def attempt(names: Sequence[str]) -> None:
        found.update(act(_Group(session, prompts[0], ask, names)))

    if not guard(BASELINE, lambda: prompts.append(session.runner.prefill(tokens, session.needs(labels)))):
        return found  # without a prompt there is nothing to compress, and the guard has said why

    for names in _groups(session, labels, len(ask.context), rows):
        if len(names) > 1 and not getattr(guard, "apart", False):
            try:
                attempt(names)
                continue
            except Exception:
                traceback.print_exc()
            session.release()
        for name in names:
            guard(name, partial(attempt, [name]))
    return found


def _groups(session: Session, labels: Sequence[str], tokens: int, rows: int) -> Iterator[list[str]]:
    """Methods whose caches would fit ``SHARE`` of the free memory if they were not compressed."""
    size = max(1, int(session.free_memory() * SHARE // max(1, rows * session.baseline_bytes(tokens))))
    for start in range(0, len(labels), size):
        yield list(labels[start : start + size])


class _Group:
    """Methods that go through the model together."""

    def __init__(self, session: Session, prompt: Prompt, ask: Ask, names: Sequence[str]) -> None:
        self.session, self.names = session, list(names)
        self.runner: Runner = session.runner
        self.caches: list[KVCache] = [self.runner.compress(session.methods[name], prompt) for name in names]
        self.stored = {name: self._bytes(cache, len(ask.context)) for name, cache in zip(self.names, self.caches, strict=True)}
        self.question = torch.tensor([ask.question], device=session.loaded.device)

    def _bytes(self, cache: KVCache, tokens: int) -> tuple[int, int]:
        return cache.ledger().stored, self.session.baseline_bytes(tokens)

    def forward(self, tokens: Tensor, rows: int = 1) -> Tensor:
        """Hidden states ``[methods · rows, n, hidden]`` of tokens ``[rows, n]`` that every method reads alike."""
        return self.runner.together(tokens.repeat(len(self.caches), 1), self.caches, [rows] * len(self.caches))

    def choose(self, options: Sequence[list[int]]) -> dict[str, Choices]:
        hidden = self._predictors(options)  # [M, n options, longest, hidden]
        width = hidden.shape[2]
        true = torch.zeros(len(options), width, dtype=torch.long, device=hidden.device)
        real = torch.zeros_like(true, dtype=torch.bool)
        for row, option in enumerate(options):
            true[row, : len(option)], real[row, : len(option)] = torch.tensor(option), True
        found: dict[str, Choices] = {}
        for name, states in zip(self.names, hidden, strict=True):
            scores, best = self._scores(states[real], true[real])
            parts = [len(option) for option in options]
            sums = [float(s.double().sum()) for s in torch.split(scores, parts)]
            found[name] = Choices(*self.stored[name], sums, [bool(b.all()) for b in torch.split(best, parts)], parts)
        self._look(torch.isfinite(hidden[:, real]).all())
        return found

    def _look(self, finite: Tensor) -> None:
        """Wait for the device, once.

        Raises:
            MethodError: a method's scores ranked nothing. FloatingPointError: hidden states were not ``finite``.
        """
        for cache in self.caches:
            cache.look()
        if not bool(finite):
            raise FloatingPointError("hidden states that predict an answer are NaN or infinite")

    def _predictors(self, options: Sequence[list[int]]) -> Tensor:
        """States that predict every token of every option, ``[methods, options, longest, hidden]``; those past an option's end are none.

        Options of one token need the question alone. A question of one token goes with each option, a longer one before them.
        """
        count, longest = len(options), max(map(len, options))
        rest = torch.zeros(count, longest - 1, dtype=torch.long, device=self.question.device)
        for row, option in enumerate(options):
            rest[row, : len(option) - 1] = torch.tensor(option[:-1])
        methods = len(self.caches)
        if longest > 1 and self.question.shape[1] == 1:
            self._repeat(count)
            return torch.unflatten(self.forward(torch.cat((self.question.expand(count, 1), rest), 1), count), 0, (methods, count))
        first = torch.unflatten(self.forward(self.question)[:, -1:], 0, (methods, 1)).expand(-1, count, -1, -1)
        if longest == 1:
            return first
        self._repeat(count)
        return torch.cat((first, torch.unflatten(self.forward(rest, count), 0, (methods, count))), 2)

    def _repeat(self, count: int) -> None:
        for cache in self.caches:
            cache.repeat(count)

    @torch.inference_mode()
    def _scores(self, states: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[n]`` of the true tokens, and whether each is the first choice, slab by slab."""
        logs, best = [], []
        rows = max(1, SLAB_BYTES // (4 * self.runner.model.get_output_embeddings().weight.shape[0]))
        for some, tokens in zip(torch.split(states, rows), torch.split(true, rows), strict=True):
            logits = self.runner.logits(some)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            wanted = tokens.to(logits.device)[:, None]
            logs.append(logits.log_softmax(-1).gather(1, wanted)[:, 0].cpu())
            best.append((logits.argmax(-1, keepdim=True) == wanted)[:, 0].cpu())
        return torch.cat(logs), torch.cat(best)

    @torch.inference_mode()
    def generate(self, max_tokens: int, stop: Stop) -> dict[str, Answer]:
        written: dict[str, list[int]] = {name: [] for name in self.names}
        ended: set[str] = set()
        ends = end_tokens(self.session)
        active, caches, tokens = list(self.names), list(self.caches), self.question.expand(len(self.names), -1)
        finite = torch.ones((), dtype=torch.bool, device=self.question.device)
        for _ in range(max_tokens):
            hidden = self.runner.together(tokens, caches, [1] * len(caches))
            finite = finite & torch.isfinite(hidden[:, -1]).all().to(finite.device)
            choice = self.runner.logits(hidden[:, -1]).argmax(-1).tolist()
            for name, token in zip(active, choice, strict=True):
                if token not in ends:
                    written[name].append(token)
                if token in ends or stop(written[name]):
                    ended.add(name)
            on = [i for i, name in enumerate(active) if name not in ended]
            if not on:
                break
            active, caches = [active[i] for i in on], [caches[i] for i in on]
            tokens = torch.tensor([[choice[i]] for i in on], device=self.question.device)
        self._look(finite)
        return {name: Answer(*self.stored[name], written[name], name in ended) for name in self.names}


def end_tokens(session: Session) -> set[int]:
    """Token ids that end a text, by the model's generation config and its tokenizer."""
    given = getattr(getattr(session.loaded.model, "generation_config", None), "eos_token_id", None)
    found = {given} if isinstance(given, int) else set(given or ())
    own = getattr(session.loaded.tokenizer, "eos_token_id", None)
    return found if own is None else found | {own}
