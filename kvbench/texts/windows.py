"""Windows of tokens: how a text is cut into them, and what stands at their heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvbench.errors import UsageError
from kvbench.spec import RunSpec
from kvbench.texts.tokens import Reader

if TYPE_CHECKING:
    from torch import LongTensor, Tensor


@dataclass(frozen=True)
class Windows:
    """Tokens to score.

    Attributes:
        tokens: ``[N, C + S]`` token ids on the CPU, int64.
        info: name, source, content_hash (of the text), tokens_hash (of ``tokens``), join, bos (whether it heads each window),
            head (those tokens' texts), window, stride, samples, tokens_read, special_tokens (text → how many of those read),
            nul_characters (in the text read).
        head: Tokens at each window's head that are not the text's.
    """

    tokens: LongTensor
    info: dict[str, Any]
    head: int = 0

    def with_context(self, tokens: Tensor, context: int, whole: int) -> Tensor:
        """Windows ``tokens`` of a prompt of ``whole`` tokens with its last ``context`` alone, which begin with the head again."""
        import torch

        head = min(self.head, context)
        return torch.cat((tokens[:, :head], tokens[:, whole - context + head :]), 1)

    def texts(self, count: int, length: int) -> Tensor | None:
        """``[count, length]`` of the text of all windows one behind the other, each with the head; ``None`` if it is too short."""
        import torch

        flat, own = self.tokens[:, self.head :].flatten(), length - self.head
        if own < 1 or len(flat) < count * own:
            return None
        heads = self.tokens[:1, : self.head].expand(count, -1)
        return torch.cat((heads, flat[: count * own].reshape(count, own)), 1)


@dataclass(frozen=True)
class Cut:
    """How windows are cut.

    Attributes:
        window: Tokens of each. own: Those of them that are the text's. stride: Tokens of text between two starts.
        needed: Tokens of text for all windows.
    """

    window: int
    own: int
    stride: int
    needed: int

    def rows(self, ids: Sequence[int], head: Sequence[int]) -> list[list[int]]:
        """The windows, from the text's own ``ids``."""
        return [[*head, *ids[start : start + self.own]] for start in range(0, self.needed - self.own + 1, self.stride)]

    def fits(self, have: int) -> int:
        """How many windows a text of so many tokens has."""
        return (have - self.own) // self.stride + 1 if have >= self.own else 0

    @classmethod
    def of(cls, spec: RunSpec, reader: Reader) -> Cut:
        """As ``spec`` asks.

        Raises:
            UsageError: a context that does not hold the head.
        """
        head, window = len(reader.head), spec.context + spec.continuation
        if head > spec.context:
            raise UsageError(f"--context {spec.context} does not hold the {head} tokens that begin a text", hint=f"--context {head + 1}")
        own = window - head
        stride = spec.corpus.stride or own
        return cls(window, own, stride, (spec.samples - 1) * stride + own)


def oddities(info: Mapping[str, Any]) -> Iterator[str]:
    """What a reader of the figures should know of a text that holds more than text; from :attr:`Windows.info`."""
    special = info.get("special_tokens") or {}
    if special:
        found = ", ".join(f"{text} × {count}" for text, count in special.items())
        yield f"special tokens stand inside the text and are read as such: {found}"
    if info.get("nul_characters"):
        yield f"the text holds {info['nul_characters']:,} NUL characters: is it a text file?"
