"""From ``name:param=value`` to a frozen dataclass: names and kinds are checked here, ranges by the class itself."""

from __future__ import annotations

from dataclasses import Field, field, fields
from typing import Any

from kvbench.errors import KvbenchError, UnknownName, UsageError, told
from kvbench.spec import NamedSpec, ParamValue


def param(default: Any, meaning: str) -> Any:
    """A parameter with its default and one line of meaning, units included."""
    return field(default=default, metadata={"meaning": meaning})


def parameters(cls: type[Any]) -> list[tuple[str, Any, str]]:
    """(name, default, meaning) of each parameter of a registered dataclass."""
    return [(f.name, f.default, f.metadata.get("meaning", "")) for f in _named(cls)]


def _named(cls: type[Any]) -> list[Field[Any]]:
    """The fields that are parameters by their own name."""
    return [f for f in fields(cls) if f.init and f.name != getattr(cls, "takes_rest", None)]


def build(cls: type[Any], spec: NamedSpec, kind: str) -> Any:
    """Instantiate a registered dataclass with a spec's options, checking names and kinds.

    A class whose ``takes_rest`` names a field is given there, as they are, the options that it does not name.

    Raises:
        UnknownName: a parameter that it does not have.
        UsageError: a value of the wrong kind, or one that its ``__post_init__`` refuses.
    """
    known, rest = {f.name: f for f in _named(cls)}, getattr(cls, "takes_rest", None)
    values: dict[str, Any] = {} if rest is None else {rest: ()}
    for given, value in spec.params:
        if not known and rest is None:
            raise UsageError(f"{kind} '{spec.name}' has no parameters: '{spec.label}' gives it one", hint=f"write {spec.name}")
        key = given or next(iter(known), given)
        if key in values:
            raise UsageError(f"{kind} '{spec.label}' gives '{key}' twice: the first value without a name is {key}'s")
        if key not in known and rest is not None and key != rest:
            values[rest] += ((key, value),)
            continue
        if key not in known:
            raise UnknownName(f"parameter of {kind} {spec.name}:", key, known, hint=f"kvbench list {kind}s")
        values[key] = _coerce(spec, key, value, known[key].type, kind)
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(f"{kind} '{spec.label}': {error}", hint=f"kvbench list {kind}s") from error
    except KvbenchError:
        raise
    except (Exception, SystemExit) as error:  # a plug-in's own, or a parameter without a default that was not given
        said = f"{type(error).__name__}: {told(error)}"
        raise UsageError(f"{kind} '{spec.label}' cannot be built: {said}", hint=f"kvbench list {kind}s") from error


def _coerce(spec: NamedSpec, key: str, value: ParamValue, annotation: Any, kind: str) -> ParamValue:
    written = annotation.__name__ if isinstance(annotation, type) else str(annotation)  # a class, where annotations are not postponed
    kinds = {part.strip() for part in written.split("|")}
    if "float" in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value).__name__ in kinds:
        return value
    if "str" in kinds:
        return str(value)
    wanted = " or ".join(sorted(kinds - {"None"}))
    raise UsageError(f"{kind} '{spec.label}': {key}={value} is not {wanted}", hint=f"kvbench list {kind}s")


def must_divide(name: str, value: int, total: int, what: str) -> None:
    """Refuse a group that does not divide an axis.

    Raises:
        ValueError: with the nearest divisor.
    """
    if value < 1 or total % value:
        best = min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - value))
        raise ValueError(f"{name}={value} does not divide the {what}, {total}; the nearest that does is {best}")


def check_window(window: int, kernel: int) -> None:
    """Refuse an observation window or a pooling width that cannot be.

    Raises:
        ValueError: with the nearest value.
    """
    if window < 1:
        raise ValueError(f"window={window}; it must be at least 1")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}; it must be odd, for example {max(1, kernel | 1)}")
