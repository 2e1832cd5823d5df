"""What breaks while figures are made of a file's data is the file's fault, and is told as one.

Types and names are held to what they must be where a file is read (:mod:`kvbench.record.schema`). What no type can say, such as lists
of unequal lengths in two samples, shows only in the sums. Nothing else belongs in here: what a program computes from its own
data breaks as loudly as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvbench.errors import KvbenchError, ResultError, UsageError, told


@contextmanager
def figures_of(file: object, hint: str = "kvbench run writes a new one") -> Iterator[None]:
    """Compute figures from ``file``'s data alone within this block.

    Raises:
        ResultError: they cannot be computed; names the file and, where :mod:`kvbench.record.summary` told it, the records. The error
            itself is its cause.
    """
    try:
        yield
    except UsageError as error:  # what the file asks for: an evaluator that is not there, a parameter that cannot be
        raise ResultError(f"{file}: {error.message}", hint=error.hint or hint) from error
    except (KvbenchError, OSError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        place = "".join(f", {note}" for note in getattr(error, "__notes__", ())[:1])
        what = f"{type(error).__name__}: {told(error) or 'no message'}"
        raise ResultError(f"{file}{place}: figures cannot be made of what it holds ({what})", hint=hint) from error
