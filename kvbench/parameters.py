"""From ``name:param=value`` to a frozen dataclass: names and kinds are checked here, ranges by the class itself."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kvbench.errors import UnknownName, UsageError
from kvbench.spec import NamedSpec, ParamValue


def build(cls: type[Any], spec: NamedSpec, kind: str) -> Any:
    """Instantiate a registered dataclass with a spec's options, checking names and kinds.

    Raises:
        UnknownName: a parameter that it does not have.
        UsageError: a value of the wrong kind, or one that its ``__post_init__`` refuses.
    """
    known = {f.name: f for f in fields(cls) if f.init}
    values: dict[str, ParamValue] = {}
    for key, value in spec.params:
        if key not in known:
            raise UnknownName(f"parameter of {kind} {spec.name}:", key, known, hint=f"kvbench list {kind}s")
        values[key] = _coerce(spec, key, value, known[key].type)
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(f"{kind} '{spec.label}': {error}", hint=f"kvbench list {kind}s") from error


def _coerce(spec: NamedSpec, key: str, value: ParamValue, annotation: Any) -> ParamValue:
    kinds = {part.strip() for part in str(annotation).split("|")}
    if "float" in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value).__name__ in kinds:
        return value
    if "str" in kinds:
        return str(value)
    wanted = " or ".join(sorted(kinds - {"None"}))
    raise UsageError(f"{spec.name}: {key}={value} is not {wanted}")
