"""How many bytes a method may store, and what it may turn to meet that. No torch here.

A budget is written behind a method (``snapkv@4x``) or for all of them (``--budget 2x,4x``): times smaller than the
baseline's cache, or bytes for each token of the context over all layers (``14KiB/token``). It is met by what the method
really stores after the context, to within ``TOLERANCE``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvbench.errors import UsageError
from kvbench.spec.values import ParamValue

TOLERANCE = 0.02
"""Share of the budget by which stored bytes may miss it, either way."""
EXAMPLES = "4x, 2.5x, 14KiB/token or 512B/token"
_UNITS = {"B/token": 1, "KiB/token": 1024, "MiB/token": 1024**2}
_FORM = re.compile(r"(\d+(?:\.\d+)?) ?(x|B/token|KiB/token|MiB/token)", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """Bytes that may be stored.

    Attributes:
        text: Canonical, as it stands in labels. unit: ``x``, or one of bytes for each token. amount: How many of it.
    """

    text: str
    unit: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``4x`` or ``14KiB/token``.

        Raises:
            UsageError: neither form, less than ``1x``, or no bytes at all.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise UsageError(f"'{text}' is not a budget", hint=f"write {EXAMPLES}")
        unit = next(known for known in ("x", *_UNITS) if known.lower() == found[2].lower())
        amount = float(found[1])
        if unit == "x" and amount < 1:
            raise UsageError(f"budget '{text}' is more than the baseline's bytes; it must be at least 1x", hint="2x is half of them")
        if amount == 0:
            raise UsageError(f"budget '{text}' leaves no bytes", hint=f"write {EXAMPLES}")
        return cls(f"{amount:.10g}{unit}", unit, amount)

    def target(self, baseline: int, tokens: int) -> float:
        """Bytes that may be stored for a sequence of ``tokens`` tokens, of which the baseline stores ``baseline``."""
        return baseline / self.amount if self.unit == "x" else self.amount * _UNITS[self.unit] * tokens

    def measure(self, stored: float, baseline: int, tokens: int) -> str:
        """``stored`` bytes in the budget's own words."""
        amount = baseline / stored if self.unit == "x" else stored / tokens / _UNITS[self.unit]
        return f"{amount:.3g}{self.unit}"


def parse_budgets(text: str) -> list[Budget]:
    """A comma list without repetitions.

    Raises:
        UsageError: an entry that is no budget, or no entry.
    """
    found = [Budget.parse(part) for part in text.split(",") if part.strip()]
    if not found:
        raise UsageError("--budget names none", hint=f"write {EXAMPLES}")
    return list(dict.fromkeys(found))


def is_met(stored: float, target: float) -> bool:
    """Whether ``stored`` bytes are the ``target``, to within the tolerance."""
    return abs(stored - target) <= TOLERANCE * target


def written(turned: Mapping[str, ParamValue]) -> str:
    """``k_bits=3,v_bits=2``."""
    return ",".join(f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in turned.items())


@dataclass(frozen=True)
class Range:
    """A number to be turned between two ends; stored bytes fall from ``most`` to ``least``.

    Attributes:
        parameter: Its name. most, least: Values that store the most and the fewest bytes; text names a size of the
            model (``head_dim``) or of the run (``context``). whole: Whole numbers only.
        step: Between whole numbers; text names another parameter of the method. wavy: Stored bytes also rise and fall on
            the way, though never below those of ``least``.
    """

    parameter: str
    most: float | str
    least: float | str
    whole: bool = False
    step: int | str = 1
    wavy: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.parameter,)

    def without(self, fixed: Iterable[str]) -> Range | None:
        """What is left to turn where the ``fixed`` parameters may not be."""
        return None if self.parameter in fixed else self


@dataclass(frozen=True)
class Settings:
    """Settings to choose from, the preferred first: the first is taken that can meet the budget.

    Attributes:
        choices: Parameters and their values. fine: What is turned within each of them.
        ties: Parameter → others that it also sets, so that naming it fixes them.
        rising: None is preferred; each stores at least as much as the one before, and the nearest to the budget is taken.
    """

    choices: tuple[Mapping[str, ParamValue], ...]
    fine: Range | None = None
    ties: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rising: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        names = dict.fromkeys(name for choice in self.choices for name in choice)
        return (*names, *(self.fine.parameters if self.fine else ()))

    def without(self, fixed: Iterable[str]) -> Settings | Range | None:
        """The distinct settings of what is left where the ``fixed`` parameters may not be turned."""
        held = {*fixed, *(name for key in fixed for name in self.ties.get(key, ()))}
        fine = self.fine.without(held) if self.fine else None
        left = [tuple((k, v) for k, v in choice.items() if k not in held) for choice in self.choices]
        distinct = tuple(dict(entries) for entries in dict.fromkeys(left) if entries)
        return replace(self, choices=distinct, fine=fine) if distinct else fine


Dial = Range | Settings
"""What a method turns to meet a budget."""


def widest_codes(*widths: int, groups: Sequence[int] = (), fine: Range | None = None) -> Settings:
    """A quantiser's dial: the widest codes that fit, keys never narrower than values; then larger groups, if there are any.

    Args:
        widths: Bits, falling. groups: Elements that share a scale, after the method's own.
        fine: What fills the rest of the budget, such as a window of dense tokens.
    """
    paired = {(keys, values) for at, keys in enumerate(widths) for values in widths[at : at + 2]}
    pairs: list[dict[str, ParamValue]] = [{"k_bits": k, "v_bits": v} for k, v in sorted(paired, reverse=True)]
    grouped = [{**pair, "group": group} for group in groups for pair in pairs]
    return Settings((*pairs, *grouped), fine, {"bits": ("k_bits", "v_bits")})


def low_ranks(largest: int = 256) -> Settings:
    """The dial of bases of keys and values: ranks alike, or one more for keys, which need them more."""
    pairs: list[dict[str, ParamValue]] = [{"k_rank": rank + extra, "v_rank": rank} for rank in range(1, largest + 1) for extra in (0, 1)]
    return Settings(tuple(pairs), ties=dict.fromkeys(("rank", "energy"), ("k_rank", "v_rank")), rising=True)
