"""Whether tests notice: a seeded sample of small changes to the code, each held against the tests that run its line.

cosmic-ray makes the changes (``+`` to ``-``, ``<`` to ``<=``, a number by one, a loop that never runs, …) in a copy of the tree.
A room's tests run once unchanged, which says what each covers and costs; then a mutant meets the tests that cover its line,
cheapest first, until one fails (``killed``), a limit of CPU seconds is passed (``timeout``) or none is left (``survived``). Dear
tests and what runs in processes of their own are not asked: a survivor is a place to look at. 40 mutants of ``scoring`` took 262 CPU
seconds, 52 of them to see what its tests cover; ``caches`` has the dearest tests.

    pip install 'kvbench[dev,mutation]'
    python tests/bench/bench_mutants.py --room caches --sample 60 --json caches.json
    python tests/bench/bench_mutants.py --room caches --again caches.json    # what survived then
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import coverage
import pytest
from benching import ROOT, arguments, closing, option, picked, refuse, table, talk
from forking import forked, spent
from mutating import Mutant, again, sample

COPIED = ("kvbench", "presets", "tests", "pyproject.toml", "README.md", "CHANGELOG.md")
PRELOADED = ("scipy.stats", "torch", "transformers.models.llama.modeling_llama", "datasets", "hypothesis")
"""What is dear to import and not kvbench's: imported once, and every test's process is forked from this one."""
DEAR, ASKED = 6.0, 15.0
"""CPU seconds of a test that is not asked, and of all that a mutant meets."""
OWN = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
LOST = ("survived", "uncovered")


@dataclass(frozen=True)
class Room:
    """Files that are changed; names of the files of tests, and what pytest's ``-k`` leaves of them."""

    sources: tuple[str, ...]
    tests: str
    chosen: str = ""


ROOMS = {
    "metrics": Room(
        ("kvbench/metrics/*.py",),
        "stats accuracy paired front evaluators interleaving capacity sameness compare drift factors reconstruction rounding speed",
        "not embedded and not test_in_float64_no_row_moves",
    ),
    "scoring": Room(
        ("kvbench/instruments/scoring.py", "kvbench/instruments/protocol.py"),
        "scoring protocol contract drift reconstruction answers sweep kvpress_plugin rounding growth",
        "not embedded and not test_in_float64_no_row_moves",
    ),
    "audit": Room(
        tuple(f"kvbench/instruments/{name}.py" for name in ("audit", "transplant", "canary", "holding", "told", "identity", "rounding")),
        "audit transplant kvpress_plugin rounding unwritable",
    ),
    "caches": Room(
        ("kvbench/caches/*.py",),
        "packing ledger contract rope reckon minicache think asymkv turboquant quantisers key_scores kvzap lowrank kvpress_plugin"
        " composition sameness growth transplant conformance",
        "not qwen and not mistral",
    ),
}


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: killed, timeout, survived, or run by no test that is asked (uncovered)."""

    mutant: Mutant
    fate: str
    seconds: float


COLUMNS = {
    "room": "{room}", "mutants": "{mutants:}", "killed": "{killed:}", "timeout": "{timeout:}", "survived": "{survived:}",
    "uncovered": "{uncovered:}", "score": "{score:.0%}", "CPU s": "{cpu_seconds:.0f}",
}  # fmt: skip


def main() -> None:
    given = arguments(
        __doc__,
        room=option("", "One of " + ", ".join(ROOMS) + "; all if not given."),
        sample=option(50, "Mutants a room; every file has one at least."),
        seed=0,
        asked=option(ASKED, "CPU seconds of tests that a mutant meets at most."),
        again=option("", "What --json wrote: try those that survived then."),
        json=option("", "A file for the JSON line."),
        coverage=option("", "A folder to keep what tests cover, for as long as neither they nor the code change."),
    )
    if given.room not in ("", *ROOMS):
        refuse(f"no room is called {given.room}")
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        tree = _copy(Path(folder))
        _tell({name: _hunt(tree, name, given) for name in ([given.room] if given.room else ROOMS)}, given)


def _copy(folder: Path) -> Path:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _hunt(tree: Path, name: str, given: Namespace) -> list[Fate]:
    """Each mutant of a room with its fate."""
    if given.again:
        then = json.loads(Path(given.again).read_text())["rooms"][name]["lost"]
        mutants = again([fate["mutant"] for fate in then])
    else:
        mutants = sample(_files(ROOMS[name]), given.sample, random.Random(given.seed))
    covered = _covered(tree, name, Path(given.coverage or tree))
    fates: list[Fate] = []
    for mutant in mutants:
        fates.append(_meet(tree, covered, mutant, given.asked))
        talk(f"{len(fates)}/{len(mutants)} {fates[-1].fate} {fates[-1].seconds:.0f} s {mutant.path}:{mutant.line}")
    return fates


def _files(room: Room) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in room.sources for path in ROOT.glob(pattern))


# -- what tests cover


def _covered(tree: Path, name: str, kept: Path) -> dict[str, Any]:
    """``lines``: path → line → the tests that run it; ``seconds``: test → CPU seconds, of the tests that pass."""
    path = kept / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fate, seconds = forked(tree, lambda: _trace(tree, ROOMS[name], path), 7200.0)
        if fate != "survived":
            sys.exit(f"the tests of {name} fail unchanged ({fate}):\n{(tree / 'log').read_text()[-2000:]}")
        talk(f"{name}: {seconds:.0f} CPU s to see what tests cover")
    covered: dict[str, Any] = json.loads(path.read_text())
    return covered


class _Timed:
    """Gives each test a context of its own, and notes what it took and which did not pass."""

    def __init__(self, cover: coverage.Coverage) -> None:
        self.cover = cover
        self.seconds: dict[str, float] = {}
        self.lost: set[str] = set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.cover.switch_context(item.nodeid)
        started = spent(*OWN)
        yield
        self.seconds[item.nodeid] = spent(*OWN) - started

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.lost.add(report.nodeid)

    def held(self) -> dict[str, float]:
        return {test: seconds for test, seconds in self.seconds.items() if test not in self.lost}


def _trace(tree: Path, room: Room, path: Path) -> int:
    cover = coverage.Coverage(include=[str(tree / file) for file in _files(room)], data_file=None)
    timed = _Timed(cover)
    cover.start()
    _pytest([f"tests/test_{test}.py" for test in room.tests.split()], "-k", room.chosen, plugins=[timed])
    cover.stop()
    data = cover.get_data()
    lines = {str(Path(file).relative_to(tree)): data.contexts_by_lineno(file) for file in data.measured_files()}
    path.write_text(json.dumps({"lines": lines, "seconds": timed.held()}))
    return 0 if timed.held() else 1


def _pytest(tests: Sequence[str], *flags: str, plugins: Sequence[object] = ()) -> int:
    quiet = ("-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-o", "timeout=0")
    return int(pytest.main([*tests, *quiet, *flags], plugins=plugins))


# -- what a mutant meets


def _meet(tree: Path, covered: Mapping[str, Any], mutant: Mutant, most: float) -> Fate:
    tests = _asked(covered, mutant, most)
    if not tests:
        return Fate(mutant, "uncovered", 0.0)
    target = tree / mutant.path
    target.write_text(mutant.changed())
    try:
        fate, seconds = forked(tree, lambda: _pytest(tests, "-x"), 10 + 3 * sum(covered["seconds"][test] for test in tests))
    finally:
        shutil.copy2(ROOT / mutant.path, target)
    return Fate(mutant, fate, seconds)


def _asked(covered: Mapping[str, Any], mutant: Mutant, most: float) -> list[str]:
    """The tests that run the mutant's line, cheapest first; those of its file, if the line runs when the file is imported."""
    seconds, lines = covered["seconds"], covered["lines"].get(mutant.path, {})
    tests = set(lines.get(str(mutant.line), ()))
    if tests == {""}:
        tests = {test for of in lines.values() for test in of}
    chosen: list[str] = []
    for test in sorted((test for test in tests if seconds.get(test, DEAR) < DEAR), key=lambda test: (seconds[test], test)):
        most -= seconds[test]
        if most < 0:
            break
        chosen.append(test)
    return chosen


# -- what is said


def _tell(fates: Mapping[str, Sequence[Fate]], given: Namespace) -> None:
    rooms = {name: _counted(found) for name, found in fates.items()}
    for fate in (fate for found in fates.values() for fate in found if fate.fate in LOST):
        print(f"{fate.fate} {fate.mutant.path}:{fate.mutant.line} {fate.mutant.operator}\n{fate.mutant.change()}")
    table(({"room": name, **room} for name, room in rooms.items()), COLUMNS)
    closing("mutants", **picked(given, "seed sample asked"), rooms=rooms)
    if given.json:
        Path(given.json).write_text(json.dumps({"rooms": rooms}))


def _counted(fates: Sequence[Fate]) -> dict[str, Any]:
    """Counts by fate; the score is the share that was noticed, by a failure or by a limit."""
    counts = {fate: sum(one.fate == fate for one in fates) for fate in ("killed", "timeout", *LOST)}
    score = round((counts["killed"] + counts["timeout"]) / len(fates), 3) if fates else None
    seconds = round(sum(one.seconds for one in fates))
    return {
        "mutants": len(fates),
        **counts,
        "score": score,
        "cpu_seconds": seconds,
        "lost": [asdict(one) for one in fates if one.fate in LOST],
    }


if __name__ == "__main__":
    main()
