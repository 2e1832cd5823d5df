"""Trying what may not fit: memory that runs out is an answer, and what was held is given back. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvbench.errors import text_of, told

if TYPE_CHECKING:
    from kvbench.instruments.session import Session

_SAID = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class OverBudget(MemoryError):
    """More than was allowed is about to be held; nothing of it was allocated."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, whichever library says so."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in text_of(error) for text in _SAID)


def attempt(session: Session, action: Callable[[], None]) -> MemoryError | None:
    """Run ``action``; what it held is given back where memory runs out.

    Returns:
        ``None`` where it fitted, else why not, without the traceback that would hold its tensors.
    """
    said: MemoryError
    try:
        action()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = type(error)(*error.args) if isinstance(error, OverBudget) else MemoryError(told(error))
    else:
        return None
    session.release()
    return said
