"""Killing a run over and over must not change a number.

A benchmark that takes hours will be killed: by the scheduler, by the out-of-memory killer, by a closed laptop. What it then
resumes to must be what it would have been, or nobody can trust a resumed figure. This script scores a tiny model (random
weights, saved to a folder with a tokenizer of its own, so that perplexity is measured) once undisturbed and once under
SIGKILLs of the worker, the supervisor, or both, at random seeded moments: some while it starts, calibrates or audits, most
while it scores. A killed supervisor's run is resumed through ``kvbench run --resume``; a killed worker is the supervisor's
to replace. Every record but its times, every row's status and audit, and the count of finished units must then be identical.

    python tests/bench/bench_kills.py [--kills 20] [--seed 0]
    python tests/bench/bench_kills.py --kills 3 --samples 12 --methods knorm,int8

The exit code is 1 if anything differs or fewer kills than asked for hit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kvbench import events as ev
from kvbench import results
from kvbench.engine.journal import RunFolder

METHODS = "knorm,snapkv,tova,int8,kivi:bits=2,v_lowrank"
TARGETS = ("worker", "supervisor", "both")
AT_START = 0.25
"""Share of kills whose moment is drawn from the time before the first unit."""
PROGRESS = 0.7
"""Share of the scoring that kills are spread over: the run must still be going on at the last one."""
PATIENCE = 900.0
"""Seconds after which a run that does not go on is given up."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz    "
"""Of the text."""
TIMES = frozenset({"seconds"})
"""Fields of a record that no two runs share."""


def main() -> int:
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="kvbench-kills-") as name:
        root = Path(name)
        _make_model(root / "model", given.seed)
        _make_corpus(root / "corpus.txt", given)
        calm = _Run(root, "calm", given)
        calm.start()
        calm.wait_until(lambda: calm.is_over)
        pace = _Pace.of(calm.folder, given.kills)
        killed = _Run(root, "killed", given)
        killed.start()
        hits = list(_kills(killed, pace, given))
        killed.wait_until(lambda: killed.is_over)
        return _report(given, calm, killed, hits)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--samples", type=int, default=200, help="Windows to score: enough that the run outlasts the kills.")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--continuation", type=int, default=64)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seed", type=int, default=0, help="Of weights, text and moments.")
    return parser.parse_args()


# -- a model and a text that need nothing


def _make_model(folder: Path, seed: int) -> None:
    """A tiny model with 128 tokens: one for each byte of plain text, as in a byte-level BPE without merges."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from kvbench.engine.tiny import make_tiny_config

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**make_tiny_config("qwen2"))).save_pretrained(folder)
    plain, end = [*map(chr, range(33, 127)), "Ġ", "Ċ"], "<|endoftext|>"  # space and newline as byte-level BPE spells them
    rest = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(plain))
    vocabulary = {token: i for i, token in enumerate([end, *plain, *rest][:128])}
    letters = Tokenizer(models.BPE(vocabulary, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=letters, eos_token=end).save_pretrained(folder)


def _make_corpus(path: Path, given: argparse.Namespace) -> None:
    """Random words: text that this model predicts no worse than any other."""
    rng, count = random.Random(given.seed), given.samples * (given.context + given.continuation) + 1000
    path.write_text("".join(rng.choice(CHARACTERS) for _ in range(count)))


# -- a run and its processes


@dataclass
class _Run:
    """A run driven by the command line; ``kvbench run`` follows it until it ends or is killed."""

    root: Path
    name: str
    given: argparse.Namespace
    resumes: int = 0
    _command: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.root / self.name)

    @property
    def is_over(self) -> bool:
        return self.folder.state().is_over and not self.folder.is_alive()

    def start(self) -> None:
        g = self.given
        sizes = ["--samples", str(g.samples), "--context", str(g.context), "--continuation", str(g.continuation), "--seed", str(g.seed)]
        what = ["--model", str(self.root / "model"), "--corpus", str(self.root / "corpus.txt"), "--methods", g.methods]
        self._follow(*what, *sizes, "--evals", "perplexity", "--device", "cpu", "--dtype", "float32", "--name", self.name)

    def resume(self) -> None:
        """``kvbench run --resume``, once the command that followed the killed run has seen its end."""
        if self._command is not None:
            self._command.wait(PATIENCE)
        self.resumes += 1
        self._follow("--resume", str(self.folder.path))

    def _follow(self, *arguments: str) -> None:
        """Start the command; each run has a cache folder of its own, so that calibration is done and killed too."""
        command = [sys.executable, "-m", "kvbench", "run", *arguments, "--output-dir", str(self.root), "--display", "none"]
        environment = {**os.environ, "KVBENCH_CACHE": str(self.root / f"cache-{self.name}"), "HF_HUB_OFFLINE": "1"}
        with (self.root / f"{self.name}.talk").open("ab") as talk:
            self._command = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=talk, stderr=talk, env=environment)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"run '{self.name}' does not go on:\n{(self.root / f'{self.name}.talk').read_text()}")
            time.sleep(0.02)

    def worker(self) -> int | None:
        """The living worker, or ``None``: the journal may name one that is dead."""
        import psutil

        pid = self.folder.state().worker_pid
        with suppress(psutil.NoSuchProcess):
            if pid is not None and psutil.Process(pid).ppid() == self.supervisor():
                return pid if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else None
        return None

    def supervisor(self) -> int | None:
        return self.folder.pid() if self.folder.is_alive() else None


# -- killing


@dataclass(frozen=True)
class _Pace:
    """How long kills may wait, from an undisturbed run.

    Attributes:
        starting: Seconds from the first event to the first unit. between: Most seconds from a resumed unit to a kill.
    """

    starting: float
    between: float

    @classmethod
    def of(cls, folder: RunFolder, kills: int) -> _Pace:
        events, state = folder.read(), folder.state()
        if state.status != "finished":
            raise RuntimeError(f"the undisturbed run {state.status}: {state.error}")
        first = next(e.at for e in events if isinstance(e, ev.UnitStarted))
        working = sum(e.seconds for e in events if isinstance(e, ev.UnitFinished))
        return cls(first - events[0].at, 2 * PROGRESS * working / max(1, kills * (1 - AT_START)))


@dataclass(frozen=True)
class _Hit:
    target: str
    unit: str | None
    done: int


def _kills(run: _Run, pace: _Pace, given: argparse.Namespace) -> Iterator[_Hit]:
    """SIGKILLs at random moments until there were enough or the run is over.

    Targets come in shuffled rounds: a supervisor must never see three workers in a row killed at one place, which it
    would rightly blame on the method there.
    """
    rng, order = random.Random(given.seed), [*TARGETS]
    for number in range(given.kills):
        if number % len(TARGETS) == 0:
            rng.shuffle(order)
        events_before = len(run.folder.read())
        if rng.random() < AT_START:
            _pause(run, rng.uniform(0, pace.starting))
        else:
            run.wait_until(lambda n=events_before: run.is_over or _is_working(run.folder, n))  # type: ignore[misc]
            _pause(run, rng.uniform(0, pace.between))
        hit = _kill(run, order[number % len(TARGETS)])
        if hit is None:
            return
        print(f"kill {number + 1}: {hit.target} in {hit.unit or 'its start'}, {hit.done} units done", file=sys.stderr)
        yield hit
        if hit.target != "worker":
            run.resume()


def _is_working(folder: RunFolder, after: int) -> bool:
    """Whether a unit was begun since the journal had ``after`` events."""
    return any(isinstance(e, ev.UnitStarted) for e in folder.read()[after:])


def _pause(run: _Run, seconds: float) -> None:
    end = time.monotonic() + seconds
    run.wait_until(lambda: time.monotonic() >= end or run.is_over)


def _kill(run: _Run, target: str) -> _Hit | None:
    """Kill what ``target`` names as soon as it lives; ``None`` if the run is over."""
    pids: list[int | None] = [None]

    def found() -> bool:
        pids[:] = [run.worker() if target != "supervisor" else 0, run.supervisor() if target != "worker" else 0]
        return None not in pids or run.is_over

    run.wait_until(found)
    if None in pids or run.is_over:
        return None
    unit, done = _in_flight(run.folder)
    for pid in filter(None, pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if target == "worker":
        run.wait_until(lambda: run.worker() != pids[0])
    else:
        run.wait_until(lambda: not run.folder.is_alive())
    return _Hit(target, unit, done)


def _in_flight(folder: RunFolder) -> tuple[str | None, int]:
    """The unit that the living worker is in, or ``None``, and how many units are done."""
    unit, done = None, 0
    for event in folder.read():
        if isinstance(event, ev.UnitFinished):
            done += 1
        if isinstance(event, (ev.WorkerStarted, ev.UnitStarted, ev.UnitFinished)):
            unit = event.unit if isinstance(event, ev.UnitStarted) else None
    return unit, done


# -- comparing


def _numbers(run: _Run) -> dict[str, Any]:
    """All that a run found, by name, without times."""
    result = results.load(run.folder.path)
    found: dict[str, Any] = {
        f"{evaluator}/{method}/{key}": {name: value for name, value in data.items() if name not in TIMES}
        for evaluator, methods in result["records"].items()
        for method, keys in methods.items()
        for key, data in keys.items()
    }
    rows = {f"row {row['method']}": (row["status"], row["audit"], row["total_tokens"], row["avg_nll"]) for row in result["results"]}
    done = Counter(e.unit for e in run.folder.read() if isinstance(e, ev.UnitFinished))
    return {**found, **rows, "units finished": dict(done), "complete": result["complete"], "lost": result["lost"]}


def _report(given: argparse.Namespace, calm: _Run, killed: _Run, hits: list[_Hit]) -> int:
    expected, got = _numbers(calm), _numbers(killed)
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    differ = [name for name in expected.keys() & got.keys() if expected[name] != got[name]]
    events = killed.folder.read()
    again = sum(isinstance(e, ev.RecordMade) for e in events) - sum("/" in name for name in got)
    by_target = Counter(hit.target for hit in hits)
    rows = [
        *((f"kills of {'both' if target == 'both' else f'the {target}'}", by_target[target]) for target in TARGETS),
        ("of them before a unit was begun or between two", sum(hit.unit is None for hit in hits)),
        ("resumed by kvbench run --resume", killed.resumes),
        ("workers started", sum(isinstance(e, ev.WorkerStarted) for e in events)),
        ("units", len(killed.folder.state().units)),
        ("records made", sum("/" in name for name in got)),
        ("records made again, counted once", again),
        ("facts compared", len(expected)),
        ("lost", len(missing)),
        ("counted twice or extra", len(extra)),
        ("different", len(differ)),
    ]
    print(tabulate(rows, headers=[f"{given.kills} kills", ""]))
    for name in [*missing, *extra, *sorted(differ)][:5]:
        print(f"  {name}: {expected.get(name)} became {got.get(name)}")
    is_same = not missing and not extra and not differ and bool(expected["complete"])
    facts = {"bench": "kills", "asked": given.kills, "kills": len(hits), "seed": given.seed, "identical": is_same, **dict(rows)}
    print(json.dumps({**facts, "met": is_same and len(hits) == given.kills}))
    return 0 if is_same and len(hits) == given.kills else 1


if __name__ == "__main__":
    sys.exit(main())
