"""What a GGUF file costs: a refusal or config from its header, the one conversion, and every run after it.

    python tests/bench/bench_gguf.py [FILE.gguf]     # without a file: one of Qwen2.5-0.5B's size in Q4_K, of random codes

Each step runs in a process of its own, as in a run: CPU and wall seconds, and the most memory it held.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

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


def half_a_billion(file: Path) -> Path:
    """A file with the shape of Qwen2.5-0.5B (24 layers, 151,936 tokens) and random codes."""
    import gguf
    import numpy as np

    hidden, inner, layers, vocabulary, keys = 896, 4864, 24, 151_936, 128
    writer, rng = gguf.GGUFWriter(file, "qwen2"), np.random.default_rng(0)
    for add, value in {
        writer.add_block_count: layers, writer.add_context_length: 32768, writer.add_embedding_length: hidden,
        writer.add_feed_forward_length: inner, writer.add_head_count: 14, writer.add_head_count_kv: 2, writer.add_rope_freq_base: 1e6,
        writer.add_layer_norm_rms_eps: 1e-6, writer.add_tokenizer_model: "gpt2", writer.add_tokenizer_pre: "qwen2",
        writer.add_bos_token_id: 1, writer.add_eos_token_id: 2, writer.add_add_bos_token: False,
    }.items():  # fmt: skip
        add(value)
    words, merges = _vocabulary(vocabulary)
    writer.add_token_list(words)
    writer.add_token_types([1] * vocabulary)
    writer.add_token_merges(merges)
    codes = gguf.GGMLQuantizationType.Q5_0  # 896 columns are no multiple of Q4_K's 256: llama.cpp falls back to this

    def table(name: str, rows: int, columns: int, kind: Any = codes) -> None:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        packed = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
        packed[..., :2] = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
        if kind is gguf.GGMLQuantizationType.Q4_K:
            packed[..., 2:4] = packed[..., :2]
        writer.add_tensor(name, packed.reshape(rows, -1), raw_dtype=kind)

    table("token_embd.weight", vocabulary, hidden)
    table("output.weight", vocabulary, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32))
        for name, rows in {"attn_q": hidden, "attn_k": keys, "attn_v": keys}.items():
            writer.add_tensor(f"blk.{layer}.{name}.bias", np.zeros(rows, np.float32))
            table(f"blk.{layer}.{name}.weight", rows, hidden)
        for name in ("ffn_gate", "ffn_up"):
            table(f"blk.{layer}.{name}.weight", inner, hidden)
        table(f"blk.{layer}.attn_output.weight", hidden, hidden)
        table(f"blk.{layer}.ffn_down.weight", hidden, inner, gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _vocabulary(count: int) -> tuple[list[str], list[str]]:
    """So many tokens, each but the single bytes merged from two that come before it."""
    from tokenizers.pre_tokenizers import ByteLevel

    single = sorted(ByteLevel.alphabet())
    words, merges, left = list(single), [], 0
    while len(words) < count:  # every token so far, with each of the 256 bytes behind it
        for right in single[: count - len(words)]:
            merges.append(f"{words[left]} {right}")
            words.append(words[left] + right)
        left += 1
    return words, merges


def measure(file: Path) -> list[dict[str, Any]]:
    """Every step in its own process and one fresh cache folder."""
    import subprocess

    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name, code in STEPS.items():
            command = [sys.executable, "-c", PRELUDE + code + REPORT, str(file)]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KVBENCH_CACHE": cache}, check=True)
            wall, cpu, memory = json.loads(done.stdout.splitlines()[-1])
            rows.append({"step": name, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_mib": round(memory)})
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(sys.argv[1]) if len(sys.argv) > 1 else half_a_billion(Path(folder) / "half.gguf")
        size, rows = file.stat().st_size, measure(file)
    print(f"{file.name}, {size / 1e6:.0f} MB\n\n{'step':<18}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}")
    for row in rows:
        print(f"{row['step']:<18}{row['wall_s']:>8}{row['cpu_s']:>8}{row['peak_mib']:>10}")
    print(json.dumps({"file": file.name, "bytes": size, "steps": rows}))


if __name__ == "__main__":
    main()
