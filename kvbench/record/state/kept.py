"""What a state keeps much of: finished units, and records. Adding costs the same at any size; reading is in the plan's order."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Set, ValuesView
from operator import itemgetter
from typing import Any

Data = dict[str, Any]
_Entry = tuple[int, int, str, Data]
"""Place, attempt, key, data."""


class UnitSet(Set[str]):
    """Some of the plan's units, a bit each: with one more it is a new set, and 40,000 units are 5 kB.

    Args:
        places: Unit → its place in the plan, from 0.
        bits: Of the units that are in the set.
    """

    __slots__ = ("_bits", "_places")

    def __init__(self, places: Mapping[str, int], bits: int = 0) -> None:
        self._places, self._bits = places, bits

    def plus(self, unit: str) -> UnitSet:
        """Also ``unit``, which must be of the plan."""
        return UnitSet(self._places, self._bits | 1 << self._places[unit])

    def __contains__(self, unit: object) -> bool:
        return unit in self._places and bool(self._bits >> self._places[str(unit)] & 1)

    def __iter__(self) -> Iterator[str]:
        return (unit for unit, place in self._places.items() if self._bits >> place & 1)

    def __len__(self) -> int:
        return self._bits.bit_count()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"

    @classmethod
    def _from_iterable(cls, units: Iterable[Any]) -> frozenset[Any]:  # what | and & of any sets make
        return frozenset(units)


class PlanOrdered(Mapping[str, Data]):
    """One method's records of one evaluator: key → data, in the plan's order of units, and as each unit told them.

    Versions share one list of what came, and each knows how much of it is its own. The newest version grows at the
    list's end; beside an older one a new list begins. What is read is arranged when it is first looked at.
    """

    __slots__ = ("_arranged", "_came", "_length")

    def __init__(self, came: list[_Entry] | None = None) -> None:
        self._came = [] if came is None else came
        self._length = len(self._came)
        self._arranged: Data | None = None

    def plus(self, key: str, data: Data, place: int, attempt: int) -> PlanOrdered:
        """Also ``key``.

        Args:
            place: Of its unit in the plan.
            attempt: At its unit, rising: of several only what the last one told is read, so that a unit done again leaves
                nothing of what was measured before.
        """
        came = self._came if len(self._came) == self._length else self._came[: self._length]
        came.append((place, attempt, key, data))
        return PlanOrdered(came)

    def _dict(self) -> Data:
        if self._arranged is None:
            entries = sorted(self._came[: self._length], key=itemgetter(0, 1))
            last = dict(map(itemgetter(0, 1), entries))
            self._arranged = {key: data for place, attempt, key, data in entries if attempt == last[place]}
        return self._arranged

    def __getitem__(self, key: str) -> Data:
        found: Data = self._dict()[key]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict())

    def __len__(self) -> int:
        return len(self._dict())

    def __bool__(self) -> bool:
        return self._length > 0

    def keys(self) -> KeysView[str]:
        return self._dict().keys()

    def values(self) -> ValuesView[Data]:
        return self._dict().values()

    def items(self) -> ItemsView[str, Data]:
        return self._dict().items()

    def __repr__(self) -> str:
        return repr(self._dict())
