"""The whole question of one run: text, lengths, methods, evaluators, protocol."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import msgspec
import orjson

from kvbench.errors import ResultError, UsageError
from kvbench.spec.budgets import parse_budgets
from kvbench.spec.model import ModelSpec
from kvbench.spec.named import EvaluatorSpec, MethodSpec
from kvbench.spec.sizes import check_config, check_size
from kvbench.spec.values import ParamValue

Protocol = Literal["prefill", "streaming"]
Bos = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class CorpusSpec:
    """Which text, and how windows are cut from it.

    Attributes:
        name: A registered corpus or a path to ``.txt``/``.jsonl``.
        data_dir: Local mirror looked at before the hub (``--data-dir`` or ``KVBENCH_DATA``).
        stride: Tokens of text between window starts; ``None`` puts one window right behind the other.
        bos: Whether every window begins with the tokenizer's BOS: ``auto`` where the tokenizer adds one to a text.
    """

    name: str = "language_reference"
    data_dir: str | None = None
    stride: int | None = None
    bos: Bos = "auto"


@dataclass(frozen=True)
class SweepRow:
    """One setting of a sweep: its row's label, the method that it is a setting of, and its value on each axis, if it has one."""

    label: str
    method: str
    at: tuple[ParamValue | None, ...]


@dataclass(frozen=True)
class SweepSpec:
    """Where the rows of a sweep stand; :mod:`kvbench.sweeps` makes and reads it.

    Attributes:
        axes: Name and values of each that tells rows apart, in the order asked for.
        rows: One a setting. contexts, batches: Lengths and batches that every row is measured at, where those are swept.
        ablation: Its name, where it has one.
    """

    axes: tuple[tuple[str, tuple[ParamValue, ...]], ...] = ()
    rows: tuple[SweepRow, ...] = ()
    contexts: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    ablation: str | None = None


@dataclass(frozen=True)
class RunSpec:
    """One run's whole question.

    Lengths are in tokens; ``compression_ratio`` is the fraction removed. Every method that has no budget of its own is
    run once for each ``budget`` of the comma list. ``sweep`` says which rows are settings along which axes;
    ``method_timeout`` is the most seconds that one method may take in one unit, ``auto`` as :mod:`kvbench.engine.deadlines`
    has it; ``notes`` are what a reader should know of how the question was made. None of these three changes a figure.
    """

    preset: str | None = None
    model: ModelSpec = field(default_factory=ModelSpec)
    methods: tuple[MethodSpec, ...] = ()
    evaluators: tuple[EvaluatorSpec, ...] = ()
    corpus: CorpusSpec = field(default_factory=CorpusSpec)
    samples: int = 8
    context: int = 512
    continuation: int = 256
    compression_ratio: float = 0.5
    budget: str | None = None
    protocol: Protocol = "prefill"
    chunk_size: int = 1
    batch_size: int = 1
    seed: int = 0
    sweep: SweepSpec | None = None
    method_timeout: float | Literal["auto", "off"] = "auto"
    notes: tuple[str, ...] = ()

    def validate(self) -> RunSpec:
        """Refuse values that no run can have.

        Raises:
            UsageError: names the flag, the value and the range.
        """
        for name in ("samples", "context", "continuation", "chunk_size", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
            check_size(name, getattr(self, name))
        check_config(self.model.config or {})
        if not 0.0 <= self.compression_ratio < 1.0:
            raise UsageError(
                f"--compression-ratio is {self.compression_ratio}; it is the fraction removed and lies in [0, 1)",
                hint="for a cache four times smaller use --compression-ratio 0.75",
            )
        if isinstance(self.method_timeout, float | int) and not 0.0 < self.method_timeout < math.inf:
            raise UsageError(f"--method-timeout is {self.method_timeout}; it is a number of seconds above 0", hint="or auto, or off")
        self._check_budgets()
        if self.corpus.stride is not None and self.corpus.stride < 1:
            raise UsageError(f"--stride is {self.corpus.stride}; it must be at least 1")
        if self.samples % self.batch_size:
            raise UsageError(
                f"--samples {self.samples} is not a multiple of --batch-size {self.batch_size}",
                hint=f"use --samples {-(-self.samples // self.batch_size) * self.batch_size}",
            )
        labels = [m.label for m in self.methods]
        for label in labels:
            if labels.count(label) > 1:
                raise UsageError(f"method '{label}' is given twice", hint="name each method once")
        return self

    def _check_budgets(self) -> None:
        if self.budget is not None:
            parse_budgets(self.budget)
        if self.protocol == "streaming" and (self.budget is not None or any(m.budget for m in self.methods)):
            raise UsageError(
                "a budget is what is stored after the context, and --protocol streaming reads bytes at the stream's end",
                hint="--protocol prefill, or set the methods' own parameters",
            )

    def with_changes(self, **changes: Any) -> RunSpec:
        return replace(self, **changes)

    @property
    def digest(self) -> str:
        """A short hash of everything that could change a number."""
        plain = {key: value for key, value in asdict(replace(self, sweep=None)).items() if key not in ("method_timeout", "notes")}
        return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> RunSpec:
        """Rebuild a spec from its plain form.

        Raises:
            ResultError: the data does not describe a run.
        """
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ResultError(f"this is no run specification: {error}", hint="start a new run") from error
