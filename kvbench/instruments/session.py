"""A model, its text and its calibrations, opened once for all units of a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.cache import Artefacts, CacheOptions, Geometry, embeddings_of, use_kvbench_attention
from kvbench.caches.needs import Needs
from kvbench.calibration import digests, provide
from kvbench.calibration.excerpt import calibration_tokens
from kvbench.errors import CorpusError
from kvbench.instruments.context import Asked, Stage
from kvbench.instruments.environment import describe
from kvbench.instruments.fit import check_fit
from kvbench.instruments.protocol import Runner
from kvbench.methods.method import Method
from kvbench.models.loading import LoadedModel, load_model
from kvbench.models.weights import cache_folder
from kvbench.spec import RunSpec
from kvbench.texts.corpora import Windows, load_windows
from kvbench.texts.tokens import reader_of


@dataclass(frozen=True)
class Session:
    """What units run on.

    Attributes:
        spec: The run. methods: Row label → method. loaded: The model. runner: It with its caches' needs.
        windows: Scored text, or ``None`` where no evaluator reads any.
    """

    spec: RunSpec
    methods: Mapping[str, Method]
    loaded: LoadedModel
    runner: Runner
    windows: Windows | None
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What evaluators read once and look at in each of their units, by evaluator."""

    @classmethod
    def open(cls, spec: RunSpec, methods: Mapping[str, Method], stage: Stage, evaluators: Sequence[Asked] = ()) -> Session:
        """Load the model, cut the text where an evaluator reads it, calibrate what methods need.

        Raises:
            KvbenchError: any of that cannot be had, or a method does not fit the model.
        """
        loaded = load_model(spec.model, seed=spec.seed, progress=stage, check=partial(check_fit, spec, methods, evaluators))
        reader = reader_of(loaded.tokenizer, spec.corpus.bos, embeddings_of(loaded.model))
        loaded = replace(loaded, tokenizer=reader)  # begins every text alike, and refuses ids without an embedding
        windows = load_windows(spec, loaded.tokenizer, stage) if any(e.needs_text for e in evaluators) else None
        use_kvbench_attention(loaded.model)
        geometry = Geometry.of(loaded.model)
        artefacts = _artefacts(methods, loaded, geometry, stage)
        options = CacheOptions(loaded.cache_dtype, spec.protocol, spec.context, spec.chunk_size, spec.seed)
        return cls(spec, methods, loaded, Runner(loaded.model, geometry, artefacts, options), windows)

    @property
    def info_model(self) -> dict[str, Any]:
        """The model's, and which calibration of it methods read: a digest of each artefact's tensors."""
        return self.loaded.info | {"calibration": digests(self.runner.artefacts)}

    @property
    def info_corpus(self) -> dict[str, Any] | None:
        return None if self.windows is None else self.windows.info

    @property
    def environment(self) -> dict[str, Any]:
        return describe(self.loaded.device)

    def close(self) -> None:
        """Nothing is held beyond the process."""

    def batch(self, index: int, context: int | None = None) -> Tensor:
        """Scored windows ``[B, C + S]`` of the ``index``-th batch, on the model's device.

        Args:
            context: C, the last tokens before the same continuation; ``None`` is the run's.

        Raises:
            CorpusError: the run reads no text.
        """
        if self.windows is None:
            raise CorpusError("this run has no text to score", hint="add --corpus")
        size = self.spec.batch_size
        tokens = self.windows.tokens[index * size : (index + 1) * size].to(self.loaded.device)
        return tokens if context is None else self.windows.with_context(tokens, context, self.spec.context)

    def prompt(self, batch: int, length: int) -> Tensor:
        """Any tokens ``[batch, length]`` for timing and sizes: the corpus's where it is long enough, else seeded random ids."""
        tokens = None if self.windows is None else self.windows.texts(batch, length)
        if tokens is None:
            generator = torch.Generator().manual_seed(self.spec.seed)
            tokens = torch.randint(self.loaded.shape.vocab_size, (batch, length), generator=generator)
            tokens[tokens == self._padding] = (self._padding + 1) % self.loaded.shape.vocab_size
        return tokens.to(self.loaded.device)

    @property
    def _padding(self) -> int:
        """The token whose embedding is zero in random weights, as no text's is: keys of no length are no keys. −1 is none."""
        padding = getattr(self.loaded.model.config.get_text_config(), "pad_token_id", None)
        return -1 if padding is None else int(padding)

    def needs(self, labels: Sequence[str]) -> Needs:
        """What serves all of these methods."""
        return reduce(lambda a, b: a | b, (self.methods[label].needs for label in labels), Needs())

    def baseline_bytes(self, tokens: int) -> int:
        """The model's own cache of ``tokens`` tokens of one sequence, in the cache's dtype."""
        g = self.runner.geometry
        return 2 * g.layers * g.kv_heads * g.head_dim * self.loaded.cache_dtype.itemsize * tokens

    def groups(self, labels: Sequence[str], baseline: str, tokens: int) -> Iterator[list[str]]:
        """Methods whose final hidden states fit a quarter of the free memory together, the baseline in each group first."""
        each = tokens * self.loaded.shape.hidden_size * self.loaded.dtype.itemsize
        size = max(1, int(self.free_memory() // 4 // max(1, each)))
        others = [label for label in labels if label != baseline]
        for start in range(0, max(1, len(others)), size):
            yield [baseline, *others[start : start + size]]

    def free_memory(self) -> int:
        """Bytes that are free now where the model is."""
        if self.loaded.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.loaded.device)[0])
        import psutil

        return int(psutil.virtual_memory().available)

    def calibrated(self, methods: Mapping[str, Method], stage: Stage) -> Runner:
        """The runner with what ``methods`` of an evaluator's own read of the model, beside what the run's methods do."""
        more = _artefacts(methods, self.loaded, self.runner.geometry, stage)
        return replace(self.runner, artefacts={**more, **self.runner.artefacts})

    def release(self) -> None:
        """Give back what something that broke held."""
        gc.collect()
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()


def _artefacts(methods: Mapping[str, Method], loaded: LoadedModel, geometry: Geometry, stage: Stage) -> Artefacts:
    names = {name for method in methods.values() for name in method.artefacts}
    if not names:
        return {}
    tokens = calibration_tokens(loaded.tokenizer, loaded.shape.vocab_size).to(loaded.device)
    folder = None if loaded.info["random_weights"] else cache_folder() / "calibration"
    digest = loaded.info["weights_hash"]
    return provide(names, loaded.model, geometry, tokens, weights_hash=digest, folder=folder, stage=stage, tokenizer=loaded.tokenizer)
