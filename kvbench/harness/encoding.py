"""Prompts as token ids, by the rules of the harness's own Hugging Face backend, of which the pair rule is the harness's code.

A question becomes token ids: of each prompt, how many of them are context, and of the options that share it. The harness
scores each option with its prompt again; here options with the same prompt are read from one prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvbench.errors import UsageError
from kvbench.harness.requests import Question

MAX_NEW_TOKENS = 256
"""Of an answer whose task gives no limit (the harness's Hugging Face backend)."""


@dataclass(frozen=True)
class Encoded:
    """One prompt and what is asked of it.

    Attributes:
        ids: Of the prompt. split: How many of them are context, or ``None``.
        places: Which of the question's requests these are. options: Their token ids; empty where a text is generated.
        cut: Tokens that were cut off at the prompt's start, since it would not fit the model's positions.
    """

    ids: list[int]
    split: int | None
    places: list[int] = field(default_factory=list)
    options: list[list[int]] = field(default_factory=list)
    cut: int = 0


class Encoder:
    """Turns questions into token ids for one model.

    Args:
        tokenizer: The model's. config: Its ``transformers`` config, for its positions.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        from lm_eval.models.utils import resolve_max_length

        self.tokenizer = tokenizer
        self.limit = int(resolve_max_length(config, tokenizer))
        self._pairs = _pair_encoder(tokenizer)

    def choices(self, question: Question) -> list[Encoded]:
        """The options' prompts, each once, with the options that share it.

        Raises:
            UsageError: an option is longer than the model's positions.
        """
        found: dict[tuple[int, ...], Encoded] = {}
        for place, (prompt, option) in enumerate(self._pairs(question.instances)):
            if not option or len(option) > self.limit:
                raise UsageError(
                    f"option {place + 1} of {question.key} has {len(option):,} tokens; the model has {self.limit:,} positions",
                    hint=f"leave out {question.leaf.of}",
                )
            cut = max(0, len(prompt) + len(option) - (self.limit + 1))
            ids = tuple(prompt[cut:])
            if ids not in found:
                found[ids] = Encoded(list(ids), self._split(question, place, prompt, cut), cut=cut)
            found[ids].places.append(place)
            found[ids].options.append(option)
        return list(found.values())

    def generation(self, question: Question, most: int = 0) -> tuple[Encoded, int, list[str]]:
        """A prompt whose answer is generated, the longest answer in tokens, and the texts that end it.

        Args:
            most: A cap on the answer's tokens; 0 leaves the task's own.

        Raises:
            UsageError: the answer leaves no room for a prompt.
        """
        from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs

        settings = normalize_gen_kwargs(question.settings, MAX_NEW_TOKENS)
        longest = min(most, settings["max_gen_toks"]) if most else settings["max_gen_toks"]
        room = self.limit - longest
        if room < 2:
            raise UsageError(
                f"task '{question.leaf.name}' writes up to {longest:,} tokens and leaves no room in the model's {self.limit:,} positions",
                hint="lower max_gen_toks",
            )
        text = question.prompts[0]
        special = {"add_special_tokens": False} if has_bos_prefix(text, getattr(self.tokenizer, "bos_token", None)) else {}
        ids: list[int] = self.tokenizer(text, verbose=False, **special)["input_ids"]
        cut = max(0, len(ids) - room)
        end = self.tokenizer.eos_token_id  # without one the task's own stop texts and the longest answer end it
        stops = handle_stop_sequences(list(settings["until"]), eos=None if end is None else self.tokenizer.decode(end))
        return Encoded(ids[cut:], self._split(question, 0, ids, cut), [0], cut=cut), longest, stops

    def write(self, question: Question, most: int = 0) -> None:
        """Every prompt and option of a question, for what cannot be written.

        Raises:
            UsageError, CorpusError: as :meth:`choices`, :meth:`generation` and the tokenizer.
        """
        if question.generates:
            self.generation(question, most)
        else:
            self.choices(question)

    def stop(self, stops: Sequence[str]) -> Callable[[list[int]], bool]:
        """Whether an answer holds one of ``stops``, as the harness looks: in its last tokens, two more than the stop text has."""
        windows = [(text, len(self.tokenizer.encode(text, add_special_tokens=False)) + 2) for text in stops if text]
        return lambda tokens: any(text in self.tokenizer.decode(tokens[-window:]) for text, window in windows)

    def text(self, tokens: list[int], stops: Sequence[str]) -> str:
        """An answer as the harness reads it: special tokens left out, cut before the first stop text."""
        from lm_eval.models.utils import postprocess_generated_text

        written = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return str(postprocess_generated_text(generation=written, stop=list(stops), think_end_token=None))

    def _split(self, question: Question, place: int, ids: Sequence[int], cut: int) -> int | None:
        """Tokens of context that are left of the prompt, if the prompt has a question behind them."""
        from kvbench.instruments.answers import split_at

        end = question.ends[place]
        if end is None:
            return None
        split = split_at(self.tokenizer, question.prompts[place], end, ids) - cut
        return split if 0 < split < len(ids) - cut else None


def _pair_encoder(tokenizer: Any) -> Callable[[Sequence[Any]], list[tuple[list[int], list[int]]]]:
    """The harness's ``TemplateLM`` up to the point where it would ask a model: requests → (prompt ids, option ids)."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import has_bos_prefix

    class Pairs(TemplateLM):  # type: ignore[misc]
        @property
        def eot_token_id(self) -> int:
            return _needed(tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            return _needed(_first_known(tokenizer))

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            first = _first_known(tokenizer)
            if add_special_tokens is None and first is not None and has_bos_prefix(string, tokenizer.decode(first)):
                add_special_tokens = False
            special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            ids: list[int] = tokenizer.encode(string, **special)
            return ids

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[list[int], list[int]]]:
            return [(prompt, option) for _, prompt, option in requests]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise NotImplementedError

    encoder = Pairs()
    return lambda instances: encoder.loglikelihood(list(instances), disable_tqdm=True)


def _first_known(tokenizer: Any) -> int | None:
    """What stands in for an empty prompt: BOS, else EOS, as the harness has it."""
    found: int | None = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return found


def _needed(token: int | None) -> int:
    if token is None:
        raise UsageError("a task asks with an empty prompt, and this model's tokenizer has neither BOS nor EOS", hint="leave the task out")
    return int(token)
