"""From ``name:param=value`` to a frozen dataclass: names, kinds and declared ranges are checked here, what else must hold by the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, field, fields
from typing import Any

from kvbench.errors import KvbenchError, UnknownName, UsageError, told
from kvbench.spec import NamedSpec, ParamValue


def param(default: Any, meaning: str, *, least: float | None = None, within: str = "", among: Sequence[Any] = ()) -> Any:
    """A parameter with its default and one line of meaning, units included.

    A subclass that only has another default writes that alone (``window: int = 32``): the rest is still as declared here.

    Args:
        least: Its smallest value. within: The interval that it lies in, ``[0, 1)``. among: All of its values.
    """
    return field(default=default, metadata={"meaning": meaning, "least": least, "within": within, "among": among})


def parameters(cls: type[Any]) -> list[tuple[str, Any, str]]:
    """(name, default, meaning) of each parameter of a registered dataclass."""
    return [(f.name, f.default, _declared(cls, f.name).get("meaning", "")) for f in _named(cls)]


def check_values(of: Any) -> None:
    """Refuse what a registered dataclass was given if a parameter's declaration does not allow it; ``None`` is always allowed.

    Raises:
        ValueError: names the parameter, its value and what it must be.
    """
    for name in (f.name for f in _named(type(of))):
        declared, value = _declared(type(of), name), getattr(of, name)
        least, within, among, meaning = (declared.get(key) for key in ("least", "within", "among", "meaning"))
        if value is None:
            continue
        if least is not None and not value >= least:
            raise ValueError(f"{name}={value}; it must be at least {least}: {meaning}")
        if within and not _lies(value, within):
            raise ValueError(f"{name}={value}; it lies in {within}: {str(meaning).removesuffix(f', {within}')}")
        if among:
            must_be(name, value, among)


def _lies(value: float, within: str) -> bool:
    low, high = map(float, within[1:-1].split(","))
    return (low < value or (low == value and within[0] == "[")) and (value < high or (value == high and within[-1] == "]"))


def _declared(cls: type[Any], name: str) -> Mapping[str, Any]:
    """What :func:`param` said of a parameter, here or in the nearest base."""
    own = (base.__dict__.get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
    return next((found.metadata for found in own if found is not None and found.metadata), {})


def _named(cls: type[Any]) -> list[Field[Any]]:
    """The fields that are parameters by their own name."""
    return [f for f in fields(cls) if f.init and f.name != getattr(cls, "takes_rest", None)]


def build(cls: type[Any], spec: NamedSpec, kind: str) -> Any:
    """Instantiate a registered dataclass with a spec's options, checking names and kinds.

    A class whose ``takes_rest`` names a field is given there, as they are, the options that it does not name.

    Raises:
        UnknownName: a parameter that it does not have.
        UsageError: a value of the wrong kind, or one that its declaration or its ``__post_init__`` refuses.
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
        made = cls(**values)
        check_values(made)  # its own __post_init__ may have forgotten its base's
        return made
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


def must_be(name: str, value: Any, among: Sequence[Any]) -> None:
    """Refuse what is none of a parameter's values.

    Raises:
        ValueError: with the values there are, and of numbers the nearest.
    """
    if value in among:
        return
    *others, last = map(str, among)
    near = "" if isinstance(value, str) else f", for example {min(among, key=lambda one: abs(one - value))}"
    raise ValueError(f"{name}={value}; it must be {', '.join(others)} or {last}{near}")


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
