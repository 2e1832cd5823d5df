"""``kvbench calibrate METHOD``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvbench.displays.streams import put, talk
from kvbench.errors import UnknownName
from kvbench.figures import Table
from kvbench.figures.terminal import columns
from kvbench.spec import ModelSpec

if TYPE_CHECKING:
    from kvbench.calibration.source import Source
    from kvbench.calibration.surrogate_weights import Surrogate

TOKENS = 16_000


@click.command()
@click.argument("method")
@click.option("--model", metavar="ID", default=ModelSpec.id, show_default=True, help="Hub id, local folder or .gguf file.")
@click.option("--kind", type=click.Choice(["linear", "mlp"]), default="linear", show_default=True, help="Ridge regression, or two layers.")
@click.option("--tokens", type=click.IntRange(min=256), default=TOKENS, show_default=True, help="Of the calibration text.")
@click.option("--from", "published", metavar="ID", help="Take published weights: hub id or folder of safetensors.")
@click.option("--device", metavar="DEVICE", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@click.option("--dtype", type=click.Choice(["auto", "float16", "bfloat16", "float32"]), default="auto", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of a network's initial weights and of the order of tokens.")
def calibrate(method: str, *, model: str, kind: str, tokens: int, published: str | None, device: str, dtype: str, seed: int) -> None:
    """Calibrate METHOD for a model on more text than a run takes for it, and keep the outcome for all runs of these weights.

    The one METHOD is kvzap; others calibrate themselves when they run, and so does kvzap where this was not called.
    The table gives R² on text that was held out, by layer.

    \b
    kvbench calibrate kvzap
    kvbench calibrate kvzap --model Qwen/Qwen2.5-0.5B --kind mlp --tokens 32000
    kvbench calibrate kvzap --model Qwen/Qwen3-8B --from nvidia/KVzap-mlp-Qwen3-8B
    """
    if method != "kvzap":
        raise UnknownName(
            "method to calibrate:", method, ["kvzap"], hint="kvbench calibrate kvzap  # others calibrate themselves as they run"
        )
    from kvbench.calibration import surrogate_weights

    source = _source(ModelSpec(id=model, device=device, dtype=dtype), 0 if published else tokens)  # type: ignore[arg-type]
    found = surrogate_weights.published(published, source) if published else surrogate_weights.calibrate(kind, source, seed=seed)
    file = surrogate_weights.keep(found, source)
    _tell(found)
    talk(f"kept in {file}")
    talk("next: kvbench run --methods kvzap" + ("" if found.kind == "linear" else f":surrogate={found.kind}"))


def _source(spec: ModelSpec, tokens: int) -> Source:
    """The model, and the end of the calibration text."""
    import torch

    from kvbench.caches.cache import Geometry, embeddings_of, use_kvbench_attention
    from kvbench.calibration.excerpt import calibration_tokens
    from kvbench.calibration.source import Source
    from kvbench.models.loading import load_model
    from kvbench.models.shape import check_supported
    from kvbench.models.weights import cache_folder
    from kvbench.texts.tokens import reader_of

    loaded = load_model(spec, seed=0, progress=_stage)
    check_supported(loaded.config)
    use_kvbench_attention(loaded.model)
    tokenizer = reader_of(loaded.tokenizer, rows=embeddings_of(loaded.model))
    text = calibration_tokens(tokenizer, loaded.shape.vocab_size, tokens).to(loaded.device) if tokens else torch.empty(0)
    folder = cache_folder() / "calibration"
    return Source(loaded.model, Geometry.of(loaded.model), text, loaded.info["weights_hash"], folder, _stage, tokenizer)


def _tell(found: Surrogate) -> None:
    if found.r2 is None:
        put(f"{found.kind} surrogate of {len(found.layers)} layers\n")
        return
    layers = {**{str(i): layer for i, layer in enumerate(found.r2)}, "all": found.r2}
    rows = [[name, f"{r.mean():.3f}", f"{r.min():.3f}", f"{r.max():.3f}"] for name, r in layers.items()]
    put(columns(Table("r2", "", ["layer", "R²", "lowest head", "highest head"], rows, left=4)) + "\n")
    ridge = "" if found.strength is None else f", ridge penalty {found.strength:g}"
    put(f"{found.kind}: learnt from {found.tokens:,} tokens, tested on {found.held_out:,} others{ridge}\n")


def _stage(stage: str, done: int = 0, total: int = 0) -> None:
    if total and stage.startswith("calibrating"):
        talk(f"  {stage} {done}/{total}")
    elif done == 0:
        talk(f"  {stage}")
