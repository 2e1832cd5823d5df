"""What a method declares that it wants to know beside keys and values. Importable without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """Statistics that one prefill gathers for every method that asks.

    Attributes:
        window: How many of the last queries.
        attention: The attention that each key received, summed over all queries.
        moments: For each entry, mean and covariance of the queries before RoPE, that many first positions left out.
        hidden: What the attention module was given, one state a token.
        surrogate: Names of calibrated models of a hidden state, each of which scores every token (KVzap).
    """

    window: int = 0
    attention: bool = False
    moments: tuple[int, ...] = ()
    hidden: bool = False
    surrogate: tuple[str, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        """What serves both."""
        return Needs(
            max(self.window, other.window),
            self.attention or other.attention,
            tuple(sorted({*self.moments, *other.moments})),
            self.hidden or other.hidden,
            tuple(sorted({*self.surrogate, *other.surrogate})),
        )

    @property
    def any(self) -> bool:
        return self != Needs()
