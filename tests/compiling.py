"""Compiles the fused path's kernels for a Hopper GPU without having one, and says what became of them.

Run as a script, apart from tests that interpret kernels: ``python tests/compiling.py CASE...`` prints one JSON object a
case. What is compiled is what the launching code asks for: its launches are recorded on CPU tensors, which pass for a
GPU's, with their arguments' types.
"""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvbench.caches.layer import LayerContext
from kvbench.fused import kernels, launch
from kvbench.fused.kernels import glue, linear
from kvbench.fused.layer import fused_layer
from kvbench.methods.base import resolve
from kvbench.spec import MethodSpec, RunSpec

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TARGET = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
}
OVERLAP = {"OVERLAPS": True, "launch_pdl": True}


Launched = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A kernel, its arguments, and its named ones with the compiler's options."""


@contextmanager
def recorded() -> Iterator[list[Launched]]:
    """Kernels are not started, but noted with what they would have been given."""
    found: list[Launched] = []
    modules = [import_module(f"{kernels.__name__}.{one.name}") for one in pkgutil.iter_modules(kernels.__path__)]
    own = [(module, name, value) for module in modules for name, value in vars(module).items() if isinstance(value, triton.JITFunction)]
    for module, name, kernel in own:
        setattr(module, name, _Noted(kernel, found))
    try:
        yield found
    finally:
        for module, name, kernel in own:
            setattr(module, name, kernel)


@dataclass
class _Noted:
    kernel: Any
    found: list[Launched]

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **named: self.found.append((self.kernel, args, named))


def compiled(kernel: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """As Triton would on a GPU: pointers aligned to 16 bytes, 1 a constant, multiples of 16 known as such."""
    parameters = kernel.params
    given = dict(zip((p.name for p in parameters), args, strict=False)) | {k: v for k, v in named.items() if k in kernel.arg_names}
    signature, constants, known = {}, {}, {}
    for index, parameter in enumerate(parameters):
        value = given[parameter.name]
        free = parameter.do_not_specialize
        if parameter.is_constexpr or (type(value) is int and value == 1 and not free):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        if isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0 and not free):
            known[(index,)] = [["tt.divisibility", 16]]
    options = {k: v for k, v in named.items() if k not in kernel.arg_names}
    return triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=known), target=TARGET, options=options)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def described(binary: Any) -> dict[str, Any]:
    """Registers and bytes of stack a thread, shared bytes, and how often each instruction stands in the longest loop."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        dump = [CUOBJDUMP, "--dump-resource-usage", "--dump-sass", file.name]
        code = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", code).groups())  # type: ignore[union-attr]
    return {"registers": registers, "stack": stack, "shared": binary.metadata.shared, "loop": _loop(code)}


def _loop(code: str) -> Counter[str]:
    """Instructions of the loop that multiplies: of those with the most products the shortest, without any the longest."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)]
    jumps = [(int(found[1], 16), at) for at, text in lines if (found := re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text))]
    loops = [_names(text for at, text in lines if start <= at <= end) for start, end in jumps if start < end]

    def rank(loop: Counter[str]) -> tuple[int, int]:
        products, size = loop["HMMA"] + loop["HGMMA"], loop.total()
        return products, -size if products else size

    return max(loops, key=rank, default=Counter())


def _names(texts: Iterable[str]) -> Counter[str]:
    return Counter(re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0] for text in texts)


def reading(label: str, size: int = 128, heads: int = 28, kv_heads: int = 4) -> dict[str, Any]:
    """One step of a method's layer: storing its token, reading its regions, putting the parts together; and what is due after many."""
    layer = resolve(MethodSpec.parse(label), RunSpec()).layer(LayerContext(0, 1, heads, kv_heads, size, torch.bfloat16))
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 300, size, generator=draw).bfloat16() for n in (heads, kv_heads, kv_heads))
    layer.forward(q, k, v, size**-0.5)
    launch.Launch._is_fast = property(lambda self: self.dtype == torch.bfloat16)  # type: ignore[method-assign]  # as on a GPU
    fused = fused_layer(layer, torch.zeros(1, dtype=torch.int32), 64)
    turn = torch.zeros(1, size).bfloat16()
    launch._launch_options = lambda device: OVERLAP
    with recorded() as launches:
        started = launch.Launch(fused.taken, 64)
        started.step(q[:, :, 0].flatten(1), k[:, :, 0].flatten(1), v[:, :, 0].flatten(1), (turn, turn))
        if fused.taken.window is not None:
            started.flush(fused.taken.window)
    return {one[0].__name__: described(compiled(*one)) for one in launches}


def glued() -> dict[str, Any]:
    """Norm and gate, and a product of one row and of four."""
    stream, weight, wide = torch.zeros(1, 3584).bfloat16(), torch.ones(3584).bfloat16(), torch.zeros(1, 37888).bfloat16()
    matrix = torch.zeros(512, 3584).bfloat16()
    for module in (glue, linear):
        module.launch_options = lambda device: OVERLAP  # type: ignore[attr-defined]  # as on a GPU
    with recorded() as launches:
        glue.add_norm(stream, stream, weight, 1e-6)
        glue.gated(wide, "silu")
        linear.multiprocessors = lambda device: 132  # type: ignore[attr-defined]
        for rows in (1, 32):
            tile = linear.tiles(rows, 512, torch.bfloat16, gated=False)[0]
            linear.product(tile, stream.expand(rows, -1).contiguous(), matrix, None)
    return {one[0].__name__: described(compiled(*one)) for one in launches}


def main() -> None:
    for case in sys.argv[1:]:
        print(json.dumps({"case": case, **(glued() if case == "glue" else reading(case))}), flush=True)


if __name__ == "__main__":
    main()
