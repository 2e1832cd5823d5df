"""Names of methods and evaluators, found through entry points and loaded only when used.

The built-ins are declared in ``pyproject.toml`` under the same groups that a plug-in uses::

    [project.entry-points."kvbench.methods"]
    my_score = "my_package:MyScore"

A plug-in is others' code. One that cannot be used costs nobody else anything: it is told of, and only naming it is an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kvbench.errors import KvbenchError, UnknownName, UsageError, text_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

OWN = "kvbench"
"""The package whose names no other can take."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""What can be written in a list of names."""
_REASON_LENGTH = 300


@dataclass(frozen=True)
class Broken:
    """A plug-in that cannot be used: the name that it claims, where it comes from, and why not."""

    name: str
    source: str
    why: str

    def __str__(self) -> str:
        return f"'{self.name}' of {self.source}: {self.why}"


class Registry(Generic[T]):
    """Entry points of one group, by name.

    Args:
        group: Entry-point group, for example ``kvbench.methods``.
        kind: The singular noun used in messages (``method``).
        base: What every class that is registered derives from.
        facts: Reads of a class what kvbench will read of it, so that one that lacks it is found here.
        reserved: Names that stand for something else.
    """

    def __init__(self, group: str, kind: str, base: type[T], facts: Callable[[type[T]], object], reserved: Iterable[str] = ()) -> None:
        self.group, self.kind, self._base, self._facts, self.reserved = group, kind, base, facts, frozenset(reserved)
        self._whys: dict[str, str] = {}
        self._sound: set[type[T]] = set()
        self._ready: dict[str, type[T]] = {}

    def forget(self) -> None:
        """Look again at what is installed, at the next question."""
        self.__dict__.pop("_scanned", None)
        self._whys.clear()
        self._sound.clear()
        self._ready.clear()

    def names(self) -> list[str]:
        """Every registered name, in alphabetical order, whether or not it can be used."""
        return sorted(self._claims)

    def usable(self) -> dict[str, type[T]]:
        """Every name that can be used, in alphabetical order, with its class."""
        found: dict[str, type[T]] = {}
        for name in self.names():
            try:
                found[name] = self.load(name)
            except UsageError:
                continue
        return found

    def broken(self) -> list[Broken]:
        """Everything that is registered and cannot be used, in alphabetical order."""
        usable = self.usable()
        lost = [self._taken(name) for name, claims in self._claims.items() if len(claims) > 1]
        lost += [
            Broken(name, source(claims[0]), self._whys[name])
            for name, claims in self._claims.items()
            if name not in usable and len(claims) == 1
        ]
        return sorted([*lost, *self._scanned[1]], key=lambda broken: broken.name)

    def load(self, name: str) -> type[T]:
        """Import what ``name`` stands for; of two packages that claim it only kvbench itself can have it.

        Raises:
            UnknownName: no such name; carries the nearest ones.
            UsageError: the plug-in cannot be used.
        """
        if name not in self._ready:  # asking whose a name is reads a package's metadata, and budgets ask thousands of times
            claims = self._claims.get(name)
            if claims is None:
                raise UnknownName(self.kind, name, self._claims)
            if not _is_own(claims[0]):
                self.refuse_taken(name)
            self._ready[name] = self._loaded(claims[0])
        return self._ready[name]

    def refuse_taken(self, name: str) -> None:
        """Refuse a name that a user wrote and that more than one package claims: nobody can tell which is meant.

        Raises:
            UsageError: names the packages.
        """
        if len(self._claims.get(name, ())) > 1:
            broken = self._taken(name)
            raise UsageError(f"{self.kind} '{name}' is registered more than once: {broken.source}", hint="uninstall one of the packages")

    def source_of(self, name: str) -> str:
        """Whose a registered name is."""
        return source(self._claims[name][0])

    def _taken(self, name: str) -> Broken:
        claims = self._claims[name]
        others = claims[1:] if _is_own(claims[0]) else claims
        owner = "the name is kvbench's own" if _is_own(claims[0]) else "each claims the name"
        return Broken(name, " and ".join(map(source, claims if len(others) > 1 else [*others, claims[0]])), owner)

    def _loaded(self, point: EntryPoint) -> type[T]:
        if point.name not in self._whys:
            try:
                return self._checked(point)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever others' code does, sys.exit included, is its own failure
                self._whys[point.name] = reason(error)
        raise UsageError(
            f"{self.kind} '{point.name}' of {source(point)} cannot be used: {self._whys[point.name]}",
            hint=f"reinstall or uninstall the package; the others are in: kvbench list {self.kind}s",
        )

    def _checked(self, point: EntryPoint) -> type[T]:
        """The class, once it was seen to be one that can be used."""
        if not _NAME.fullmatch(point.name) or point.name in self.reserved:
            raise ValueError("this name cannot be used: it has other characters than letters, digits and _.-, or means something else")
        with redirect_stdout(sys.stderr):  # stdout is data, and what a module prints is not
            loaded: Any = point.load()
        if not (isinstance(loaded, type) and issubclass(loaded, self._base)):
            raise TypeError(f"it is no subclass of {self._base.__module__}.{self._base.__name__}")
        if loaded not in self._sound:
            if getattr(loaded, "name", None) != point.name:
                raise ValueError(f"its class is named {getattr(loaded, 'name', None)!r}")
            self._facts(loaded)
            self._sound.add(loaded)
        return loaded

    @property
    def _claims(self) -> dict[str, list[EntryPoint]]:
        """Name → who claims it, kvbench itself first."""
        return self._scanned[0]

    @cached_property
    def _scanned(self) -> tuple[dict[str, list[EntryPoint]], list[Broken]]:
        points, unread = scan(self.group)
        claims: dict[str, list[EntryPoint]] = {}
        for point in sorted(points, key=lambda point: not _is_own(point)):
            others = claims.setdefault(point.name, [])
            if point.value not in [other.value for other in others]:
                others.append(point)
        if not claims:
            raise UsageError(
                f"no {self.kind} is registered: kvbench's own metadata is not installed",
                hint="python -m pip install -e .",
            )
        return claims, unread


def scan(group: str) -> tuple[list[EntryPoint], list[Broken]]:
    """The entry points of a group, and the packages whose metadata cannot be read."""
    from importlib.metadata import distributions, entry_points  # here, since it costs 25 ms that many commands need not pay

    try:
        return list(entry_points(group=group)), []
    except Exception:  # one package's file is enough for that, so each is asked alone
        points: list[EntryPoint] = []
        unread: list[Broken] = []
    for package in distributions():
        try:
            points += package.entry_points.select(group=group)
        except Exception as error:
            if group in (package.read_text("entry_points.txt") or ""):
                unread.append(Broken("?", f"package {package.name}", f"its entry points cannot be read: {reason(error)}"))
    return points, unread


@contextmanager
def asking(whom: str, hint: str) -> Iterator[None]:
    """What others' code raises in this block as an error of who named it.

    Args:
        whom: ``evaluator 'mine'``.

    Raises:
        UsageError: says whose it is. Errors of kvbench's own tree pass as they are.
    """
    try:
        yield
    except KvbenchError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{whom} broke while it was checked: {reason(error)}", hint=hint) from error


def source(point: EntryPoint) -> str:
    """Whose it is: ``package kvbench-mine 0.1 (mine:Mine)``."""
    return f"package {point.dist.name} {point.dist.version} ({point.value})" if point.dist else point.value


def reason(error: BaseException) -> str:
    """One line of whatever was raised."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text_of(error)).split())[:_REASON_LENGTH]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_own(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == OWN
