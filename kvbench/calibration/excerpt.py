"""The text on which methods are calibrated: the end of the embedded language reference, never the windows scored from its start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvbench.errors import CorpusError
from kvbench.texts.corpora import open_text

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 4096


def calibration_tokens(tokenizer: Any | None, vocabulary: int, count: int = TOKENS) -> Tensor:
    """``[count]`` token ids; seeded random ids for a model without a tokenizer.

    Raises:
        CorpusError: the text's second half, which is all that is taken, has fewer.
    """
    import torch

    if tokenizer is None:
        return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(0))
    text = open_text("language_reference", None)
    text.at_least(2**31)
    end = text.read[-min(8 * count, len(text.read) // 2) :]
    ids = tokenizer(end, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < count:
        raise CorpusError(
            f"the calibration text has {len(ids):,} tokens of this model, not {count:,}", hint=f"use --tokens {len(ids)} or fewer"
        )
    return torch.tensor(ids[-count:])
