"""Where kernels run in tests: on a GPU if there is one, else in Triton's interpreter on CPU tensors (``conftest.py`` chooses it)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = DEVICE.type == "cpu"

triton = pytest.importorskip("triton", reason="Triton runs the kernels of the fused path; pip install triton")

if INTERPRETED:
    from triton.runtime import interpreter

    _patch_tensor = interpreter._patch_lang_tensor

    def _patch(tensor: Any, scope: Any) -> None:
        """Triton 3.6 makes a loop's bound an int in a way that numpy 2.4 refuses: it lies in an array of one element."""
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch
