"""What a calibration works on: a model, a text, and the folder where results are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvbench.caches.cache import capture_cache, captured, decoder_of
from kvbench.caches.needs import Needs
from kvbench.texts.tokens import reader_of

if TYPE_CHECKING:
    from kvbench.caches.cache import Geometry
    from kvbench.caches.layer import TokenView

WINDOW = 512
"""Most tokens of one forward over the calibration text."""
Stage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Source:
    """A model with its calibration text.

    Attributes:
        model: Uses kvbench's attention. geometry: Read off it. tokens: ``[n]``.
        weights_hash, folder: Identity of the weights, and where to keep results; ``None`` keeps nothing.
        stage: Told (what, done, total). tokenizer: The model's, or ``None``.
    """

    model: object
    geometry: Geometry
    tokens: Tensor
    weights_hash: str | None
    folder: Path | None
    stage: Stage
    tokenizer: Any | None = None

    @cached_property
    def head(self) -> Tensor:
        """Token ids at the head of every text, as the tokenizer or the run puts them there; ``[0]`` for none."""
        reader = reader_of(self.tokenizer)
        return torch.tensor(() if reader is None else reader.head, dtype=self.tokens.dtype, device=self.tokens.device)

    @cached_property
    def text_hash(self) -> str:
        """sha256 of the token ids."""
        return hashlib.sha256(torch.cat((self.head, self.tokens)).cpu().numpy().tobytes()).hexdigest()

    def file(self, what: str) -> Path | None:
        """Where ``what`` of these weights and this text, computed in this dtype, is kept."""
        if self.folder is None or self.weights_hash is None:
            return None
        dtype = str(self.geometry.dtype).removeprefix("torch.")
        return self.folder / f"{what}-{dtype}-{self.weights_hash[:16]}-{self.text_hash[:12]}.safetensors"

    @torch.inference_mode()
    def windows(self, needs: Needs, what: str) -> Iterator[list[TokenView]]:
        """What each window of the text left in the layers: keys and values ``[1, Hkv, n, D]``, one view a layer.

        The windows are as long as each other to a token, have at most 512, and leave nothing of the text out.
        """
        count = max(1, -(-len(self.tokens) // (WINDOW - len(self.head))))
        windows = self.tokens.tensor_split(count)
        for done, window in enumerate(windows):
            self.stage(what, done, len(windows))
            cache = capture_cache(self.geometry, needs)
            decoder_of(self.model)(input_ids=torch.cat((self.head, window))[None], past_key_values=cache, use_cache=True)
            yield captured(cache)
        self.stage(what, len(windows), len(windows))
