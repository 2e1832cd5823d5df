"""The text on which methods are calibrated: the end of the embedded language reference, never the windows scored from its start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvbench.corpora import open_text

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 4096
_CHARACTERS = 8 * TOKENS


def calibration_tokens(tokenizer: Any | None, vocabulary: int) -> Tensor:
    """``[4096]`` token ids; seeded random ids for a model without a tokenizer."""
    import torch

    if tokenizer is None:
        return torch.randint(vocabulary, (TOKENS,), generator=torch.Generator().manual_seed(0))
    text = open_text("language_reference", None)
    text.at_least(2**31)
    ids = tokenizer(text.read[-_CHARACTERS:], add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids[-TOKENS:])
