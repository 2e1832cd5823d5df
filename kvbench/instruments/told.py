"""Numbers that a ledger tells, and by what: a length that the text decides may stand beside the tensors that have it.

Two caches agree on what a number *means* where both have it by the same telling: ``keys``, along the third axis, in use. A number
that merely happens to be among those that are told, the place of a hidden copy in a list, has no meaning in common and stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvbench.caches.ledger import Part

SMALL = 64
"""Elements of a counted tensor of whole numbers up to which each may be a length."""
Telling = tuple[str, str, int]
"""A part's name; a length in all or in use along an axis, or an element; which one."""


@dataclass(frozen=True)
class Told:
    """What the parts of one layer tell.

    Attributes:
        by: number → what tells it. sizes: telling → every number that it tells.
    """

    by: Mapping[int, set[Telling]] = field(default_factory=dict)
    sizes: Mapping[Telling, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: list[Part]) -> Told:
        by: defaultdict[int, set[Telling]] = defaultdict(set)
        sizes: defaultdict[Telling, set[int]] = defaultdict(set)
        for number, telling in (found for part in parts for found in _tellings(part)):
            by[number].add(telling)
            sizes[telling].add(number)
        return cls(dict(by), dict(sizes))


def is_same_telling(one: int, told: Told, other: int, told_there: Told) -> bool:
    """Whether a number here and another one there are told by the same thing, so that they mean the same.

    Nothing has no tensor: 0 stands beside what tells the other number, if that is not the same everywhere.
    """
    ours, theirs = told.by.get(one, set()), told_there.by.get(other, set())
    if ours & theirs:
        return True
    tellings = theirs if one == 0 else ours if other == 0 else set()
    return any(len(told.sizes.get(telling, set()) | told_there.sizes.get(telling, set())) > 1 for telling in tellings)


def _tellings(part: Part) -> list[tuple[int, Telling]]:
    tensor = part.tensor
    found = [(size, (part.name, "all", axis)) for axis, size in enumerate(tensor.shape)]
    used = [(part.used * size, axis) for axis, size in enumerate(tensor.shape) if tensor.nbytes]
    found += [(n // tensor.nbytes, (part.name, "used", axis)) for n, axis in used if n % tensor.nbytes == 0]
    if not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() <= SMALL:
        found += [(int(x), (part.name, "element", at)) for at, x in enumerate(tensor.flatten().tolist())]
    return found
