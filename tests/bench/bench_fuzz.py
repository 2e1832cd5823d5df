"""Damage every kind of file that kvbench reads, and see that each ends as it should: read, or refused with a reason.

    python tests/bench/bench_fuzz.py                       all readers, 12,000 inputs
    python tests/bench/bench_fuzz.py journal --count 500   one reader
    python tests/bench/bench_fuzz.py result --only 417     one input again, with what it said

An input is damaged by the numbers of its seed, so that it can be made again. It counts as *unexpected* if kvbench met an
error that no message was written for (exit code 70), returned 1 without a threshold, or broke out of ``main``; as a *hang* if it
took longer than the limit, in seconds of the processor or six times that by the clock. Readers run in this process; one in so
many inputs is given to a process of its own as well.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import torch
from bench_gguf import finished
from benching import REFERENCE, ROOT, Column, arguments, closing, command, option, table, talk, timed
from safetensors.torch import save

from kvbench import cli, published
from kvbench.calibration.files import load_tensors
from kvbench.engine import start
from kvbench.errors import KvbenchError
from kvbench.texts.corpora import open_text

METHODS = ("baseline", "random", "snapkv", "kivi:bits=2", "int8")
"""Rows that the small copy of the reference keeps."""
LIMIT = 10.0
"""Seconds of the processor that an input may take."""
VALUES: Sequence[Any] = (
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63 - 1, -(2**63), 0.0, -0.5, 1e308, 5e-324, "", "x", "-1", "NaN", "\x1b[31m", "a" * 5000,
    "9" * 5000, "..", "/", "baseline", [], {}, [[]], [None], {"": None}, [0] * 3, {"x": [1]}, "\u202e", "0", "1e999",
)  # fmt: skip


class Hang(BaseException):
    """The alarm rang."""


# Damage ---------------------------------------------------------------------------------------


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """One or two accidents of a disk or an editor."""
    for _ in range(rng.choice((1, 1, 2))):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 3, 40, 400, 4096))
        data = ACCIDENTS[rng.randrange(len(ACCIDENTS))](data, at, size, rng)
    return data


def _a_bit(data: bytes, at: int, size: int, rng: random.Random) -> bytes:
    if not data:
        return _a_number(data, at, size, rng)
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _lines(data: bytes, at: int, size: int, rng: random.Random) -> bytes:
    """One is lost, or all are in another order."""
    lines = data.split(b"\n")
    rng.shuffle(lines) if rng.random() < 0.2 else lines.pop(rng.randrange(len(lines)))
    return b"\n".join(lines)


def _a_number(data: bytes, at: int, size: int, rng: random.Random) -> bytes:
    number = rng.choice((b"9" * 5000, b"1e999", b"-1", b"NaN", b"0", b"null", b"9223372036854775807"))
    digits = [i for i in range(len(data)) if data[i : i + 1].isdigit() and not data[i - 1 : i].isdigit()]
    if not digits:
        return data
    start = end = rng.choice(digits)
    while data[end : end + 1].isdigit():
        end += 1
    return data[:start] + number + data[end:]


ACCIDENTS: Sequence[Callable[[bytes, int, int, random.Random], bytes]] = (
    lambda data, at, size, rng: data[:at],
    lambda data, at, size, rng: data[:at] + bytes(size) + data[at + size :],
    lambda data, at, size, rng: data[:at] + data[at + size :],
    lambda data, at, size, rng: data[:at] + data[max(0, at - size) : at] + data[at:],
    lambda data, at, size, rng: data[:at] + rng.randbytes(min(size, 40)) + data[at:],
    _a_bit,
    lambda data, at, size, rng: rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"[" * 100_000, b"\x80\x04")) + data,
    _lines,
    _a_number,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into nested data; of long lists and maps the first few."""
    yield path
    items = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    for key, value in items[:60]:
        yield from places(value, (*path, key))


def damaged_data(data: Any, rng: random.Random, paths: Sequence[tuple[Any, ...]]) -> Any:
    """A copy with one or two fields of another value, left out, or there under another name."""
    data = json.loads(json.dumps(data))
    for path in rng.sample(paths, rng.choice((1, 1, 2))):
        parent = data
        try:
            for key in path[:-1]:
                parent = parent[key]
            kind = rng.randrange(4)
            if not path:
                data = rng.choice(VALUES)
            elif kind == 0 and isinstance(parent, dict):
                del parent[path[-1]]
            elif kind == 1 and isinstance(parent, dict):
                parent[str(rng.choice(("x", "", "0", path[-1] + "x", "\x1b")))] = parent.pop(path[-1])
            elif kind == 1 and isinstance(parent, list):
                parent.append(parent[path[-1]])
            else:
                parent[path[-1]] = rng.choice(VALUES)
        except (KeyError, IndexError, TypeError):
            continue
    return data


# Readers --------------------------------------------------------------------------------------


def small_result() -> dict[str, Any]:
    """The reference with a few methods and samples."""
    result: dict[str, Any] = json.loads((REFERENCE / "result.json").read_text())
    result["results"] = [row for row in result["results"] if row["method"] in METHODS]
    result["records"] = {
        name: {label: dict(list(of.items())[:3]) for label, of in methods.items() if label in METHODS}
        for name, methods in result["records"].items()
    }
    result["spec"]["methods"] = [m for m in result["spec"]["methods"] if _label(m) in METHODS]
    return result


def small_journal() -> list[dict[str, Any]]:
    """The reference's events of a few methods."""
    events: list[dict[str, Any]] = [json.loads(line) for line in (REFERENCE / "events.jsonl").read_text().splitlines()]
    events = [e for e in events if e.get("method") in (None, *METHODS) and e["event"] != "TelemetrySampled"]
    events[0]["methods"] = [label for label in events[0]["methods"] if label in METHODS]
    for unit in events[0]["units"]:
        unit["methods"] = [label for label in unit["methods"] if label in METHODS]
    events[0]["spec"]["methods"] = [m for m in events[0]["spec"]["methods"] if _label(m) in METHODS]
    return events


def _label(method: dict[str, Any]) -> str:
    given = ",".join(f"{key}={value}" for key, value in method["params"])
    return f"{method['name']}:{given}" if given else str(method["name"])


def as_json(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")


class Reader:
    """Makes damaged inputs of one kind, and gives each to kvbench.

    Args:
        folder: An empty one to write to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, rng: random.Random) -> list[str]:
        """Write an input; the command's arguments."""
        raise NotImplementedError

    def call(self, arguments: list[str]) -> int:
        return cli.main(arguments)

    def write(self, name: str, raw: bytes) -> str:
        """The path of a file of the folder that holds ``raw``."""
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(raw)
        return str(file)


class Result(Reader):
    """``result.json`` in ``show``, ``report`` and ``compare``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = small_result()
        self.raw = as_json(self.data)
        self.paths = [*places(self.data)]
        self.whole = self.write("whole.json", self.raw)

    def make(self, rng: random.Random) -> list[str]:
        raw = damaged_bytes(self.raw, rng) if rng.random() < 0.3 else as_json(damaged_data(self.data, rng, self.paths))
        name, whole = self.write("result.json", raw), self.whole
        return rng.choice((
            ["show", name], ["show", name, "--format", "json"], ["report", name], ["report", name, "--format", "html"],
            ["report", name, "--format", "markdown"], ["compare", name, whole], ["compare", whole, name, "--format", "json"],
            ["compare", whole, name, "--format", "csv"], ["compare", whole, name, "--format", "markdown"],
        ))  # fmt: skip


class Journal(Reader):
    """``events.jsonl`` and ``spec.json`` in ``show``, ``watch`` and ``run --resume`` (which then starts nothing)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.events = small_journal()
        self.spec = self.events[0]["spec"]
        self.paths = [*places(self.spec)]

    def make(self, rng: random.Random) -> list[str]:
        run = self.folder / "run"
        for file in run.glob("*"):
            file.unlink()
        kind, events, spec = rng.random(), self.events[: rng.randrange(2, len(self.events) + 1)], as_json(self.spec)
        lines = [as_json(event) for event in events]
        if kind < 0.35:
            raw = damaged_bytes(b"\n".join(lines) + b"\n", rng)
        elif kind < 0.85:
            for at in rng.sample(range(len(events)), min(len(events), rng.choice((1, 2)))):
                lines[at] = as_json(damaged_data(events[at], rng, [*places(events[at])]))
            if rng.random() < 0.1:
                lines.pop(0)
            raw = b"\n".join(lines) + b"\n"
        else:
            raw = b"\n".join(lines[: rng.choice((0, 1, len(lines)))]) + b"\n"
            spec = damaged_bytes(spec, rng) if rng.random() < 0.4 else as_json(damaged_data(self.spec, rng, self.paths))
        self.write("run/events.jsonl", raw)
        self.write("run/spec.json", spec)
        return rng.choice((
            ["show", str(run)], ["show", str(run), "--format", "json"], ["watch", str(run), "--display", "plain"],
            ["run", "--resume", str(run), "--display", "plain"], ["report", str(run)],
        ))  # fmt: skip

    def call(self, arguments: list[str]) -> int:
        with mock.patch.object(start, "launch", return_value=None):
            return super().call(arguments)


class Specs(Reader):
    """What is typed for methods, evaluators, budgets and sizes."""

    PARTS = (
        "snapkv", "kivi", "int8", "baseline", "random", ":", ",", "=", "+", "@", "bits", "window", "x", "4x", "2", "-1", "0", "1e9", "nan",
        "9" * 5000, "²", "true", "14KiB/token", " ", "'", "\x00", "é", "compression_ratio", "0.5", "speed", "perplexity", "batch", "all",
        "v_lowrank", "rank", "head_dim", "[", "decode", "hold", "kvpress", "\udcff",
    )  # fmt: skip

    def make(self, rng: random.Random) -> list[str]:
        text = "".join(rng.choice(self.PARTS) for _ in range(rng.randrange(1, 9)))
        small = ["--context", "64", "--samples", "1", "--dry-run"]
        return rng.choice((
            ["run", "--methods", text, *small], ["run", "--methods", f"snapkv:{text}", *small], ["run", "--evals", text, *small],
            ["run", "--methods", "int8", "--budget", text, *small], ["speed", "--methods", "int8", "--batch", text, "--dry-run"],
            ["sweep", "--method", "kivi", "--over", text, *small], ["sweep", "--method", text, "--over", "bits=2,4", *small],
            ["compare", str(REFERENCE), str(REFERENCE), "--fail-on", text], ["run", "--preset", text, "--dry-run"], ["list", text],
            ["show", text], ["run", "--corpus", text, *small, "--methods", "int8"], ["run", "--seed", text, *small], [text],
        ))  # fmt: skip


class Presets(Reader):
    """Preset files."""

    def make(self, rng: random.Random) -> list[str]:
        source = rng.choice(sorted((ROOT / "presets").glob("*.toml"))).read_bytes()
        return ["run", "--preset", self.write("mine.toml", damaged_bytes(source, rng)), "--methods", "int8,snapkv", "--dry-run"]


class Read(Reader):
    """What a function reads, without a command of its own."""

    def read(self, name: str) -> object:
        raise NotImplementedError

    def call(self, arguments: list[str]) -> int:
        """The exit code that reading would end a command with."""
        try:
            self.read(arguments[0])
        except KvbenchError as error:
            return int(error.exit_code)
        return 0


class Published(Read):
    """Files of published figures."""

    def make(self, rng: random.Random) -> list[str]:
        source = rng.choice(sorted(Path(published.__file__).parent.rglob("*.toml"))).read_bytes()
        return [self.write("published/mine.toml", damaged_bytes(source, rng))]

    def read(self, name: str) -> object:
        return published.load(Path(name).parent)


class Corpora(Read):
    """Texts and lines of JSON, read to their end."""

    def make(self, rng: random.Random) -> list[str]:
        lines = [as_json({"text": f"line {i} of a text é 日"}) for i in range(20)]
        is_text = rng.random() < 0.4
        raw = damaged_bytes(b"\n".join(lines) if not is_text else "some text é 日\n".encode() * 40, rng)
        return [self.write("mine.txt" if is_text else "mine.jsonl", raw)]

    def read(self, name: str) -> object:
        return open_text(name, None).digest()


class Calibrations(Read):
    """Safetensors of calibrations."""

    def make(self, rng: random.Random) -> list[str]:
        raw = save({"a": torch.ones(3, 4), "b": torch.ones(2)}, metadata={"weights_hash": "beef"})
        return [self.write("mine.safetensors", damaged_bytes(raw, rng))]

    def read(self, name: str) -> object:
        return load_tensors(Path(name), "beef")


class Gguf(Reader):
    """Headers of GGUF files, as a run is asked for with one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.raw = gguf_file(folder / "whole.gguf").read_bytes()

    def make(self, rng: random.Random) -> list[str]:
        file = self.write("mine.gguf", damaged_bytes(self.raw, rng))
        return ["run", "--model", file, "--methods", "int8", "--samples", "1", "--context", "16", "--dry-run"]


def gguf_file(path: Path) -> Path:
    """A small Llama with random weights."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in {"context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 64, "head_count": 2}.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["<s>", "a", "b"])
    writer.add_token_scores([0.0, -1.0, -2.0])
    writer.add_tokenizer_model("llama")
    sizes = {
        "token_embd": (3, 32), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32),
        "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,), "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64),
        "output_norm": (32,),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for name, shape in sizes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape, dtype=np.float32))
    return finished(writer, path)


READERS: dict[str, tuple[type[Reader], int]] = {
    "result": (Result, 4000), "journal": (Journal, 3000), "spec": (Specs, 1500), "preset": (Presets, 1000), "published": (Published, 1000),
    "corpus": (Corpora, 1000), "calibration": (Calibrations, 500), "gguf": (Gguf, 300),
}  # fmt: skip
"""Reader → what it is, and how many inputs a campaign gives it."""


# The campaign ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of one reader's inputs; ``last`` is what was asked, the code, where it broke and what it said."""

    codes: Counter[int] = field(default_factory=Counter)
    unexpected: list[tuple[int, str]] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    processes: int = 0
    slowest_s: float = 0.0
    last: tuple[list[str], int | None, str, str] = ([], None, "", "")

    def figures(self) -> dict[str, Any]:
        codes = {str(code): count for code, count in sorted(self.codes.items())}
        inputs = sum(self.codes.values()) + len(self.hangs)
        return {"inputs": inputs, "unexpected": len(self.unexpected), "hangs": len(self.hangs), "codes": codes}


def judged(reader: Reader, arguments: list[str], limit: float) -> tuple[int | None, str, str]:
    """Exit code (``None``: it hung), where it broke if it did, and what it said."""
    broke: list[str] = []

    def unexpected(error: BaseException) -> int:
        last = traceback.extract_tb(error.__traceback__)[-1]
        broke.append(f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:80]}")
        return 70

    def ring(number: int, frame: object) -> None:
        raise Hang

    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, ring)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), mock.patch.object(cli, "_unexpected", unexpected):
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.setitimer(signal.ITIMER_REAL, 6 * limit)
        try:
            code: int | None = reader.call(arguments)
        except Hang:
            code = None
        except BaseException as error:
            code = unexpected(error)
        finally:
            for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
                signal.setitimer(timer, 0)
    if code == 1 and "failed: " not in said.getvalue():
        broke.append("exit code 1 without a threshold")
    return code, broke[0] if broke else "", said.getvalue()


def in_a_process(arguments: list[str], limit: float) -> bool:
    """Whether the same input ends well in a process of its own."""
    try:
        done = subprocess.run(command(*arguments), capture_output=True, timeout=6 * limit, check=False)
    except (subprocess.TimeoutExpired, ValueError):  # an argument that no process can be given
        return True
    return done.returncode in (0, 1, 2, 3, 4, 5, 6, 7, 130) and b"Traceback" not in done.stderr


def campaign(name: str, inputs: Sequence[int], seed: int, limit: float, every: int) -> Tally:
    """Give these inputs to one reader."""
    import kvbench.caches.compat  # noqa: F401 (what takes long to import is no input's time, and comes after HF_HUB_OFFLINE)

    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        reader = READERS[name][0](Path(folder))
        for index in inputs:
            asked = reader.make(random.Random(f"{name} {seed} {index}"))
            (code, broke, said), seconds = timed(partial(judged, reader, asked, limit))
            tally.slowest_s, tally.last = max(tally.slowest_s, seconds), (asked, code, broke, said)
            if code is None:
                tally.hangs.append(index)
                continue
            tally.codes[code] += 1
            if broke:
                tally.unexpected.append((index, broke))
            if every and index % every == 0 and asked[0] in ("show", "report", "compare"):
                tally.processes += 1
                if not in_a_process(asked, limit):
                    tally.unexpected.append((index, "in a process of its own"))
    return tally


COLUMNS: dict[str, Column] = {
    "reader": "{reader}", "inputs": "{inputs:,}", "unexpected": "{unexpected:}", "hangs": "{hangs:}", "processes": "{processes:}",
    "slowest s": "{slowest_s:.2f}", "exit codes": "{codes}",
}  # fmt: skip


def main() -> None:
    given = arguments(
        __doc__, readers={"nargs": "*", "choices": [*READERS, []], "help": "default: all"}, count=option(None, "inputs a reader", type=int),
        seed=0, limit=option(LIMIT, "seconds an input"), every=option(200, "one in so many runs in a process of its own too"),
        only=option(None, "one input of one reader, with what it said", type=int),
    )  # fmt: skip
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    names = given.readers or [*READERS]
    if given.only is not None:
        print(*campaign(names[0], [given.only], given.seed, given.limit, 0).last, sep="\n")
        return
    found = {}
    for name in names:
        found[name] = campaign(name, range(given.count or READERS[name][1]), given.seed, given.limit, given.every)
        talk(f"{name}: {found[name].figures()}")
    table([{"reader": name, **vars(of), **of.figures()} for name, of in found.items()], COLUMNS)
    for name, of in found.items():
        for broke, many in Counter(text for _, text in of.unexpected).most_common(20):
            print(f"{name}: {many:>4} × {broke}  (first: --only {next(i for i, text in of.unexpected if text == broke)})")
        for index in of.hangs[:10]:
            print(f"{name}: hang: --only {index}")
    figures = {name: of.figures() for name, of in found.items()}
    total = {key: sum(of[key] for of in figures.values()) for key in ("inputs", "unexpected", "hangs")}
    closing("fuzz", seed=given.seed, **total, readers=figures)


if __name__ == "__main__":
    main()
