"""Sizes beyond which a number is a mistake, and planning with it would not end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvbench.errors import UsageError

MOST, MOST_SAMPLES, MOST_LAYERS = 1 << 31, 1_000_000, 100_000


def check_size(name: str, value: int) -> None:
    """Refuse what no run can have.

    Raises:
        UsageError: names the flag.
    """
    if value > (MOST_SAMPLES if name == "samples" else MOST):
        raise UsageError(f"--{name.replace('_', '-')} is {value}; no run can be that large")


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what no model has.

    Raises:
        UsageError: names the key.
    """
    for key, value in config.items():
        limit = MOST_LAYERS if "layers" in key else MOST
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > limit:
            raise UsageError(f"{key}={value} of the model's config is larger than any model's", hint="correct [model.config]")
