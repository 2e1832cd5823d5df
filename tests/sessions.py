"""A run's session on a model at hand, as a worker opens it, for tests without a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from telling import Told
from torch import Tensor

from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
from kvbench.evaluators.base import Evaluator
from kvbench.instruments.protocol import Runner
from kvbench.instruments.session import Session
from kvbench.methods.base import resolve
from kvbench.methods.method import Method
from kvbench.models.loading import LoadedModel
from kvbench.models.shape import shape_of
from kvbench.spec import RunSpec
from kvbench.texts.corpora import Windows


def loaded_of(model: Any, tokenizer: Any = None, cache: torch.dtype | None = None) -> LoadedModel:
    """A tiny model of random weights as if it had been loaded; its cache is in its own numbers unless ``cache`` says otherwise."""
    info = {"random_weights": True, "weights_hash": None}
    device, shape = torch.device("cpu"), shape_of(model.config.to_dict())
    return LoadedModel(model, tokenizer, model.config, shape, device, model.dtype, cache or model.dtype, info)


def opened(
    loaded: LoadedModel,
    spec: RunSpec,
    methods: Mapping[str, Method] | None = None,
    *,
    tokens: Tensor | None = None,
    artefacts: Mapping[str, Any] | None = None,
) -> Session:
    """The session, its model's attention kvbench's from now on; ``methods`` are the spec's unless given, ``tokens`` its windows."""
    use_kvbench_attention(loaded.model)
    made = {m.label: resolve(m, spec) for m in spec.methods} if methods is None else methods
    options = CacheOptions(loaded.cache_dtype, spec.protocol, spec.context, spec.chunk_size, spec.seed)
    runner = Runner(loaded.model, Geometry.of(loaded.model), artefacts or {}, options)
    return Session(spec, made, loaded, runner, None if tokens is None else Windows(tokens, {}))


def told_by(evaluator: Evaluator, session: Session) -> Told:
    """What an evaluator records of every unit."""
    told = Told(evaluator.name)
    for unit in evaluator.units(session.spec, list(session.methods)):
        evaluator.run(unit, session, told)
    return told
