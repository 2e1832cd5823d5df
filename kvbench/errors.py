"""One error tree; each leaf carries the exit code that the command line returns.

    KvbenchError                    70
    ├── UsageError                   2   a flag, method, evaluator or parameter that cannot be used
    │   └── UnknownName              2   a name that no registry holds; carries the nearest ones
    ├── ModelError                   3   a model that cannot be found, fetched, loaded or compressed
    │   └── UnsupportedModel         3   a model whose attention kvbench would measure wrongly
    ├── CorpusError                  4   text that is missing, unreadable or too short
    ├── ResourceError                5   too little memory, disk or no such device
    ├── ResultError                  6   a result, journal or specification that cannot be read
    │   ├── PresetError              6   a preset file with a wrong key or value
    │   └── PublishedError           6   a file of published figures with a wrong key or value, or without its source
    ├── RunFailed                    7   the run ended without a usable result
    ├── MethodError                  7   a method that breaks what every method promises: its row fails
    └── RunBusy                      8   another process is writing this run

Every message says what happened and where; ``hint`` is the next command to try.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What ``kvbench`` returns to the shell."""

    OK = 0
    THRESHOLD = 1
    """A ``compare --fail-on`` threshold that was crossed, and nothing else."""
    USAGE = 2
    MODEL = 3
    CORPUS = 4
    RESOURCE = 5
    RESULT = 6
    RUN_FAILED = 7
    BUSY = 8
    CHECK = 9
    """A check of ``kvbench verify`` that failed."""
    INTERNAL = 70
    """An error that no message was written for: a fault of kvbench or of a plug-in, with its traceback in a log."""
    INTERRUPTED = 130


class KvbenchError(Exception):
    """Base of every error that a user can meet.

    Args:
        message: What happened and where, one line, no trailing full stop needed.
        hint: The next command or change to try; shown on its own line.
    """

    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(KvbenchError):
    """A flag, method, evaluator or parameter that cannot be used as given."""

    exit_code = ExitCode.USAGE


class UnknownName(UsageError):
    """A name that is not registered; the message lists the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str | None = None) -> None:
        self.kind, self.name = kind, name
        self.nearest = nearest(name, known)
        near = f"; did you mean {' or '.join(self.nearest)}?" if self.nearest else ""
        super().__init__(f"unknown {kind} '{name}'{near}", hint=hint or f"kvbench list {kind}s")


class ModelError(KvbenchError):
    """A model that cannot be found, fetched or loaded."""

    exit_code = ExitCode.MODEL


class UnsupportedModel(ModelError):
    """A model whose attention kvbench does not understand and so would measure wrongly."""


class CorpusError(KvbenchError):
    """Text that is missing, unreadable or shorter than the windows asked for."""

    exit_code = ExitCode.CORPUS


class ResourceError(KvbenchError):
    """Too little memory or disk, or a device that is not there."""

    exit_code = ExitCode.RESOURCE


class ResultError(KvbenchError):
    """A result file or journal that is missing, broken or of another schema."""

    exit_code = ExitCode.RESULT


class PresetError(ResultError):
    """A preset file that holds an unknown key or a value of the wrong kind."""


class PublishedError(ResultError):
    """A file of published figures that lacks a source or holds a value that cannot be used."""


class RunFailed(KvbenchError):
    """The run ended without a usable result."""

    exit_code = ExitCode.RUN_FAILED


class MethodError(KvbenchError):
    """A method that breaks what every method promises: scores that rank, tokens that exist, a prompt left as it was."""

    exit_code = ExitCode.RUN_FAILED


class RunBusy(KvbenchError):
    """Another process is writing this run."""

    exit_code = ExitCode.BUSY


TOLD_MOST = 1000
"""Characters of an error that are told; a log has the rest."""
_HALVES = re.compile("[\ud800-\udfff]")


def told(error: BaseException) -> str:
    """The first line of whatever others' code raised, fit for a file; empty if it says nothing."""
    first = next(iter(text_of(error).strip().splitlines()), "")
    short = first if len(first) <= TOLD_MOST else f"{first[:TOLD_MOST]} …"
    return _HALVES.sub("\ufffd", short)


def text_of(error: BaseException) -> str:
    """``str(error)``, of an error that cannot say so too."""
    try:
        return str(error)
    except Exception:
        return "no message can be had of it"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The registered names closest to ``name``, best first, then those that contain it (possibly none)."""
    names = sorted(known)
    contain = [other for other in names if len(name) > 2 and name in other]
    return list(dict.fromkeys([*difflib.get_close_matches(name, names, n=count, cutoff=0.5), *contain]))[:count]
