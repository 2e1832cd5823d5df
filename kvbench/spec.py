"""What is asked for: frozen, parsed and validated before anything is loaded.

``RunSpec`` is the whole question of one run. Methods and evaluators are written as
``name`` or ``name:param=value,param=value``; a list separates them by commas
(``snapkv,kivi:bits=2,group=32,int8``). A first value without a name is the first parameter's
(``kvpress:SnapKVPress``). A value with several entries joins them by ``+`` (``speed:batch=1+8``);
an eviction and what stores the tokens that it keeps are joined likewise (``snapkv+kivi:bits=2``).
A method may end in the budget that it has to meet (``snapkv@4x``, ``kivi:group=32@14KiB/token``).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

import msgspec
import orjson

from kvbench.budgets import Budget, parse_budgets
from kvbench.errors import ResultError, UsageError
from kvbench.limits import check_config, check_size

ParamValue = bool | int | float | str
Params = tuple[tuple[str, ParamValue], ...]
Protocol = Literal["prefill", "streaming"]
Bos = Literal["auto", "on", "off"]
DTypeName = Literal["auto", "float16", "bfloat16", "float32", "float64"]


def parse_value(text: str) -> ParamValue:
    """``true``/``false``, integers and finite floats become themselves; anything else stays text."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    return text.strip()


def format_value(value: ParamValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


FIRST = ""
"""Name of a value that is given without one: the first parameter's."""


@dataclass(frozen=True)
class NamedSpec:
    """A registered name with parameters; ``label`` is its canonical text and its row's identity."""

    name: str
    params: Params = ()

    @property
    def label(self) -> str:
        given = ",".join(f"{key}={format_value(value)}" if key else format_value(value) for key, value in self.params)
        return f"{self.name}:{given}" if given else self.name

    @property
    def options(self) -> dict[str, ParamValue]:
        return dict(self.params)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name`` or ``name:param=value,...``.

        Raises:
            UsageError: a part that is not ``param=value``, a parameter given twice, or no name.
        """
        name, _, rest = text.strip().partition(":")
        if not name:
            raise UsageError(f"'{text}' has no name before ':'", hint="write NAME or NAME:param=value")
        params: dict[str, ParamValue] = {}
        for part in filter(None, (p.strip() for p in rest.split(","))):
            key, equals, value = part.partition("=")
            if not equals and not params:
                key, equals, value = FIRST, "=", part
            if not equals or not value or not (key or key is FIRST):
                raise UsageError(f"'{part}' in '{text}' is not param=value", hint=f"for example {name}:{key}=1")
            if key in params:
                raise UsageError(f"'{key}' is given twice in '{text}'")
            params[key] = parse_value(value)
        return cls(name, tuple(params.items()))


@dataclass(frozen=True)
class MethodSpec(NamedSpec):
    """A compression method as asked for.

    Attributes:
        store: What stores the tokens that the method keeps, written after a ``+``.
        budget: Bytes that it has to meet, written after an ``@`` (:mod:`kvbench.budgets`).
    """

    store: MethodSpec | None = None
    budget: str | None = None

    @property
    def label(self) -> str:
        joined = super().label + ("" if self.store is None else f"+{self.store.label}")
        return joined if self.budget is None else f"{joined}@{self.budget}"

    def turned(self, parameters: Mapping[str, ParamValue]) -> Self:
        """With ``parameters`` set; those whose name begins with ``+`` are the store's."""
        own = {key: value for key, value in parameters.items() if not key.startswith("+")}
        stores = {key[1:]: value for key, value in parameters.items() if key.startswith("+")}
        store = self.store.turned(stores) if self.store is not None else None
        return replace(self, params=tuple({**self.options, **own}.items()), store=store)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:param=value,...``, after a ``+`` what stores the tokens that it keeps, and after an ``@`` its budget.

        Raises:
            UsageError: a part that is not ``param=value``, a parameter given twice, a name that is missing, a second ``+``,
                or a budget that is none.
        """
        method, at, budget = text.rpartition("@")
        if at:
            return replace(cls.parse(method), budget=Budget.parse(budget).text)
        first, *rest = _PLUS.split(text.strip())
        if len(rest) > 1:
            raise UsageError(f"'{text}' joins more than two methods", hint="write EVICTION+QUANTISATION, for example snapkv+int4")
        own = super().parse(first)
        return replace(own, store=cls.parse(rest[0])) if rest else own


_PLUS = re.compile(r"\+(?=[^\d.])")
"""Joins two methods; between numbers it joins the entries of one value."""


class EvaluatorSpec(NamedSpec):
    """An evaluator as asked for."""


def split_list(text: str) -> list[str]:
    """Split a comma list of specs; ``b=2`` after ``kivi:a=1`` belongs to ``kivi``."""
    items: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        is_continuation = "=" in part and ":" not in part.split("=", 1)[0]
        if is_continuation and items and ":" in items[-1]:
            items[-1] += f",{part}"
        else:
            items.append(part)
    return items


@dataclass(frozen=True)
class ModelSpec:
    """Which model, in which numbers, on which device.

    Attributes:
        id: ``embedded:smollm2``, a hub id (``Qwen/Qwen2.5-7B``), a local folder, or a ``.gguf`` file.
        dtype: Number format of weights and activations; ``auto`` is the checkpoint's own (float32 on CPU).
        cache_dtype: Number format of the uncompressed cache; ``auto`` is 16 bit on every device, as deployed caches are: that of
            ``dtype`` where it has 16 bit, else the checkpoint's own, else bfloat16 (:func:`auto_cache_dtype`).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        device_map: ``auto`` spreads one model over several GPUs; ``None`` keeps it on ``device``.
        random_weights: Build the model from ``config`` alone; quality evaluators refuse.
        config: A ``transformers`` config (with ``model_type``), so that random weights need no hub.
        revision: Hub revision, or ``None``.
    """

    id: str = "embedded:smollm2"
    dtype: DTypeName = "auto"
    cache_dtype: DTypeName = "auto"
    device: str = "auto"
    device_map: str | None = None
    random_weights: bool = False
    config: dict[str, Any] | None = None
    revision: str | None = None


HALF: tuple[DTypeName, ...] = ("bfloat16", "float16")


def auto_cache_dtype(dtype: str, config: Mapping[str, Any]) -> str:
    """The 16-bit format that an uncompressed cache has where none is asked for.

    Args:
        dtype: Format of weights and activations. config: The model's, whose ``dtype`` (``torch_dtype``) is the checkpoint's own.
    """
    own = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return next((name for name in (dtype, own) if name in HALF), HALF[0])


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
    ``method_timeout`` is the most seconds that one method may take in one unit, ``auto`` as :mod:`kvbench.engine.limits`
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
