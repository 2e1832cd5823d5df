"""Text as token ids: what stands at the head of every text, and no id that the model has no embedding for.

A tokenizer that adds a beginning-of-sequence token (BOS) adds it to a text, and a text that is cut into windows would have
it in the first of them alone. Here the *head* is known apart from the text's own tokens, so that each window has it or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from kvbench.errors import CorpusError, UsageError
from kvbench.spec import Bos

_PROBE = "a"


class Reader:
    """A tokenizer as a run reads with it; what is not here is the tokenizer's own.

    Args:
        tokenizer: The model's. bos: ``auto`` puts in front what the tokenizer does, ``on`` its BOS, ``off`` nothing.
        rows: Embeddings that the model has, or ``None`` where that is not known.

    Attributes:
        head: Token ids that stand at the head of every text; empty for none.

    Raises:
        UsageError: ``bos="on"``, and the tokenizer has no such token.
    """

    def __init__(self, tokenizer: Any, bos: Bos = "auto", rows: int | None = None) -> None:
        self.tokenizer, self.bos, self.rows = tokenizer, bos, rows
        added, forced = _in_front(tokenizer)
        self.head = _head(tokenizer, bos, added)
        self._as_it_is = bos == "auto"
        own = getattr(tokenizer, "bos_token_id", None)
        self._no_text = (forced, self.head, () if bos != "off" or own is None else (own,))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: Any, *, add_special_tokens: bool = True, **options: Any) -> Any:
        """As the tokenizer, with this run's head where it would put its own.

        Raises:
            CorpusError: an id beyond the model's embeddings.
        """
        if not add_special_tokens or self._as_it_is:
            special = {} if add_special_tokens else {"add_special_tokens": False}
            found = self.tokenizer(text, **special, **options)
        else:
            texts = [text] if isinstance(text, str) else text
            ids = [[*self.head, *self.own(one)] for one in texts]
            found = {"input_ids": ids[0] if isinstance(text, str) else ids}
        self.check(found["input_ids"])
        return found

    def encode(self, text: str, **options: Any) -> list[int]:
        """As :meth:`__call__`, the ids alone."""
        ids: list[int] = self(text, **options)["input_ids"]
        return ids

    def own(self, text: str) -> list[int]:
        """A text's own tokens: no head, neither the tokenizer's nor one that the text itself begins with."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        found = next((head for head in self._no_text if head and tuple(ids[: len(head)]) == head), ())
        return ids[len(found) :]

    @property
    def may_exceed(self) -> bool:
        """Whether the tokenizer has ids that the model has no embedding for."""
        if self.rows is None:
            return False
        return max(self.tokenizer.get_vocab().values(), default=0) >= self.rows

    def check(self, ids: Iterable[Any]) -> None:
        """Refuse ids, or lists of them, beyond the embeddings.

        Raises:
            CorpusError: names the highest, its text and how many embeddings there are.
        """
        if self.rows is not None:
            flat = [i for row in ids for i in (row if isinstance(row, Sequence) else (row,))]
            check_ids(max(flat, default=0), self.rows, self.tokenizer)

    def special_in(self, ids: Iterable[int]) -> dict[str, int]:
        """How often each of the tokenizer's special tokens stands among ``ids``, by its text."""
        special = set(getattr(self.tokenizer, "all_special_ids", ()))
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special |= {i for i, token in added.items() if getattr(token, "special", False)}
        counts = Counter(i for i in ids if i in special)
        return {self.written(i): n for i, n in sorted(counts.items())}

    def written(self, token: int) -> str:
        """A token as the vocabulary has it."""
        return _written(self.tokenizer, token)


def reader_of(tokenizer: Any | None, bos: Bos = "auto", rows: int | None = None) -> Reader | None:
    """A reader's own arguments are kept; no tokenizer, no reader."""
    if tokenizer is None or isinstance(tokenizer, Reader):
        return tokenizer
    return Reader(tokenizer, bos, rows)


def templated(tokenizer: Any, text: str) -> list[int]:
    """What a chat template wrote, which has its own special tokens; a reader that is asked for a BOS or none sees to the first."""
    if isinstance(tokenizer, Reader) and tokenizer.bos != "auto":
        return tokenizer.encode(text)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def check_ids(highest: int, rows: int, tokenizer: Any = None) -> None:
    """Refuse a text whose ``highest`` id is beyond a model's ``rows`` embeddings.

    Raises:
        CorpusError: names the id, its text and the rows.
    """
    if highest >= rows:
        what = f" ({_written(tokenizer, highest)!r})" if tokenizer is not None else ""
        raise CorpusError(
            f"the text has token id {highest:,}{what}, and the model has {rows:,} embeddings (ids 0 to {rows - 1:,})",
            hint="use the tokenizer that the model was made with, or a model whose embeddings were resized to this one",
        )


def _head(tokenizer: Any, bos: Bos, added: tuple[int, ...]) -> tuple[int, ...]:
    own = getattr(tokenizer, "bos_token_id", None)
    if bos == "auto" or (bos == "on" and own in added):
        return added
    if bos == "off":
        return ()
    if own is None:
        raise UsageError("--bos on: this model's tokenizer has no BOS token", hint="--bos auto, or leave it out")
    return (int(own),)


def _in_front(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a tokenizer puts in front of a text, and what of it even if asked not to (some ignore the question)."""
    own = getattr(tokenizer, "bos_token_id", None)
    bare: list[int] = tokenizer(_PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    whole: list[int] = tokenizer(_PROBE, verbose=False)["input_ids"]
    forced = (int(own),) if own is not None and bare[:1] == [own] else ()
    at = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), 0)
    return tuple(whole[:at]) or forced, forced


def _written(tokenizer: Any, token: int) -> str:
    found = getattr(tokenizer, "convert_ids_to_tokens", lambda _: None)(token)
    return str(token) if found is None else str(found)
