"""The kernels compile for a Hopper GPU, and are the machine code they were written to be: no GPU is needed to see that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CODED = {"int8": 8, "int4:group=64": 0, "int4:k_bits=2,v_bits=2,group=64": 8, "kivi:bits=2": 16}
"""Methods that store codes, and how often the loop may store to shared memory: probabilities, and queries times scales of a channel."""
KERNELS = {
    "baseline": {"append", "split_dense", "combine"},
    **{label: {"append", "split", "combine"} for label in CODED},
    "kivi:bits=2": {"append", "split", "read", "combine", "flush"},
    "glue": {"_add_norm_kernel", "_gated_kernel", "_row_kernel", "_rows_kernel"},
}
SPILLED = 16
"""Bytes of stack a thread that are no matter."""
_spec = find_spec("triton")
TOOL = _spec and Path(str(_spec.origin)).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

pytestmark = pytest.mark.skipif(not TOOL or not TOOL.exists(), reason="needs Triton with its NVIDIA backend; pip install triton")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each kernel, by case; made apart, since kernels of this process may be interpreted ones."""
    script = Path(__file__).with_name("compiling.py")
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folder = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, str(script), *KERNELS], env=kept | {"TRITON_CACHE_DIR": folder}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line.pop("case"): line for line in lines}


def of(loop: dict[str, int], *starts: str) -> int:
    """Instructions of these names."""
    return sum(count for name, count in loop.items() if name.startswith(starts))


def test_every_kernel_compiles_and_keeps_to_its_registers(found: dict[str, dict[str, Any]]) -> None:
    assert {label: set(kernels) for label, kernels in found.items()} == KERNELS
    spilled = {(label, name): one["stack"] for label, kernels in found.items() for name, one in kernels.items() if one["stack"] > SPILLED}
    assert not spilled


@pytest.mark.parametrize("label", CODED)
def test_codes_reach_the_tensor_cores_without_conversions(label: str, found: dict[str, dict[str, Any]]) -> None:
    loop = found[label]["split"]["loop"]
    assert of(loop, "HMMA") >= 64  # the loop is the one that reads: 64 tokens of 128 + 128 channels
    assert of(loop, "I2F") == 0
    assert of(loop, "LDL", "STL") == 0


@pytest.mark.parametrize("label", CODED)
def test_numbers_make_no_detour_through_shared_memory(label: str, found: dict[str, dict[str, Any]]) -> None:
    """Codes as numbers would be 32 stores a thread of either side, or 16 with twice the words."""
    loop = found[label]["split"]["loop"]
    assert of(loop, "LDGSTS") > 0  # loads of later tokens are on their way meanwhile
    assert of(loop, "STS") <= CODED[label]


@pytest.mark.parametrize(("case", "kernel"), [("baseline", "split_dense"), ("glue", "_rows_kernel")])
def test_dense_loops_wait_for_no_load(case: str, kernel: str, found: dict[str, dict[str, Any]]) -> None:
    loop = found[case][kernel]["loop"]
    assert of(loop, "HMMA", "HGMMA") > 0
    assert of(loop, "LDGSTS") > 0
    assert of(loop, "LDG") == of(loop, "LDGSTS", "LDGDEPBAR")
