"""Methods and evaluators as they are asked for.

They are written as ``name`` or ``name:param=value,param=value``; a list separates them by commas
(``snapkv,kivi:bits=2,group=32,int8``). A first value without a name is the first parameter's
(``kvpress:SnapKVPress``). A value with several entries joins them by ``+`` (``speed:batch=1+8``);
an eviction and what stores the tokens that it keeps are joined likewise (``snapkv+kivi:bits=2``).
A method may end in the budget that it has to meet (``snapkv@4x``, ``kivi:group=32@14KiB/token``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from kvbench.errors import UsageError
from kvbench.spec.budgets import Budget
from kvbench.spec.values import FIRST, Params, ParamValue, format_value, parse_value


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
        budget: Bytes that it has to meet, written after an ``@`` (:mod:`kvbench.spec.budgets`).
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
