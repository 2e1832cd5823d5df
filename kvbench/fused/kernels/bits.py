"""Codes in words, and the numbers they stand for, without conversion instructions.

Plane j of a tile of words is a tile of its own, of codes ``(word >> j·bits) & mask``. How channels and tokens are dealt
to planes is :mod:`kvbench.fused.layout`'s.

In bfloat16 a code c of up to 7 bits becomes 128 + c by setting the exponent above it (``0x4300 | c``), two codes an
instruction. Codes of two bits stay where they are in the word while they fit the mantissa, and become 128 + c·4^(j mod 3);
whoever multiplies them divides by that. Eight bits are taken as c − 128, the sum of two such numbers. All are exact.
Elsewhere (float32, float16, Triton's interpreter) integers are converted.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SET = "0x43004300, 0xEA;"
"""Of two 16-bit lanes: and with a mask, or with the exponent of 128."""


def _words16(bits: int) -> str:
    """PTX from one register of two 16-bit words to one register a plane."""
    count, run = 16 // bits, 3 if bits == 2 else 1
    lines = ["{", ".reg .b32 t, a, b;"]
    for j in range(count):
        if j % run == 0:
            lines.append(f"shr.u32 t, ${count}, {j * bits};")
        mask = (((1 << bits) - 1) << (j % run * bits)) * 0x10001
        if bits == 8:
            lines += [
                "lop3.b32 a, t, 0x007F007F, 0x43004300, 0xEA;",  # 128 + the low seven bits
                "lop3.b32 b, t, 0x00800080, 0x43004300, 0xAE;",  # 128 where the eighth is set, else 256
                f"sub.rn.bf16x2 ${j}, a, b;",
            ]
        else:
            lines.append(f"lop3.b32 ${j}, t, {mask:#010x}, {_SET}")
    return "\n".join([*lines, "}"])


def _words8() -> str:
    """PTX from one register of four 8-bit words of two-bit codes to two registers a plane."""
    lines = ["{", ".reg .b32 l, h;", "prmt.b32 l, $8, 0, 0x4140;", "prmt.b32 h, $8, 0, 0x4342;"]
    for j in range(4):
        if j == 3:
            lines += ["shr.u32 l, l, 6;", "shr.u32 h, h, 6;"]
        mask = (3 << (j % 3 * 2)) * 0x10001
        lines += [f"lop3.b32 ${2 * j}, l, {mask:#010x}, {_SET}", f"lop3.b32 ${2 * j + 1}, h, {mask:#010x}, {_SET}"]
    return "\n".join([*lines, "}"])


_EIGHT = tl.constexpr(_words16(8))
_FOUR = tl.constexpr(_words16(4))
_TWO = tl.constexpr(_words16(2))
_TWO_IN_BYTES = tl.constexpr(_words8())
_R2 = tl.constexpr("=r,=r,r")
_R4 = tl.constexpr("=r,=r,=r,=r,r")
_R8 = tl.constexpr("=r,=r,=r,=r,=r,=r,=r,=r,r")


@triton.jit
def planes(words, WORD: tl.constexpr, BITS: tl.constexpr, FAST: tl.constexpr, TYPE: tl.constexpr):
    """Planes of a tile of words, as numbers of ``TYPE``: a tuple of ``WORD / BITS`` tiles.

    ``FAST`` (bfloat16): as the module says; otherwise the codes themselves.
    """
    if not FAST:
        wide = words.to(tl.int32)
        out = ()
        for j in tl.static_range(WORD // BITS):
            out = out + (((wide >> (j * BITS)) & ((1 << BITS) - 1)).to(TYPE),)
    elif BITS == 8:
        out = tl.inline_asm_elementwise(_EIGHT, _R2, [words], dtype=(tl.bfloat16,) * 2, is_pure=True, pack=2)
    elif BITS == 4:
        out = tl.inline_asm_elementwise(_FOUR, _R4, [words], dtype=(tl.bfloat16,) * 4, is_pure=True, pack=2)
    elif WORD == 16:
        out = tl.inline_asm_elementwise(_TWO, _R8, [words], dtype=(tl.bfloat16,) * 8, is_pure=True, pack=2)
    else:
        out = tl.inline_asm_elementwise(_TWO_IN_BYTES, _R8, [words], dtype=(tl.bfloat16,) * 4, is_pure=True, pack=4)
    return out
