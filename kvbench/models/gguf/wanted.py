"""What weights a GGUF file must hold, and under which names and in which numbers transformers wants them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kvbench.errors import ModelError, UnsupportedModel
from kvbench.models.gguf.families import SHAPES, Family
from kvbench.models.gguf.header import Header, Tensor, broken
from kvbench.models.gguf.kinds import KEPT, can_decode, name_of
from kvbench.models.gguf.rope import TENSORS as ROPE


@dataclass(frozen=True)
class Part:
    """One weight of the folder.

    Attributes:
        name, shape: transformers'.
        source: The tensor that holds it.
        expert: Which slice of the tensor, or ``None`` for all of it.
        heads: Heads whose rows are interleaved; 0 leaves rows as they are.
        shift: Subtracted from each number.
    """

    name: str
    shape: tuple[int, ...]
    source: Tensor
    expert: int | None = None
    heads: int = 0
    shift: float = 0.0

    @property
    def dtype(self) -> str:
        """float32, float16 or bfloat16."""
        return "float32" if self.shift else KEPT.get(self.source.kind, "float32")

    @property
    def size(self) -> int:
        """Bytes."""
        count = 4 if self.dtype == "float32" else 2
        for dimension in self.shape:
            count *= dimension
        return count


@dataclass(frozen=True)
class _Wanted:
    name: str
    shape: tuple[int, ...]
    heads: int = 0
    shift: float = 0.0


def check_tensors(header: Header, family: Family, sizes: Mapping[str, int]) -> None:
    """Hold the file's tensors against what the family has.

    Raises:
        ModelError: one is missing, of another shape, or of a type that cannot be decoded.
        UnsupportedModel: one is not known.
    """
    wanted = _wanted(header, family, sizes)
    for name, tensor in header.tensors.items():
        if name not in wanted and name not in ROPE:
            text = f"'{header.path.name}' cannot be benchmarked: tensor {name!r} is unknown in a {family.model_type} model"
            raise UnsupportedModel(text, hint="use a safetensors checkpoint of the model")
        _check_type(header, tensor)
    for name, want in wanted.items():
        if name not in header.tensors:
            raise broken(header.path, f"tensor {name!r} is missing")
        shape = header.tensors[name].shape
        if shape != want.shape and not (len(want.shape) == 1 and shape == (1, *want.shape)):
            raise broken(header.path, f"tensor {name!r} is {list(shape)} and should be {list(want.shape)}")


def parts_of(header: Header, family: Family, sizes: Mapping[str, int]) -> list[Part]:
    """Every weight of the folder, in the order in which safetensors keeps them (wide numbers first, then by name)."""
    parts = [part for name, want in _wanted(header, family, sizes).items() for part in _parts(header.tensors[name], want)]
    order = ("float32", "bfloat16", "float16")
    return sorted(parts, key=lambda part: (order.index(part.dtype), part.name))


def config_dtype(header: Header) -> str:
    """The numbers that most of the weights come in: a 16-bit format, or float32 for what has to be decoded."""
    counts = dict.fromkeys(KEPT.values(), 0)
    for tensor in header.tensors.values():
        counts[KEPT.get(tensor.kind, "float32")] += tensor.size
    return max(counts, key=lambda name: counts[name])


def _wanted(header: Header, family: Family, sizes: Mapping[str, int]) -> dict[str, _Wanted]:
    """Tensors of the file → what they become."""
    shift = 1.0 if family.shifted else 0.0
    table = (sizes["vocabulary"], sizes["hidden"])
    wanted = {
        "token_embd.weight": _Wanted("model.embed_tokens.weight", table),
        "output_norm.weight": _Wanted("model.norm.weight", (sizes["hidden"],), shift=shift),
    }
    if "output_norm" in family.biases:
        wanted["output_norm.bias"] = _Wanted("model.norm.bias", (sizes["hidden"],))
    if "output.weight" in header.tensors:
        wanted["output.weight"] = _Wanted("lm_head.weight", table)
    if sizes["layers"] > len(header.tensors):
        raise broken(header.path, f"{sizes['layers']:,} layers in {len(header.tensors):,} tensors")
    biased = {*family.biases, *_given_biases(header, family)}
    for layer in range(sizes["layers"]):
        for name, module in family.weights.items():
            shape = tuple(sizes[size] for size in (family.shapes.get(name) or SHAPES[name]))
            heads = {"attn_q": sizes["heads"], "attn_k": sizes["kv_heads"]}.get(name, 0) if family.interleaved else 0
            here = f"model.layers.{layer}.{module}"
            wanted[f"blk.{layer}.{name}.weight"] = _Wanted(f"{here}.weight", shape, heads, shift if name.endswith("norm") else 0.0)
            if name in biased:
                wanted[f"blk.{layer}.{name}.bias"] = _Wanted(f"{here}.bias", shape[:1], heads)
    return wanted


def _given_biases(header: Header, family: Family) -> Iterator[str]:
    for group in family.optional_biases.values():
        if f"blk.0.{group[0]}.bias" in header.tensors:
            yield from group


def _parts(tensor: Tensor, want: _Wanted) -> Iterator[Part]:
    if "{}" in want.name:
        for expert in range(want.shape[0]):
            yield Part(want.name.format(expert), want.shape[1:], tensor, expert=expert)
    else:
        # transformers' gate of a shared expert is a table of one row
        shape = (1, *want.shape) if want.name.endswith("shared_expert_gate.weight") else want.shape
        yield Part(want.name, shape, tensor, heads=want.heads, shift=want.shift)


def _check_type(header: Header, tensor: Tensor) -> None:
    if not can_decode(tensor.kind):
        text = f"tensor {tensor.name!r} of '{header.path.name}' is {name_of(tensor.kind)}, which cannot be decoded"
        raise ModelError(text, hint="update the gguf package, or use another quantisation of the model")
