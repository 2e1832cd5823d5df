"""Make the golden figures that kvbench's compression methods are compared with.

Why this exists
---------------
kvbench implements its methods itself. Tests of an implementation against its
own output prove nothing, so this script takes the same measurement with an
independent reference, NVIDIA's kvpress, and writes the figures to a small JSON
file that is committed. The test suite reads only that file: neither kvpress
nor this script is needed to run the tests.

Environment
-----------
The committed figures were made with Python 3.11, torch 2.13.0,
transformers 5.2.0 and kvpress 0.5.5 (plus gguf and accelerate, which
transformers needs to read a GGUF file), in float32 on a CPU. The versions
found at run time are recorded in the file.

Usage
-----
::

    KVBENCH_DATA=... python tests/golden/make_kvpress_goldens.py \\
        --model DIR_OR_GGUF --out tests/golden/kvpress.json

``KVBENCH_DATA`` names the folder that holds ``wikitext2/wiki.test.raw``.
``--model`` is a GGUF file, or a directory with either a transformers
checkpoint or exactly one GGUF file. The sections are measured in the order
given by ``SECTIONS``, shortest first, and the file is rewritten after each, so
an interrupted run leaves the sections that were finished. With one thread the
whole takes some tens of minutes, nearly all of it in the ``full`` section.

What is measured
----------------
* The text is decoded as UTF-8 with universal newlines (a copy with CRLF line
  ends gives the same text as one with LF), tokenised as one document without
  special tokens, and cut from the start into consecutive windows of
  ``context + continuation`` tokens that do not overlap. No special tokens is
  what the GGUF file of the committed figures asks for (``add_bos_token`` is
  false); transformers 5.2.0 disregards that and would put ``<|im_start|>`` in
  front, newer releases do not.
* The context is prefilled in one call under the press. kvpress prunes each
  layer's cache after that layer's attention has run, so the prompt's own
  logits are those of the uncompressed model.
* The continuation is fed token by token. Position ids and cache positions
  count the tokens *seen*, not those kept. (One chunk with such cache positions
  would let each token attend to later ones: the causal mask compares the slot
  in the shortened cache with the position in the full sequence.)
* All ``continuation`` tokens are scored: the first by the prompt's last
  logits, every other by the logits of the token before it. The negative log
  likelihood (nats) is taken in float64 from the float32 logits.
* Kept prompt positions are read off by matching the rows of the keys that
  ``compress`` returns with the rows of the keys that it was given, so nothing
  inside kvpress is changed.

Layout of the file
------------------
``about``, ``environment``, ``model`` and ``corpus`` say what was measured;
every other top-level key is a section. In a section, ``methods`` maps a method
name to:

* ``press``, ``params``, ``attention``: the kvpress class, its arguments and the
  attention implementation of transformers that was in force;
* ``nll``, ``mean_nll``, ``tokens``: one entry per sample (total, mean, count);
* ``perplexity``: over all samples, exp(sum of nll / sum of tokens);
* ``n_kept``: prompt tokens kept per layer and KV head;
* ``kept``: for sample 0, layer -> one ascending list of kept positions per KV
  head, and ``cut_gap``: layer -> per KV head ``(a - b) / |a|``, where ``a`` is
  the lowest score kept and ``b`` the highest score dropped. A tiny gap marks a
  cut that rounding could decide differently;
* ``narrowest_gap``: one entry per sample, the least such gap over all layers
  and heads. Where it is near the precision of float32 the kept set, and with it
  the NLL, is not fully determined. That is so for ``knorm``: before the first
  layer's attention equal tokens have equal keys up to rotation, so their norms
  tie.

``token_ids_sha256`` is the SHA-256 of the section's token ids (all its windows)
written in decimal and joined with single spaces.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from kvpress import (
    ExpectedAttentionPress,
    KnormPress,
    ObservedAttentionPress,
    ScorerPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

CORPUS = "wikitext2/wiki.test.raw"


@dataclass(frozen=True)
class Method:
    """One row of the table: a press with its arguments, or no press at all."""

    press: type[ScorerPress] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    attention: str = "sdpa"


METHODS: dict[str, Method] = {
    "none": Method(),
    "streaming_llm": Method(StreamingLLMPress, {"n_sink": 4}),
    "knorm": Method(KnormPress),
    "snapkv": Method(SnapKVPress, {"window_size": 64, "kernel_size": 5}),
    "tova": Method(TOVAPress),
    "expected_attention": Method(
        ExpectedAttentionPress,
        {
            "n_future_positions": 512,
            "n_sink": 4,
            "use_covariance": True,
            "use_vnorm": True,
            "epsilon": 0.0,
        },
    ),
    # This press reads the attention probabilities, which only eager attention returns.
    "observed_attention": Method(ObservedAttentionPress, attention="eager"),
}


@dataclass(frozen=True)
class Section:
    """One measurement: window shape, number of windows, and the methods to run."""

    context: int
    continuation: int
    samples: int
    methods: dict[str, Method]
    compression_ratio: float = 0.5
    # Not layer 0: there, occurrences of the same token tie under ``knorm``.
    layers: tuple[int, ...] = (1, 15)


SECTIONS: dict[str, Section] = {
    "small": Section(128, 64, 3, METHODS),
    # With 64 of 128 tokens kept, SnapKV's window of 64 is all that it keeps. A
    # narrower window makes its scores decide.
    "small_snapkv_window16": Section(128, 64, 3, {"snapkv": Method(SnapKVPress, {"window_size": 16, "kernel_size": 5})}),
    "full": Section(512, 512, 4, METHODS),
}


@dataclass
class Recording:
    """What was seen of one press during one prefill, by layer."""

    kept: dict[int, list[list[int]]] = field(default_factory=dict)
    cut_gap: dict[int, list[float]] = field(default_factory=dict)

    @property
    def narrowest_gap(self) -> float:
        """The least gap between kept and dropped scores over all layers and heads."""
        return min(min(gaps) for gaps in self.cut_gap.values())


def rounded(value: float, digits: int = 10) -> float:
    """``value`` rounded to ``digits`` significant digits."""
    return float(f"{value:.{digits}g}")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_ids(ids: list[int]) -> str:
    """SHA-256 of token ids in decimal, joined with single spaces."""
    return hashlib.sha256(" ".join(map(str, ids)).encode("ascii")).hexdigest()


def sha256_weights(model: PreTrainedModel) -> str:
    """SHA-256 over the parameters, by name: each name, then its float32 bytes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def locate_model(path: Path) -> tuple[Path, dict[str, str], Path | None]:
    """The directory to load from, extra loading arguments, and the GGUF file if there is one."""
    if path.is_file():
        return path.parent, {"gguf_file": path.name}, path
    if (path / "config.json").exists():
        return path, {}, None
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        raise SystemExit(f"{path}: expected a config.json or exactly one .gguf file, found {len(found)}")
    return path, {"gguf_file": found[0].name}, found[0]


def match_rows(full: torch.Tensor, kept: torch.Tensor) -> list[int]:
    """Ascending positions in ``full`` (n, d) of the rows of ``kept`` (m, d), compared exactly."""
    equal = (kept[:, None, :] == full[None, :, :]).all(-1)
    if not bool((equal.sum(1) == 1).all()):
        raise RuntimeError("a kept key does not match exactly one prompt key")
    return sorted(equal.int().argmax(1).tolist())


@contextmanager
def recording(press: ScorerPress) -> Iterator[Recording]:
    """Note what ``press`` keeps in every layer.

    The two methods are shadowed on the instance by wrappers that pass
    everything through unchanged.
    """
    record = Recording()
    scores: dict[int, torch.Tensor] = {}
    score, compress = press.score, press.compress

    def noting_score(module: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = score(module, *args, **kwargs)
        scores[module.layer_idx] = result.detach()
        return result

    def noting_compress(module: Any, hidden_states: torch.Tensor, keys: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        kept_keys, kept_values = compress(module, hidden_states, keys, *args)
        layer = module.layer_idx
        record.kept[layer] = []
        record.cut_gap[layer] = []
        for head in range(keys.shape[1]):
            kept = match_rows(keys[0, head], kept_keys[0, head])
            row = scores[layer][0, head].double()
            dropped = torch.ones(len(row), dtype=torch.bool)
            dropped[kept] = False
            lowest, highest = row[~dropped].min().item(), row[dropped].max().item()
            record.kept[layer].append(kept)
            record.cut_gap[layer].append(rounded((lowest - highest) / abs(lowest), 3))
        return kept_keys, kept_values

    press.score = noting_score  # type: ignore[method-assign]
    press.compress = noting_compress  # type: ignore[method-assign]
    try:
        yield record
    finally:
        del press.score, press.compress


def token_nll(logits: torch.Tensor, target: int) -> float:
    """Negative log likelihood of ``target`` under one position's logits."""
    return -torch.log_softmax(logits.double(), dim=-1)[target].item()


@torch.inference_mode()
def run_window(model: PreTrainedModel, ids: list[int], context: int, press: ScorerPress | None) -> tuple[list[float], int]:
    """The NLL of each token of ``ids[context:]``, and the prompt tokens left in the cache."""
    cache = DynamicCache(config=model.config)
    prompt = torch.tensor([ids[:context]])
    with press(model) if press is not None else nullcontext():
        logits = model(
            input_ids=prompt,
            past_key_values=cache,
            position_ids=torch.arange(context)[None],
            cache_position=torch.arange(context),
            use_cache=True,
            logits_to_keep=1,
        ).logits[0, -1]
    lengths = {layer.keys.shape[-2] for layer in cache.layers}
    if len(lengths) != 1:
        raise RuntimeError(f"layers keep different numbers of tokens: {sorted(lengths)}")
    losses = [token_nll(logits, ids[context])]
    for seen in range(context, len(ids) - 1):
        position = torch.tensor([seen])
        logits = model(
            input_ids=torch.tensor([[ids[seen]]]),
            past_key_values=cache,
            position_ids=position[None],
            cache_position=position,
            use_cache=True,
        ).logits[0, -1]
        losses.append(token_nll(logits, ids[seen + 1]))
    return losses, lengths.pop()


def run_method(model: PreTrainedModel, windows: list[list[int]], section: Section, method: Method) -> dict[str, Any]:
    """Measure one method on every window of a section."""
    model.set_attn_implementation(method.attention)
    totals: list[float] = []
    counts: list[int] = []
    records: list[Recording] = []
    n_kept = section.context
    for ids in windows:
        if method.press is None:
            losses, n_kept = run_window(model, ids, section.context, None)
        else:
            press = method.press(compression_ratio=section.compression_ratio, **method.params)
            with recording(press) as record:
                losses, n_kept = run_window(model, ids, section.context, press)
            records.append(record)
        totals.append(math.fsum(losses))
        counts.append(len(losses))
    result: dict[str, Any] = {
        "press": method.press.__name__ if method.press is not None else None,
        "params": method.params,
        "attention": method.attention,
        "nll": [rounded(total) for total in totals],
        "mean_nll": [rounded(total / count) for total, count in zip(totals, counts, strict=True)],
        "tokens": counts,
        "perplexity": rounded(math.exp(math.fsum(totals) / sum(counts))),
        "n_kept": n_kept,
    }
    if records:
        first = records[0]
        result["kept"] = {str(layer): first.kept[layer] for layer in section.layers}
        result["cut_gap"] = {str(layer): first.cut_gap[layer] for layer in section.layers}
        result["narrowest_gap"] = [record.narrowest_gap for record in records]
    return result


def run_section(model: PreTrainedModel, token_ids: list[int], name: str, section: Section) -> dict[str, Any]:
    """Measure every method of one section."""
    size = section.context + section.continuation
    windows = [token_ids[i * size : (i + 1) * size] for i in range(section.samples)]
    methods: dict[str, Any] = {}
    for label, method in section.methods.items():
        started = time.monotonic()
        methods[label] = run_method(model, windows, section, method)
        print(
            f"{name:24s}{label:20s}ppl {methods[label]['perplexity']:12.6f}  {time.monotonic() - started:6.1f} s",
            file=sys.stderr,
            flush=True,
        )
    return {
        "context": section.context,
        "continuation": section.continuation,
        "samples": section.samples,
        "compression_ratio": section.compression_ratio,
        "layers": list(section.layers),
        "token_ids_sha256": sha256_ids(token_ids[: size * section.samples]),
        "methods": methods,
    }


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write ``data`` compactly, replacing the file in one step."""
    partial = path.with_suffix(path.suffix + ".part")
    partial.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Load the model, measure the sections, write the file."""
    parser = argparse.ArgumentParser(description="Make the kvpress golden figures.")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file, or directory of a model")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options = parser.parse_args()
    if "KVBENCH_DATA" not in os.environ:
        parser.error(f"set KVBENCH_DATA to the folder that holds {CORPUS}")
    torch.set_num_threads(options.threads)

    corpus = Path(os.environ["KVBENCH_DATA"]) / CORPUS
    directory, extra, gguf = locate_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(directory, **extra)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **extra).eval()
    text = corpus.read_text(encoding="utf-8")
    token_ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]

    data: dict[str, Any] = {
        "about": "Reference figures made with kvpress by make_kvpress_goldens.py; see its docstring for the layout.",
        "environment": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "kvpress")},
            "threads": options.threads,
        },
        "model": {
            "file": gguf.name if gguf is not None else directory.name,
            "sha256": sha256_file(gguf) if gguf is not None else None,
            "dtype": "float32",
            "weights_sha256": sha256_weights(model),
        },
        "corpus": {
            "file": CORPUS,
            "sha256": sha256_file(corpus),
            "tokens": len(token_ids),
            "newlines": "universal",
            "special_tokens": False,
            "token_ids_sha256": sha256_ids(token_ids),
        },
    }
    for name in options.sections:
        data[name] = run_section(model, token_ids, name, SECTIONS[name])
        write_json(options.out, data)


if __name__ == "__main__":
    main()
