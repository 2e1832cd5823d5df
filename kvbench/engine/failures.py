"""What went wrong in a worker, in words of the journal, and what is done about it."""

from __future__ import annotations

import gc
import math
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from kvbench.errors import KvbenchError, ResourceError, RunFailed, told
from kvbench.instruments.out_of_memory import is_out_of_memory


def not_finite(data: Any, name: str = "value") -> str | None:
    """The name of the first NaN or infinity in nested plain data, or ``None``."""
    if isinstance(data, Mapping):
        return next((found for key, value in data.items() if (found := not_finite(value, str(key)))), None)
    if hasattr(data, "tolist"):
        data = data.tolist()
    if isinstance(data, list | tuple):
        return next((found for value in data if (found := not_finite(value, name))), None)
    return name if isinstance(data, float) and not math.isfinite(data) else None


def classify(error: BaseException) -> tuple[str, str]:
    """(kind, one line): ``out of memory``, ``not finite`` or the exception's own name."""
    first = told(error) or "no message"
    if is_out_of_memory(error):
        return "out of memory", first
    if isinstance(error, FloatingPointError):
        return "not finite", first
    if isinstance(error, KvbenchError):
        return type(error).__name__, first
    return type(error).__name__, f"{type(error).__name__}: {first}"


def free_memory() -> None:
    """Give back what a failed method held."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def cannot_open(error: BaseException, what: str = "the model") -> KvbenchError:
    """Trying again would end the same way, so this ends the run."""
    if isinstance(error, KvbenchError):
        return error
    traceback.print_exc()
    kind, text = classify(error)
    if kind == "out of memory":
        return ResourceError(f"out of memory while {what} was prepared: {text}", hint="use a smaller --model, or another --device")
    return RunFailed(f"{what} could not be prepared: {text}", hint="the run's run.log has the traceback")
