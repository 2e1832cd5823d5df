"""One finding about a method: what the audit of a run and ``kvbench verify`` are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """Whether it passed, its figure, what the figure is, and the limit within which it must stay where it has one."""

    name: str
    passed: bool
    figure: float | str | None
    detail: str
    limit: float | None = None
