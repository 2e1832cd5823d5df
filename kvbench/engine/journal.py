"""The run folder and its journal: the only truth about a run, built to outlive any kill.

One process, the supervisor, writes ``events.jsonl``; it holds ``lock`` while it lives. Readers need no
lock: they take whole lines only, so a line that is being written, or was torn by a kill, is not there yet.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from os.path import isfile
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import orjson

from kvbench.engine.tail import SCHEMA, Tail
from kvbench.errors import KvbenchError, ResourceError, ResultError, RunBusy, UnknownName, UsageError
from kvbench.files import read_bytes
from kvbench.record import events as ev
from kvbench.record.state import RunState, replay
from kvbench.spec import RunSpec

__all__ = ["EVENTS", "LOG", "RESULT", "SCHEMA", "SPEC", "Journal", "RunFolder", "Tail", "find_run", "is_run", "run_names"]

SPEC, EVENTS, LOG, RESULT, LOCK = "spec.json", "events.jsonl", "run.log", "result.json", "lock"


class Journal:
    """The writer's end. Opening it cuts off a last line that a kill tore.

    Raises:
        ResourceError: the disk is full or the file cannot be written; nothing half stays behind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ResourceError(
                f"{path} cannot be written: {error.strerror}", hint="give yourself the right to, then resume the run"
            ) from error
        self._size = _whole_lines(self._fd)
        os.ftruncate(self._fd, self._size)

    def append(self, event: ev.Event, *, sync: bool = False) -> None:
        """Write one event as one line; ``sync`` also puts everything so far onto the disk itself."""
        line = ev.encode(event)
        try:
            written = os.write(self._fd, line)
            while written < len(line):
                written += os.write(self._fd, line[written:])
            if sync:
                os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise ResourceError(f"{self._path} cannot be written: {error.strerror}", hint="free disk space, then resume the run") from error
        self._size += len(line)

    def is_in_place(self) -> bool:
        """Whether what is written can still be found under its name."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except OSError:
            return False

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _whole_lines(fd: int, block: int = 65536) -> int:
    """Bytes up to and including the last newline."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - block)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


@dataclass(frozen=True)
class RunFolder:
    """One run on disk: ``spec.json``, ``events.jsonl``, ``run.log``, ``result.json`` and ``lock``."""

    path: Path

    @classmethod
    def create(cls, spec: RunSpec, output_dir: Path, name: str | None = None) -> RunFolder:
        """A new folder that holds the question. It appears under its name whole or not at all.

        Args:
            name: Folder name; by default the time and the preset or model (``2026-11-22_14-03-05_smollm2``).

        Raises:
            UsageError: the name is taken, or the folder cannot be written.
        """
        draft = output_dir / f".creating-{uuid4().hex[:12]}"
        try:
            draft.mkdir(parents=True)
            (draft / SPEC).write_bytes(orjson.dumps(spec.to_plain(), option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise UsageError(f"{output_dir} cannot be written: {error.strerror}", hint="choose another folder with --output-dir") from error
        stem = name or f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{_slug(spec)}"
        for target in [stem] if name else [stem, *(f"{stem}-{n}" for n in range(2, 1000))]:
            try:
                return cls(draft.rename(output_dir / target))
            except OSError:
                continue
        (draft / SPEC).unlink()
        draft.rmdir()
        raise UsageError(f"{output_dir / stem} exists already", hint=f"kvbench run --resume {stem}, or another --name")

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def result(self) -> Path:
        return self.path / RESULT

    def spec(self) -> RunSpec:
        """The question that the folder was made for.

        Raises:
            ResultError: ``spec.json`` is missing or broken.
        """
        try:
            return RunSpec.from_plain(orjson.loads(read_bytes(self.path / SPEC))).validate()
        except (OSError, orjson.JSONDecodeError) as error:
            raise ResultError(f"{self.path / SPEC} cannot be read: {error}", hint="start a new run") from error
        except KvbenchError as error:
            raise ResultError(f"{self.path / SPEC}: {error.message}", hint="start a new run") from error

    def tail(self) -> Tail:
        return Tail(self.path / EVENTS, self._plan_again)

    def _plan_again(self, at: float) -> ev.RunStarted:
        """The journal's first event, made from ``spec.json``: the plan is a pure function of it. By which kvbench is not known."""
        from kvbench.engine.plan import laid_out

        spec = self.spec()
        units, labels = laid_out(spec)
        if not units or not labels:
            raise ResultError(f"{SPEC} names no methods")
        return ev.RunStarted(at, spec.to_plain(), [unit.to_plain() for unit in units], labels, "", SCHEMA)

    def read(self) -> Sequence[ev.Event]:
        """Every whole event so far; a torn last line is not one, and neither is one that cannot be read."""
        return self.tail().poll()

    def state(self) -> RunState:
        return replay(self.read())

    def writer(self) -> Journal:
        return Journal(self.path / EVENTS)

    def has_question(self) -> bool:
        """Whether there is a run here at all."""
        return (self.path / SPEC).is_file()

    def is_there(self, journal: Journal) -> bool:
        """Whether the folder that ``journal`` and the lock lie in is still under its name: another could be begun there otherwise."""
        return journal.is_in_place() and (self.path / LOCK).exists()

    def acquire(self, patience: float = 1.0) -> int:
        """Take the lock and return its descriptor; it is held until every copy of the descriptor is closed.

        The lock goes to a child that inherits the descriptor, so a run has an owner from before its
        supervisor's first instruction to its last. ``patience`` (seconds) outlasts a reader's probe.

        Raises:
            RunBusy: a living process holds it. ResourceError: it cannot be written.
        """
        try:
            fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ResourceError(f"{self.path / LOCK} cannot be written: {error.strerror}", hint="check the folder's rights") from error
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(fd, 0)  # a dead owner's process id must not be signalled
                return fd
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    raise RunBusy(f"{self.path} is being written by process {self.pid()}", hint=f"kvbench watch {self.path}") from None
                time.sleep(0.02)

    def is_alive(self) -> bool:
        """Whether a supervisor holds this run now."""
        try:
            fd = os.open(self.path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ResultError(f"{self.path / LOCK} cannot be read: {error.strerror}", hint="check the folder's rights") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def pid(self) -> int | None:
        """The supervisor, as it wrote itself into the lock; it lives only if :meth:`is_alive`. ``None``: not yet known."""
        try:
            return int((self.path / LOCK).read_text() or 0) or None
        except (OSError, ValueError):
            return None


def _slug(spec: RunSpec) -> str:
    stem = Path(spec.preset or spec.model.id.removeprefix("embedded:")).name
    return re.sub(r"[^A-Za-z0-9.]+", "-", stem.removesuffix(".toml").removesuffix(".gguf")).strip("-.").lower() or "run"


def is_run(path: Path) -> bool:
    return any(isfile(path / part) for part in (SPEC, EVENTS, RESULT))


def run_names(output_dir: Path) -> list[str]:
    """Names of the runs under ``output_dir``, oldest name first; of a folder that cannot be read none."""
    try:
        return sorted(p.name for p in output_dir.iterdir() if not p.name.startswith(".") and is_run(p))
    except OSError:
        return []


def find_run(text: str, output_dir: Path) -> RunFolder:
    """A run's folder, or its name under ``output_dir``.

    Raises:
        UnknownName: neither; the message has the nearest names.
    """
    for candidate in (Path(text), output_dir / text):
        if is_run(candidate):
            return RunFolder(candidate)
    names = run_names(output_dir)
    hint = f"the newest under {output_dir} is {names[-1]}" if names else f"no run is under {output_dir}; use --output-dir"
    raise UnknownName("run", text, names, hint=hint)
