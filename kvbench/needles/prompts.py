"""A cell of the needle grid as token ids: haystack and question in the model's own chat template, at the length asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvbench.errors import UsageError
from kvbench.instruments.answers import Answer, Ask, ask_of, split_at
from kvbench.needles.fillers import Filler
from kvbench.needles.haystack import last_sentence, place
from kvbench.needles.questions import Cell, Question, ask, score
from kvbench.texts.tokens import templated

MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
LEAST = 32
"""Tokens of filler that a haystack has at least; names and values differ by a few tokens."""


@dataclass(frozen=True)
class Made:
    """A prompt.

    Attributes:
        ask: What is compressed, and what is fed after it. room: Longest answer, tokens.
        question: What it is about. depths: Where its needles came to stand, as fractions of the filler.
    """

    ask: Ask
    room: int
    question: Question
    depths: tuple[float, ...]


@dataclass(frozen=True)
class Prompts:
    """How a model is asked.

    Attributes:
        seed, needles, values: As :func:`kvbench.needles.questions.ask` takes them.
        hidden: Whether the question comes after what is compressed. max_tokens: Longest answer, a value that is asked for.
        before, after: The chat template's text around what the user says; empty without one.
    """

    tokenizer: Any
    seed: int
    needles: int
    values: str
    hidden: bool
    max_tokens: int
    before: str = ""
    after: str = ""

    @property
    def uses_chat(self) -> bool:
        return bool(self.before or self.after)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself."""
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def check_room(self, cell: Cell) -> None:
        """Refuse a length that does not hold needles, question and answer.

        Raises:
            UsageError: says how long they are.
        """
        question = self._question(cell)
        needed = self._tokens(question, " ".join(needle.text for needle in question.needles)) + self._room(question)
        if needed + LEAST > cell.length:
            raise UsageError(
                f"needle: {cell.length} tokens are too few for kind '{cell.kind}': needles, question and answer take {needed}",
                hint=f"needle:lengths=... from {2 * needed} tokens, or fewer needles",
            )

    def make(self, cell: Cell, filler: Filler) -> Made:
        """The cell's prompt; haystacks of one length and sample end with the same sentence, whatever the depth and kind.

        Raises:
            CorpusError: the filler is too short.
        """
        question = self._question(cell)
        room = self._room(question)
        last = last_sentence(filler, cell.length, random.Random(f"{self.seed}/{cell.length}/{cell.sample}"))
        hay = place(filler, question.needles, cell.length - room, last, partial(self._tokens, question))
        context, rest = self._texts(question, hay.text)
        ids = self._encode(context + rest)["input_ids"]
        split = split_at(self._encode, context + rest, len(context), ids) if self.hidden else None
        return Made(ask_of(ids, split), room, question, hay.depths)

    def ends_line(self, tokens: list[int]) -> bool:
        """Whether an answer has come to the end of its first line."""
        return "\n" in self._decode(tokens).lstrip()

    def record(self, made: Made, answer: Answer) -> dict[str, Any]:
        """What is kept of one method's answer."""
        text = self._decode(answer.tokens).strip()
        found = score(text, made.question.expected)
        return {
            "expected": list(made.question.expected),
            "answer": text,
            "exact": found.exact,
            "graded": found.graded,
            "similarity": found.similarity,
            "context_tokens": len(made.ask.context),
            "question_tokens": len(made.ask.question),
            "answer_tokens": len(answer.tokens),
            "ended": answer.ended,
            "placed": [round(depth, 4) for depth in made.depths],
            "stored_bytes": answer.stored_bytes,
            "baseline_bytes": answer.baseline_bytes,
        }

    def _encode(self, text: str, **_: Any) -> Any:
        """The tokenizer; a chat template writes its special tokens itself."""
        return {"input_ids": templated(self.tokenizer, text)} if self.uses_chat else self.tokenizer(text, verbose=False)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _question(self, cell: Cell) -> Question:
        return ask(cell, self.seed, self.needles, self.values)

    def _room(self, question: Question) -> int:
        return self.max_tokens * len(question.expected)

    def _texts(self, question: Question, haystack: str) -> tuple[str, str]:
        """What is compressed, and the question with the answer's first words."""
        context = f"{self.before}{question.intro}\n\n{haystack}"
        return context, f"\n\n{question.question}{self.after or ' '}{question.answer_start}"

    def _tokens(self, question: Question, haystack: str) -> int:
        return len(self._encode("".join(self._texts(question, haystack)))["input_ids"])


def around(tokenizer: Any) -> tuple[str, str]:
    """What a tokenizer's chat template writes before and after what the user says, up to the answer; empty without one."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    written: str = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False, add_generation_prompt=True)
    before, _, after = written.partition(MARK)
    return before, after
