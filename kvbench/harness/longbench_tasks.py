"""LongBench through the harness: its subsets, and the benchmark's own way to shorten prompts, in the middle.

Bai et al. 2023 (v1) and 2024 (v2) keep the first and the last half of a prompt that is too long, "since the left and right
side may contain crucial instructions" (``pred.py`` of both); the harness would cut its beginning off.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from kvbench.errors import UnknownName, UsageError
from kvbench.harness.encoding import Encoded, Encoder
from kvbench.harness.index import index_of
from kvbench.harness.requests import Question

PREFIX = "longbench_"
V2 = "longbench2"
METRICS = ("jieba", "fuzzywuzzy", "rouge")
"""What the metrics of the harness's v1 subsets import."""


def check_subsets(subsets: Sequence[str], *, metrics: bool = True) -> list[str]:
    """The harness's names of ``subsets``: v1 without its prefix (``qasper``), v2 as the harness has them.

    Args:
        metrics: Whether what scores them has to be there.

    Raises:
        UnknownName: with the nearest names.
        UsageError: the packages that v1's metrics need are not installed.
    """
    names = [harness_name(subset) for subset in subsets]
    index = index_of([PREFIX + "qasper"])
    known = {name.removeprefix(PREFIX) for name in index if name.startswith(("longbench_", V2))}
    for subset, name in zip(subsets, names, strict=True):
        if name not in index:
            raise UnknownName("LongBench subset", subset, known, hint="for example subsets=narrativeqa+gov_report")
    lacking = next((reason for name in names if (reason := lacks(name))), "")
    if metrics and lacking:
        raise UsageError(f"LongBench's {lacking}", hint='python -m pip install "kvbench[longbench]"')
    return names


def harness_name(subset: str) -> str:
    return subset if subset.startswith("longbench") else PREFIX + subset


def subset_name(name: str) -> str:
    """The other way round."""
    return name.removeprefix(PREFIX)


def lacks(name: str) -> str:
    """Why a subset, by the harness's name, cannot be scored here; empty if it can."""
    absent = [] if name.startswith(V2) else [package for package in METRICS if find_spec(package) is None]
    return f"metrics need {', '.join(absent)}, not installed here" if absent else ""


class MiddleEncoder(Encoder):
    """Prompts of at most ``max_length`` tokens, and of what the answer leaves of the model's positions, shortened in the middle.

    Args:
        tokenizer: The model's. config: Its ``transformers`` config. max_length: Tokens; 0 is what the answer leaves.
    """

    def __init__(self, tokenizer: Any, config: Any, max_length: int) -> None:
        super().__init__(tokenizer, config)
        self.positions, self.limit = self.limit, sys.maxsize  # what it would cut off at the start is cut here
        self.max_length = max_length or self.positions

    def generation(self, question: Question, most: int = 0) -> tuple[Encoded, int, list[str]]:
        prompt, longest, stops = super().generation(question, most)
        return middle(prompt, self._room(question, longest)), longest, stops

    def choices(self, question: Question) -> list[Encoded]:
        prompts = super().choices(question)
        return [middle(prompt, self._room(question, max(map(len, prompt.options)))) for prompt in prompts]

    def _room(self, question: Question, answer: int) -> int:
        room = min(self.max_length, self.positions - answer)
        if room < 2:
            raise UsageError(
                f"{question.leaf.name}: an answer of {answer:,} tokens leaves no room in the model's {self.positions:,} positions",
                hint="lower max_gen_toks",
            )
        return room


def middle(prompt: Encoded, most: int) -> Encoded:
    """The first and the last ``most // 2`` tokens of a prompt that has more than ``most``; its context is what is left of it."""
    count, half = len(prompt.ids), most // 2
    if count <= most:
        return prompt
    split = None if prompt.split is None else min(prompt.split, half) + max(0, prompt.split - (count - half))
    split = split if split is not None and 0 < split < 2 * half else None
    return replace(prompt, ids=[*prompt.ids[:half], *prompt.ids[count - half :]], split=split, cut=count - 2 * half)


def own_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Without ``score``, under which the harness gives each v1 subset's metric once more."""
    named = {name: value for name, value in metrics.items() if name.partition(",")[0] != "score"}
    return named or metrics


def at_hand(subsets: Iterable[str], have: Iterable[str]) -> str:
    """What to try where data are missing."""
    found = [subset for subset in subsets if harness_name(subset) in set(have)]
    said = f"subsets={'+'.join(found)} are at hand" if found else "put longbench/<subset>.jsonl into a folder and name it with --data-dir"
    return f"{said}; missing=skip leaves out what is not"
