"""What papers and folklore of KV-cache compression say, held against measurements on the embedded model.

Each claim names two rows of one run, the one that is said to be better first. Both are scored on the same tokens, so the
difference is paired sample by sample: mean over samples of the difference in KL to the uncompressed model (nats a token) and
in negative log-likelihood, with 95 % intervals. A claim is ``shown`` where the KL difference lies on its side of zero with
p < 0.05 (paired t test, Holm's correction over the claims made), ``contradicted`` where it lies on the other, else
``undecided``. Stored bytes stand beside, since a row that stores more has an advantage.

    python tests/bench/bench_trends.py                          # runs all claims (about 5 minutes on two cores)
    python tests/bench/bench_trends.py --only kivi,pca --samples 4
    python tests/bench/bench_trends.py --result bench_results/<run>
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benching import Column, arguments, closing, option, picked, table, talk

from kvbench.engine import start
from kvbench.methods.base import expand
from kvbench.metrics.stats import holm, paired_test
from kvbench.record import results
from kvbench.spec import CorpusSpec, EvaluatorSpec, ModelSpec, RunSpec


@dataclass(frozen=True)
class Claim:
    """``better`` loses less than ``worse``, says ``source``."""

    key: str
    text: str
    source: str
    better: str
    worse: str


CLAIMS = (
    Claim("kivi-k", "keys at 2 bits: per channel beats per token", "KIVI, arXiv 2402.02750, Table 1",
          "kivi:k_bits=2,v_bits=16", "kivi:k_bits=2,v_bits=16,k_axis=token"),
    Claim("kivi-v", "values at 2 bits: per token beats per channel", "KIVI, arXiv 2402.02750, Table 1",
          "kivi:k_bits=16,v_bits=2", "kivi:k_bits=16,v_bits=2,v_axis=channel"),
    Claim("v-bits", "values tolerate fewer bits than keys, per token", "folklore; KV-AdaQuant, arXiv 2502.15075",
          "int4:k_bits=16,v_bits=2", "int4:k_bits=2,v_bits=16"),
    Claim("v-rank", "values tolerate a low rank better than keys after RoPE", "folklore",
          "orthogonal:k_rank=64,v_rank=32", "orthogonal:k_rank=32,v_rank=64"),
    Claim("v-rank-pre", "values tolerate a low rank better than keys before RoPE", "folklore",
          "orthogonal:k_rank=64,v_rank=32", "palu:k_rank=32,v_rank=64,group_heads=1"),
    Claim("rope", "keys before RoPE tolerate a low rank better than after", "Palu, arXiv 2407.21118",
          "palu:k_rank=32,v_rank=64,group_heads=1", "orthogonal:k_rank=32,v_rank=64"),
    Claim("groups", "one basis for several heads beats one a head at equal bytes", "Palu, arXiv 2407.21118",
          "palu", "palu:group_heads=1"),
    Claim("hadamard", "rotated latents are quantised better", "Palu, arXiv 2407.21118",
          "palu:bits=3", "palu:bits=3,hadamard=false"),
    Claim("residual", "the residual step (unbiased products) beats a finer codebook at equal bits", "TurboQuant, arXiv 2504.19874",
          "turboquant:bits=3", "turboquant:bits=3,k_residual=false"),
    Claim("fisher", "merged keys weighed by curvature beat plain means", "AsymKV, arXiv 2506.05410",
          "asymkv:compression_ratio=0.75", "asymkv:compression_ratio=0.75,weights=cardinality"),
    Claim("depth", "merging upper layers in pairs costs less than random eviction of as many bytes", "MiniCache, arXiv 2405.14366",
          "minicache", "random:compression_ratio=0.23"),
    Claim("kvzap", "a threshold on surrogate scores beats a window's vote at equal bytes", "KVzap, arXiv 2601.07891",
          "kvzap@1.6x", "snapkv@1.6x"),
    Claim("pca", "a PCA basis beats a random one of the same rank", "PCA's optimality",
          "v_lowrank:rank=32", "v_lowrank:rank=32,basis=random"),
    Claim("adakv", "one budget over all heads beats equal budgets", "Ada-KV, arXiv 2407.11550",
          "adakv:compression_ratio=0.75", "snapkv:compression_ratio=0.75"),
    Claim("pyramid", "more tokens in lower layers beat equal budgets", "PyramidKV, arXiv 2406.02069",
          "pyramidkv:compression_ratio=0.75,window=16,beta=4", "snapkv:compression_ratio=0.75,window=16"),
    Claim("h2o", "heavy hitters and recent tokens beat recent tokens and sinks alone", "H2O, arXiv 2306.14048",
          "h2o:compression_ratio=0.75", "streaming_llm:compression_ratio=0.75,decode=hold,interval=1"),
    Claim("random", "any score beats random eviction", "common sense",
          "knorm:compression_ratio=0.5", "random:compression_ratio=0.5"),
)  # fmt: skip
COLUMNS: dict[str, Column] = {
    "": "{verdict}", "claim": "{text}", "said better": "{better}", "said worse": "{worse}",
    "ΔKL (worse − better)": lambda found: _interval(found["kl"]), "ΔNLL": lambda found: _interval(found["nll"]),
    "bytes, better/worse": "{bytes:.3f}", "source": "{source}",
}  # fmt: skip


def main() -> None:
    keys = option("", "Claims by the beginning of their key: " + ", ".join(c.key for c in CLAIMS))
    given = arguments(
        __doc__, only=keys, samples=8, context=512, continuation=128, corpus="language_reference", data_dir=None,
        result=option(None, "A finished run that holds the rows, instead of running.", type=Path),
    )  # fmt: skip
    wanted = [c for c in CLAIMS if not given.only or any(c.key.startswith(k) for k in given.only.split(","))]
    result = results.load(given.result) if given.result else _run(wanted, given)
    found = _decided([_judge(claim, result) for claim in wanted if _has(claim, result)])
    table(found, COLUMNS)
    closing("trends", model=result["model"]["id"], samples=result["spec"]["samples"], claims=found)


def _run(claims: Sequence[Claim], given: Namespace) -> dict[str, Any]:
    methods = expand(list(dict.fromkeys(label for c in claims for label in (c.better, c.worse))))
    model = ModelSpec("embedded:smollm2", dtype="float32", cache_dtype="bfloat16", device="cpu")
    evaluators = (EvaluatorSpec("perplexity"), EvaluatorSpec("memory", (("steps", 0),)))
    corpus, sizes = CorpusSpec(given.corpus, given.data_dir), picked(given, "samples context continuation")
    talk(f"{len(methods)} methods × {given.samples} samples")
    with tempfile.TemporaryDirectory() as folder:
        return start.run(RunSpec(model=model, methods=methods, evaluators=evaluators, corpus=corpus, **sizes), output_dir=folder)


def _has(claim: Claim, result: Mapping[str, Any]) -> bool:
    """Whether both rows were scored; what was not is said."""
    lost = [row for row in (claim.better, claim.worse) if row not in result["records"]["perplexity"]]
    if lost:
        errors = {row["method"]: row.get("error") for row in result["results"]}
        talk(f"{claim.key}: " + "; ".join(f"{row} has no scores ({errors.get(row, 'not in this run')})" for row in lost))
    return not lost


def _judge(claim: Claim, result: Mapping[str, Any]) -> dict[str, Any]:
    """Paired differences, worse − better: above zero the claim holds."""
    better, worse = (result["records"]["perplexity"][label] for label in (claim.better, claim.worse))
    keys = sorted(set(better) & set(worse))
    figures = {}
    for name in ("kl", "nll"):
        one, other = ([record[key][name] / record[key]["tokens"] for key in keys] for record in (better, worse))
        found = paired_test(one, other)
        figures[name] = [found.difference, found.low, found.high, found.p]
    stored = {row["method"]: row.get("stored_bytes") for row in result["results"]}
    return {**asdict(claim), **figures, "bytes": stored[claim.better] / stored[claim.worse], "samples": len(keys)}


def _decided(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each finding with its verdict, Holm's correction over all claims made."""
    ps = holm([1.0 if f["kl"][3] is None else f["kl"][3] for f in found])
    words = ("shown", "contradicted")
    return [{"verdict": words[f["kl"][0] < 0] if p < 0.05 else "undecided", **f, "p_holm": p} for f, p in zip(found, ps, strict=True)]


def _interval(figure: Sequence[float | None]) -> str:
    value, low, high = figure[:3]
    return f"{value:+.4f}" if low is None or high is None else f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    main()
