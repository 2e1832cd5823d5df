"""What a GGUF file costs: a refusal or config from its header, the one conversion, and every run after it.

    python tests/bench/bench_gguf.py [FILE.gguf]     # without a file: one of Qwen2.5-0.5B's size in Q4_K, of random codes

Each step runs in a process of its own, as in a run: CPU and wall seconds, and the most memory it held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from benching import arguments, closing, table
from tokenizers.pre_tokenizers import ByteLevel

STEPS = {
    "header": "from kvbench.models.gguf import gguf_config; gguf_config(FILE)",
    "conversion": "from kvbench.models import sources; sources.find_source(SPEC, silent)",
    "found again": "from kvbench.models import sources; sources.find_source(SPEC, silent)",
    "load, first run": "from kvbench.models.loading import load_model; load_model(SPEC, seed=0, progress=silent)",
    "load, later run": "from kvbench.models.loading import load_model; load_model(SPEC, seed=0, progress=silent)",
}
PRELUDE = """
import sys, time
from pathlib import Path
from kvbench.spec import ModelSpec
from kvbench.models.weights import silent
FILE = Path(sys.argv[1]); SPEC = ModelSpec(str(FILE), device="cpu", dtype="bfloat16"); begun = time.perf_counter()
"""
REPORT = """
import json
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])  # not getrusage, which begins at the parent's
print(json.dumps([time.perf_counter() - begun, time.process_time(), peak / 1024]))
"""
HIDDEN, INNER, LAYERS, VOCABULARY, KEYS = 896, 4864, 24, 151_936, 128


def main() -> None:
    given = arguments(__doc__, file={"nargs": "?", "type": Path})
    with tempfile.TemporaryDirectory() as folder:
        file = given.file or half_a_billion(Path(folder) / "half.gguf")
        size, rows = file.stat().st_size, _measure(file)
    print(f"{file.name}, {size / 1e6:.0f} MB\n")
    table(rows, {"step": "{step}", "wall s": "{wall_s:}", "CPU s": "{cpu_s:}", "peak MiB": "{peak_mib:}"})
    closing("gguf", file=file.name, bytes=size, steps=rows)


def _measure(file: Path) -> list[dict[str, Any]]:
    """Every step in its own process and one fresh cache folder."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name, code in STEPS.items():
            asked = [sys.executable, "-c", PRELUDE + code + REPORT, str(file)]
            done = subprocess.run(asked, capture_output=True, text=True, env={**os.environ, "KVBENCH_CACHE": cache}, check=True)
            wall, cpu, memory = json.loads(done.stdout.splitlines()[-1])
            rows.append({"step": name, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_mib": round(memory)})
    return rows


def half_a_billion(file: Path) -> Path:
    """A file with the shape of Qwen2.5-0.5B (24 layers, 151,936 tokens) and random codes."""
    writer, rng = gguf.GGUFWriter(file, "qwen2"), np.random.default_rng(0)
    for name, value in {
        "block_count": LAYERS, "context_length": 32768, "embedding_length": HIDDEN, "feed_forward_length": INNER, "head_count": 14,
        "head_count_kv": 2, "rope_freq_base": 1e6, "layer_norm_rms_eps": 1e-6, "tokenizer_model": "gpt2", "tokenizer_pre": "qwen2",
        "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": False,
    }.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    words, merges = _vocabulary(VOCABULARY)
    writer.add_token_list(words)
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(merges)
    fine = gguf.GGMLQuantizationType.Q4_K
    codes = gguf.GGMLQuantizationType.Q5_0  # 896 columns are no multiple of Q4_K's 256: llama.cpp falls back to this

    def table_of(name: str, rows: int, columns: int) -> None:
        kind = fine if columns % 256 == 0 else codes
        block, size = gguf.GGML_QUANT_SIZES[kind]
        packed = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
        packed[..., :2] = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
        if kind is fine:
            packed[..., 2:4] = packed[..., :2]
        writer.add_tensor(name, packed.reshape(rows, -1), raw_dtype=kind)

    table_of("token_embd.weight", VOCABULARY, HIDDEN)
    table_of("output.weight", VOCABULARY, HIDDEN)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    shapes = {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_down": (HIDDEN, INNER)}
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
        for name, rows in {"attn_q": HIDDEN, "attn_k": KEYS, "attn_v": KEYS}.items():
            writer.add_tensor(f"blk.{layer}.{name}.bias", np.zeros(rows, np.float32))
            table_of(f"blk.{layer}.{name}.weight", rows, HIDDEN)
        for name, shape in shapes.items():
            table_of(f"blk.{layer}.{name}.weight", *shape)
    return finished(writer, file)


def finished(writer: Any, file: Path) -> Path:
    """The file, once all that the writer was told is in it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _vocabulary(count: int) -> tuple[list[str], list[str]]:
    """So many tokens, each but the single bytes merged from two that come before it."""
    single = sorted(ByteLevel.alphabet())
    words, merges, left = list(single), [], 0
    while len(words) < count:  # every token so far, with each of the 256 bytes behind it
        for right in single[: count - len(words)]:
            merges.append(f"{words[left]} {right}")
            words.append(words[left] + right)
        left += 1
    return words, merges


if __name__ == "__main__":
    main()
