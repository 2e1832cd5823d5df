"""Kill a run's processes again and again, and compare what it measured with a run that was left alone.

    python tests/bench/bench_kills.py --kills 200

Supervisor, worker, pipe and journal are the real ones; a stub stands in for the model, so that a worker starts in a moment and every
figure is known. Half of the kills hit at an exact place: before, inside or after the writing of one event, units' first and last
ones included, in the worker or in the supervisor. The other half hit the worker, the supervisor or both at any moment. Prints a
table and a JSON line; the exit code is 1 if anything differs or fewer kills than asked for hit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from benching import ROOT, arguments, closing, listing

sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "stubs")]

import stub_engine  # noqa: E402  # after the path to it

stub_engine.install()

from stub_fixtures import stub_spec  # noqa: E402

from kvbench.engine import start  # noqa: E402
from kvbench.engine.journal import RunFolder  # noqa: E402
from kvbench.record import events as ev  # noqa: E402
from kvbench.record import results  # noqa: E402

EVENTS = ("UnitStarted", "MethodStarted", "RecordMade", "UnitFinished", "any")
OF_SUPERVISOR = ("RunResumed", "WorkerStarted", "TelemetrySampled")
PLACES = ("before", "inside", "after")
PATIENCE = 120.0
"""Seconds after which a run that does not go on is given up."""


def main() -> int:
    given = arguments(__doc__, kills=200, seed=0)
    with tempfile.TemporaryDirectory(prefix="kvbench-kills-") as name:
        root, began = Path(name), time.monotonic()
        os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path[:3][::-1]), "STUB_KILL": str(root / "kill.json")}
        spec = stub_spec("ms=25", samples=max(20, given.kills * 4))
        calm = numbers(start.run(spec, output_dir=root / "calm"))
        folder = start.create(spec, root / "killed")
        start.launch(folder)
        killer = Killer(folder, root / "kill.json", random.Random(given.seed))
        while len(killer.hits) < given.kills and killer.kill():
            pass
        until(folder, lambda: not folder.is_alive())
        return report(given, calm, folder, killer, time.monotonic() - began)


class Killer:
    """Kills one run, and has it go on each time."""

    def __init__(self, folder: RunFolder, plan: Path, rng: random.Random) -> None:
        self.folder, self._plan, self._rng = folder, plan, rng
        self.hits: list[tuple[str, str]] = []
        self._tail, self._died, self._worker = folder.tail(), 0, 0

    def kill(self) -> bool:
        """One more kill; ``False`` once the run is over."""
        hit = self._at_a_place() if self._rng.random() < 0.5 else self._at_any_moment()
        if hit is None:
            return False
        self.hits.append(hit)
        if not self.folder.is_alive():
            start.resume(self.folder)
        return True

    def _target(self, *among: str) -> str:
        """Never three workers of one supervisor in a row: it would rightly blame the place where they died."""
        tired = [target for target, _ in self.hits[-2:]] == ["worker"] * 2
        return self._rng.choice([target for target in among if not (tired and target == "worker")])

    def _look(self) -> None:
        for event in self._tail.poll():
            self._died += isinstance(event, ev.WorkerDied)
            self._worker = event.pid if isinstance(event, ev.WorkerStarted) else self._worker

    def _until(self, holds: Callable[[], bool] = lambda: False) -> None:
        """Until then, or until no process of the run lives."""
        until(self.folder, lambda: holds() or not self.folder.is_alive())

    def _until_dead(self, target: str) -> None:
        """Until a worker more has died; where the supervisor is meant, until nothing lives."""
        died = self._died

        def is_dead() -> bool:
            self._look()
            return target == "worker" and self._died > died

        self._until(is_dead)

    def _at_a_place(self) -> tuple[str, str] | None:
        target, how = self._target("worker", "supervisor"), self._rng.choice(PLACES)
        event = self._rng.choice(EVENTS if target == "worker" else (*EVENTS, *OF_SUPERVISOR))
        count = self._rng.randint(1, 9) if event == "any" else 1
        draft = self._plan.with_suffix(".draft")
        draft.write_text(json.dumps({"target": target, "event": event, "how": how, "count": count}))
        self._look()
        if event == "RunResumed":  # only a new supervisor says that, and the plan must be there before it and after the old one
            self._until(lambda: self._signal(self.folder.pid()))
            self._until()
        draft.rename(self._plan)
        if event == "RunResumed":
            start.resume(self.folder)
        if event == "WorkerStarted":  # and only after the one before ended
            self._until(self._end_worker)
        self._until_dead(target)
        if not self.folder.is_alive() and self.folder.state().is_over:
            return None
        return target, f"{how} {event}"

    def _at_any_moment(self) -> tuple[str, str] | None:
        target, end = self._target("worker", "supervisor", "both"), time.monotonic() + self._rng.uniform(0.0, 0.3)
        pids: list[int | None] = []

        def is_time() -> bool:
            """The moment has come, and all that are meant live."""
            self._look()
            pids[:] = [self._worker if target != "supervisor" else 0, self.folder.pid() if target != "worker" else 0]
            return time.monotonic() >= end and all(pid == 0 or is_living(pid) for pid in pids)

        self._until(is_time)
        if not self.folder.is_alive():
            return None
        for pid in pids:
            self._signal(pid)
        self._until_dead(target)
        return target, "any moment"

    def _end_worker(self) -> bool:
        """Of the newest that is known."""
        self._look()
        return self._signal(self._worker)

    def _signal(self, pid: int | None) -> bool:
        with suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signal.SIGKILL)
                return True
        return False


def is_living(pid: int | None) -> bool:
    try:
        return bool(pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def until(folder: RunFolder, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the run does not go on; its log ends in:\n{folder.log.read_text()[-2000:]}")
        time.sleep(0.005)


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """All that a run found, by name, without times."""
    found: dict[str, Any] = {
        f"{evaluator}/{method}/{key}": data
        for evaluator, methods in result["records"].items()
        for method, keys in methods.items()
        for key, data in keys.items()
    }
    rows = {f"row {row['method']}": (row["status"], row["audit"], row["total_tokens"], row["perplexity"]) for row in result["results"]}
    return {**found, **rows, "complete": result["complete"], "lost": result["lost"]}


def report(given: Namespace, calm: dict[str, Any], folder: RunFolder, killer: Killer, seconds: float) -> int:
    got, events = numbers(results.load(folder.path)), folder.read()
    missing, extra = sorted(calm.keys() - got.keys()), sorted(got.keys() - calm.keys())
    differ = sorted(name for name in calm.keys() & got.keys() if calm[name] != got[name])
    finished, told = Counter(e.unit for e in events if isinstance(e, ev.UnitFinished)), Counter(map(type, events))
    by_target, by_place = Counter(target for target, _ in killer.hits), Counter(place for _, place in killer.hits)
    found = {
        **{f"kills of {target}": count for target, count in sorted(by_target.items())},
        **{f"of all: {place}": count for place, count in sorted(by_place.items())},
        "workers started": told[ev.WorkerStarted], "resumed": told[ev.RunResumed], "units": len(folder.state().units),
        "units finished twice": sum(count > 1 for count in finished.values()),
        "records made again, counted once": told[ev.RecordMade] - sum("/" in name for name in got),
        "facts compared": len(calm), "lost": len(missing), "extra": len(extra), "different": len(differ), "seconds": round(seconds, 1),
    }  # fmt: skip
    listing(f"{given.kills} kills", found)
    for name in [*missing, *extra, *differ][:5]:
        print(f"  {name}: {calm.get(name)} became {got.get(name)}")
    is_same = calm == got and bool(calm["complete"])
    met = is_same and len(killer.hits) == given.kills
    closing("kills", asked=given.kills, kills=len(killer.hits), seed=given.seed, identical=is_same, **found, met=met)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
