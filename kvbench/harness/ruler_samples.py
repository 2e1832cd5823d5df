"""RULER's samples (Hsieh et al. 2024), made by lm-evaluation-harness's own functions from its own definitions.

Those functions make 500 samples a length, fetch their filler, a sentence splitter and question sets from the network, draw
from the process's random state, and hold a product of word lists that takes 14 s and 0.9 GB. What they ask for is theirs to
be given: each module is loaded once more, as a copy of our own, in which the names that stand for those things are bound to
ours. The harness's modules stay as they are, and no prompt, needle or metric is written here.
"""

from __future__ import annotations

import logging
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import orjson

from kvbench.errors import CorpusError
from kvbench.files import read_bytes
from kvbench.harness.index import tasks_folder

PACKAGE = "lm_eval.tasks.ruler"
SAMPLES = 500
"""What the harness makes of each task and length."""
SHORT = 4096
"""Tokens below which its steps of 500 filler words are too coarse to fill a prompt; its shortest standard length."""
FEWER = (2500, 2000, 1500, 1000, 750, 500, 400, 300, 200, 150, 100, 75, 50, 35, 25, 15)
"""Filler words that it is given, one after the other, for shorter prompts; those that fill them best are taken."""
ROOM = 128
"""Tokens that an example must leave: instructions, a question and an answer have more."""


MAKERS = ("generate_samples", "sys_vartrack_w_noise_random", "sys_word_pair_random", "sys_kwext")
"""The functions that are told how many samples to make."""


class DoesNotFit(ValueError):
    """A task cannot be made at this length: its instructions, examples and answer leave no room."""


@dataclass(frozen=True)
class Supplies:
    """What the harness's functions are given.

    Attributes:
        tokenizer: The model's. words: Filler, word by word. split: Text → sentences.
        seed: Of every draw. data_dir: The mirror folder, or ``None``.
    """

    tokenizer: Any
    words: Sequence[str]
    split: Callable[[str], list[str]]
    seed: int
    data_dir: Path | None = None


@dataclass(frozen=True)
class Made:
    """Documents of one task at one length, in the harness's columns (input, outputs, gen_prefix, length, max_length).

    Attributes:
        question: What a prompt's question begins with, by the task's own template.
    """

    docs: list[dict[str, Any]]
    question: str

    def context_end(self, text: str) -> int:
        """Where the question begins in a prompt, in characters."""
        return text.rindex(self.question)


def make(function: str, length: int, samples: int, supplies: Supplies) -> Made:
    """Up to ``samples`` documents of one task for ``length`` tokens, what is generated included.

    Args:
        function: The task's ``custom_dataset``, as ``module.function``.

    Raises:
        DoesNotFit: not at this length.
        CorpusError: its question set cannot be had.
    """
    best: Made | None = None
    for words in (len(supplies.words), *(FEWER if length < SHORT else ())):
        copies = _Copies(function, length, samples, supplies, words)
        made = copies.make()
        if made and (best is None or _tokens(made) > _tokens(best)):
            best = made
        if not copies.filled:
            break
    if best is None:
        raise DoesNotFit(f"its instructions and its answer leave no room in {length:,} tokens")
    return best


def _tokens(made: Made) -> int:
    return sum(int(doc["length"]) for doc in made.docs)


class _Measure:
    """A tokenizer that ends searches which would never end.

    Some of the harness's loops draw until a sample fits, for ever where none does, and swallow every exception. After
    ``calls`` texts every other text is said to have no tokens and the next very many, which ends loops that wait for
    either; what they made is then thrown away.
    """

    def __init__(self, tokenizer: Any, calls: int) -> None:
        self.tokenizer, self.left = tokenizer, calls

    @property
    def gave_up(self) -> bool:
        return self.left < 0

    def __call__(self, text: str) -> SimpleNamespace:
        self.left -= 1
        return SimpleNamespace(input_ids=range(self.left % 2 << 40) if self.gave_up else self.tokenizer(text, verbose=False)["input_ids"])


class _Pairs(Sequence[str]):
    """``adjective-noun`` for every pair, none of them held."""

    def __init__(self, categories: Mapping[str, Sequence[str]]) -> None:
        self.adjectives, self.nouns = (sorted(set(categories[name])) for name in ("adjectives", "nouns"))

    def __len__(self) -> int:
        return len(self.adjectives) * len(self.nouns)

    def __getitem__(self, index: Any) -> Any:
        adjective, noun = divmod(range(len(self))[index], len(self.nouns))
        return f"{self.adjectives[adjective]}-{self.nouns[noun]}"


class _Seeded(random.Random):
    """What a module means by ``random``: its functions and its class, from a seed of their own.

    Attributes:
        short: More places were drawn than a text has. That raises in Python's, which one loop of the harness would swallow for ever.
    """

    Random = random.Random
    short = False

    def sample(self, population: Any, k: int, **options: Any) -> list[Any]:
        self.short |= k > len(population)
        return super().sample(population, min(k, len(population)), **options)


class _Copies:
    """Our own copies of the modules that one task at one length is made by."""

    def __init__(self, function: str, length: int, samples: int, supplies: Supplies, words: int) -> None:
        self.name, _, self.function = function.rpartition(".")
        self.samples, self.supplies = samples, supplies
        self.seed = f"{supplies.seed}/{function}/{length}"
        self.words, self.filled, self.random = words, False, _Seeded(self.seed)
        self.measure = _Measure(supplies.tokenizer, 500 + length // 10 + 50 * samples)
        self.common = SimpleNamespace(
            DEFAULT_SEQ_LENGTHS=[length], get_tokenizer=lambda _: self.measure, resolve_tokenizer_name=lambda _: ""
        )

    def make(self) -> Made | None:
        """The documents, or ``None`` where they do not fit."""
        shared = {"common_utils": self.common}
        if self.name == "niah_utils":
            shared["prepare_niah"] = self._needles()
        module = self._copy(self.name, {f"{PACKAGE}.{name}": given for name, given in shared.items()})
        question = re.match(r"\s*\S+", module.TEMPLATE.partition("{context}")[2])
        try:
            docs = list(getattr(module, self.function)()["test"])
        except ValueError:  # where the harness itself notices
            return None
        if self.measure.gave_up or self.random.short or question is None or not all(doc["outputs"] for doc in docs):
            return None
        return Made(docs, question[0])

    def _needles(self) -> Any:
        """``prepare_niah`` without its product of word lists, its downloads and its filler."""
        categories = _word_lists()
        no_words = SimpleNamespace(RandomWord=lambda: SimpleNamespace(_categories=dict.fromkeys(categories, ())))
        nltk = SimpleNamespace(data=SimpleNamespace(find=lambda _: True), sent_tokenize=self.supplies.split)
        module = self._copy("prepare_niah", {"wonderwords": no_words, "nltk": nltk})
        module.WORDS = _Pairs(categories)
        module.get_haystack = partial(self._haystack, module.get_haystack)
        return module

    def _haystack(self, own: Callable[[str], Any], type_haystack: str) -> Any:
        if type_haystack != "essay":
            return own(type_haystack)
        self.filled = True
        return list(self.supplies.words[: self.words])

    def _copy(self, name: str, given: Mapping[str, Any]) -> Any:
        """A copy of a module, with its randomness, its sample counts, its downloads and its chatter bound to ours."""
        module: Any = _load(name, given)
        numbers = int.from_bytes(random.Random(self.seed).randbytes(4))
        ours: dict[str, Callable[[Any], Any]] = {
            "random": lambda _: self.random, "RNG": lambda _: self.random, "tqdm": lambda _: lambda rows, **_: rows,
            "eval_logger": lambda _: logging.Logger("ruler", logging.CRITICAL),
            "download_json": lambda own: partial(_question_set, self.supplies.data_dir, own),
            **dict.fromkeys(MAKERS, lambda own: partial(_fewer, own, self.samples)),
        }  # fmt: skip
        for key, bound in ours.items():
            if hasattr(module, key):
                setattr(module, key, bound(getattr(module, key)))
        module.print = lambda *_: None
        if name == "vt_utils":  # it draws from NumPy too, and takes nothing else of it
            import numpy as np

            module.np = SimpleNamespace(random=np.random.RandomState(numbers))
        return module


@cache
def _word_lists() -> dict[str, list[str]]:
    import wonderwords

    lists: dict[str, list[str]] = wonderwords.RandomWord()._categories
    return lists


def _fewer(make_samples: Callable[..., Any], samples: int, *args: Any, num_samples: int = SAMPLES, **options: Any) -> Any:
    """At most ``samples``, and none after an example that leaves no room, on which the harness would try for ever."""
    example = options.get("icl_example")
    if example is not None and len(options["tokenizer"](example["input"]).input_ids) + ROOM > options["max_seq_length"]:
        raise DoesNotFit
    return make_samples(*args, num_samples=min(num_samples, samples), **options)


def _question_set(data_dir: Path | None, download: Callable[[str], Any], url: str) -> Any:
    """What the harness would download: a file of that name in the mirror folder, else its own download."""
    name = url.rpartition("/")[2]
    mirrored = next(data_dir.glob(f"*/{name}"), None) if data_dir else None
    try:
        return download(url) if mirrored is None else orjson.loads(read_bytes(mirrored))
    except (OSError, ValueError) as error:
        what = f"'{mirrored}' cannot be read" if mirrored else f"the question set {name} is not here and cannot be downloaded"
        raise CorpusError(f"{what}: {error}", hint=f"put {name} into a folder of --data-dir, or leave the task out") from error


def _load(name: str, given: Mapping[str, Any]) -> ModuleType:
    """A module of the harness once more, under a name of our own, with its imports of ``given`` answered by us."""
    path = tasks_folder() / "ruler" / f"{name}.py"
    spec = spec_from_file_location(f"kvbench.harness._ruler_{name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = module_from_spec(spec)
    with _imports(given):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _imports(given: Mapping[str, Any]) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in given}
    sys.modules.update(given)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
