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
given by ``SECTIONS``, shortest first, and the file is rewritten after each
method. What the file already holds of the same model, text and environment is
kept, so an interrupted run goes on where it was and a new method costs only its
own time; ``--redo`` measures all of it again. With one thread the whole takes
some tens of minutes, nearly all of it in the ``full`` section.

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
  inside kvpress is changed. ``AdaKVPress`` returns all keys and hides some from
  later queries: there the kept ones are those not in ``masked_key_indices``.
  ``ThinKPress`` returns all keys with some channels zeroed.

Layout of the file
------------------
``about``, ``environment``, ``model`` and ``corpus`` say what was measured;
every other top-level key is a section. In a section, ``methods`` maps a method
name to:

* ``press``, ``params``, ``attention``: the kvpress class, its arguments and the
  attention implementation of transformers that was in force; ``wrapper`` and
  ``wrapper_params`` likewise of the press put around it, if any;
* ``nll``, ``mean_nll``, ``tokens``: one entry per sample (total, mean, count);
* ``perplexity``: over all samples, exp(sum of nll / sum of tokens);
* ``n_kept``: prompt tokens left in the cache per KV head, a list by layers where
  they differ;
* ``kept``: for sample 0, layer -> one ascending list of kept positions per KV
  head, and ``cut_gap``: layer -> per KV head ``(a - b) / |a|``, where ``a`` is
  the lowest score kept and ``b`` the highest score dropped. A tiny gap marks a
  cut that rounding could decide differently. ``AdaKVPress`` makes one cut
  through all heads of a layer, so there is one gap;
* ``channels`` (``ThinKPress``) instead: layer -> the ascending key channels
  left, per KV head;
* ``narrowest_gap``: one entry per sample, the least such gap over all layers
  and heads. Where it is near the precision of float32 the kept set, and with it
  the NLL, is not fully determined. That is so for ``knorm``: before the first
  layer's attention equal tokens have equal keys up to rotation, so their norms
  tie. For ``lagkv`` it is 0 where the tokens cut are not a multiple of the
  partitions: ranks in different partitions tie. Its sections are chosen so that
  they are.

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
    AdaKVPress,
    BasePress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    LagKVPress,
    ObservedAttentionPress,
    PyramidKVPress,
    SnapKVPress,
    StreamingLLMPress,
    ThinKPress,
    TOVAPress,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

CORPUS = "wikitext2/wiki.test.raw"


@dataclass(frozen=True)
class Method:
    """One row of the table: a press with its arguments, perhaps within a wrapper, or no press at all."""

    press: type[BasePress] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    attention: str = "sdpa"
    wrapper: type[AdaKVPress] | None = None
    wrapper_params: dict[str, Any] = field(default_factory=dict)
    ratio: str = "compression_ratio"

    def make(self, ratio: float) -> BasePress | None:
        """The press itself, removing ``ratio``."""
        if self.press is None:
            return None
        press = self.press(**{self.ratio: ratio}, **self.params)
        return press if self.wrapper is None else self.wrapper(press, **self.wrapper_params)

    @property
    def described(self) -> dict[str, Any]:
        """As the file names it."""
        facts: dict[str, Any] = {
            "press": self.press.__name__ if self.press is not None else None,
            "params": self.params,
            "attention": self.attention,
        }
        if self.wrapper is not None:
            facts |= {"wrapper": self.wrapper.__name__, "wrapper_params": self.wrapper_params}
        return facts


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
    "keydiff": Method(KeyDiffPress),
    "lagkv": Method(LagKVPress, {"n_sink": 4, "lag_size": 128}),
    "pyramidkv": Method(PyramidKVPress, {"window_size": 64, "kernel_size": 5, "beta": 20}),
    "adakv": Method(SnapKVPress, {"window_size": 64, "kernel_size": 5}, wrapper=AdaKVPress, wrapper_params={"alpha_safeguard": 0.2}),
    "think": Method(ThinKPress, {"window_size": 32}, ratio="key_channel_compression_ratio"),
}
NARROW: dict[str, Any] = {"window_size": 16, "kernel_size": 5}


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
    "small_snapkv_window16": Section(128, 64, 3, {"snapkv": Method(SnapKVPress, NARROW)}),
    # PyramidKV and AdaKV likewise; and LagKV, whose usual partitions leave nothing to rank.
    "small_narrow": Section(
        128,
        64,
        3,
        {
            "lagkv": Method(LagKVPress, {"n_sink": 4, "lag_size": 24}),
            "pyramidkv": Method(PyramidKVPress, {**NARROW, "beta": 20}),
            "adakv": Method(SnapKVPress, NARROW, wrapper=AdaKVPress, wrapper_params={"alpha_safeguard": 0.2}),
        },
    ),
    "full": Section(512, 512, 4, METHODS),
    # Half of 512 tokens are just the sinks and the tail that LagKV keeps by default.
    "full_lagkv_lag96": Section(512, 512, 4, {"lagkv": Method(LagKVPress, {"n_sink": 4, "lag_size": 96})}),
}


@dataclass
class Recording:
    """What was seen of one press during one prefill, by layer."""

    kept: dict[int, list[list[int]]] = field(default_factory=dict)
    channels: dict[int, list[list[int]]] = field(default_factory=dict)
    cut_gap: dict[int, list[float]] = field(default_factory=dict)

    @property
    def narrowest_gap(self) -> float:
        """The least gap between kept and dropped scores over all layers and heads."""
        return min(min(gaps) for gaps in self.cut_gap.values())

    def of(self, layers: tuple[int, ...]) -> dict[str, Any]:
        """What was seen in ``layers``, as the file holds it."""
        seen = {name: getattr(self, name) for name in ("kept", "channels", "cut_gap")}
        return {name: {str(layer): by_layer[layer] for layer in layers} for name, by_layer in seen.items() if by_layer}


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


def gap(kept: torch.Tensor, dropped: torch.Tensor) -> float:
    """Relative gap between the lowest score kept and the highest dropped."""
    lowest, highest = kept.min().item(), dropped.max().item()
    return rounded((lowest - highest) / abs(lowest), 3)


def note_tokens(record: Recording, layer: int, stays: torch.Tensor, scores: torch.Tensor, cuts: int) -> None:
    """Record the tokens that stay, ``stays`` and ``scores`` being (heads, n), and the gap at each of ``cuts`` cuts."""
    record.kept[layer] = [torch.nonzero(row)[:, 0].tolist() for row in stays]
    stays, scores = stays.reshape(cuts, -1), scores.double().reshape(cuts, -1)
    record.cut_gap[layer] = [gap(row[mine], row[~mine]) for row, mine in zip(scores, stays, strict=True)]


@contextmanager
def recording(press: BasePress) -> Iterator[Recording]:
    """Note what ``press`` keeps in every layer.

    Methods are shadowed on the instances by wrappers that pass everything
    through unchanged.
    """
    record = Recording()
    scores: dict[int, torch.Tensor] = {}
    scorer = press.press if isinstance(press, AdaKVPress) else press
    score, compress = getattr(scorer, "score", None), press.compress

    def noting_score(module: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Not copied: AdaKVPress writes into them which tokens it keeps whatever their score.
        scores[module.layer_idx] = score(module, *args, **kwargs).detach()
        return scores[module.layer_idx]

    def noting_compress(module: Any, hidden_states: torch.Tensor, keys: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        before = keys[0].clone()  # ThinKPress works in place
        kept_keys, kept_values = compress(module, hidden_states, keys, *args)
        layer, (heads, total) = module.layer_idx, before.shape[:2]
        if score is None:
            record.channels[layer] = [torch.nonzero(head.any(0))[:, 0].tolist() for head in kept_keys[0]]
            return kept_keys, kept_values
        stays = torch.zeros(heads, total, dtype=torch.bool)
        if module.masked_key_indices is None:
            for head in range(heads):
                stays[head, match_rows(before[head], kept_keys[0, head])] = True
        else:
            stays[module.masked_key_indices[1:]] = True
            stays = ~stays
        note_tokens(record, layer, stays, scores[layer][0], cuts=heads if module.masked_key_indices is None else 1)
        return kept_keys, kept_values

    press.compress = noting_compress  # type: ignore[method-assign]
    if score is not None:
        scorer.score = noting_score
    try:
        yield record
    finally:
        del press.compress
        if score is not None:
            del scorer.score


def token_nll(logits: torch.Tensor, target: int) -> float:
    """Negative log likelihood of ``target`` under one position's logits."""
    return -torch.log_softmax(logits.double(), dim=-1)[target].item()


@torch.inference_mode()
def run_window(model: PreTrainedModel, ids: list[int], context: int, press: BasePress | None) -> tuple[list[float], int | list[int]]:
    """The NLL of each token of ``ids[context:]``, and the prompt tokens left in the cache (by layer, where they differ)."""
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
    lengths = [layer.keys.shape[-2] for layer in cache.layers]
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
    return losses, lengths if len(set(lengths)) > 1 else lengths[0]


def run_method(model: PreTrainedModel, windows: list[list[int]], section: Section, method: Method) -> dict[str, Any]:
    """Measure one method on every window of a section."""
    model.set_attn_implementation(method.attention)
    totals: list[float] = []
    counts: list[int] = []
    records: list[Recording] = []
    n_kept: int | list[int] = section.context
    for ids in windows:
        press = method.make(section.compression_ratio)
        if press is None:
            losses, n_kept = run_window(model, ids, section.context, None)
        else:
            with recording(press) as record:
                losses, n_kept = run_window(model, ids, section.context, press)
            records.append(record)
        totals.append(math.fsum(losses))
        counts.append(len(losses))
    result: dict[str, Any] = {
        **method.described,
        "nll": [rounded(total) for total in totals],
        "mean_nll": [rounded(total / count) for total, count in zip(totals, counts, strict=True)],
        "tokens": counts,
        "perplexity": rounded(math.exp(math.fsum(totals) / sum(counts))),
        "n_kept": n_kept,
    }
    if records:
        result |= records[0].of(section.layers)
        if records[0].cut_gap:
            result["narrowest_gap"] = [record.narrowest_gap for record in records]
    return result


def section_header(token_ids: list[int], section: Section) -> dict[str, Any]:
    """What the file says of a section beside its methods."""
    size = section.context + section.continuation
    return {
        "context": section.context,
        "continuation": section.continuation,
        "samples": section.samples,
        "compression_ratio": section.compression_ratio,
        "layers": list(section.layers),
        "token_ids_sha256": sha256_ids(token_ids[: size * section.samples]),
    }


def run_section(
    model: PreTrainedModel, token_ids: list[int], name: str, section: Section, held: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Measure every method of one section that ``held`` lacks; the section so far, after each."""
    size = section.context + section.continuation
    windows = [token_ids[i * size : (i + 1) * size] for i in range(section.samples)]
    header = section_header(token_ids, section)
    known = held.get("methods", {}) if all(held.get(key) == value for key, value in header.items()) else {}
    methods: dict[str, Any] = {}
    for label, method in section.methods.items():
        if label in known and all(known[label].get(key) == value for key, value in method.described.items()):
            methods[label] = known[label]
            continue
        started = time.monotonic()
        methods[label] = run_method(model, windows, section, method)
        print(
            f"{name:24s}{label:20s}ppl {methods[label]['perplexity']:12.6f}  {time.monotonic() - started:6.1f} s",
            file=sys.stderr,
            flush=True,
        )
        yield {**header, "methods": methods}
    yield {**header, "methods": methods}


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
    parser.add_argument("--redo", action="store_true", help="measure again what the file already holds")
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
    held: dict[str, Any] = {}
    if options.out.exists() and not options.redo:
        old = json.loads(options.out.read_text(encoding="utf-8"))
        if all(old.get(key) == data[key] for key in ("environment", "model", "corpus")):
            held = {name: old[name] for name in SECTIONS if name in old}
    found = dict(held)
    for name in options.sections:
        for section in run_section(model, token_ids, name, SECTIONS[name], held.get(name, {})):
            found[name] = section
            write_json(options.out, data | {key: found[key] for key in SECTIONS if key in found})


if __name__ == "__main__":
    main()
