"""Every kind of file and text that kvbench reads, damaged, and what reads it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import torch
from bench_gguf import finished
from benching import REFERENCE, ROOT
from damaging import damaged_bytes, damaged_data, places
from safetensors.torch import save

from kvbench import cli, published
from kvbench.calibration.artefacts import load_tensors
from kvbench.engine import start
from kvbench.errors import KvbenchError
from kvbench.texts.corpora import open_text

METHODS = ("baseline", "random", "snapkv", "kivi:bits=2", "int8")
"""Rows that the small copy of the reference keeps."""


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
