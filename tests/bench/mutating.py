"""Small changes to a file, one at a time: cosmic-ray makes them, as far as .ci/mutation.toml lets it."""

from __future__ import annotations

import ast
import difflib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from benching import ROOT
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.config import load_config
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

CONFIG = ROOT / ".ci" / "mutation.toml"


@dataclass(frozen=True)
class Mutant:
    """The ``occurrence``-th place in ``path`` where cosmic-ray's ``operator`` finds work; it stands on ``line``."""

    path: str
    operator: str
    occurrence: int
    line: int

    def source(self) -> str:
        """The file unchanged."""
        return (ROOT / self.path).read_text()

    def changed(self) -> str:
        """The file with the change."""
        text: str = mutate_code(self.source(), get_operator(self.operator)(), self.occurrence)
        return text

    def change(self) -> str:
        """The lines that differ, before and after."""
        lines = difflib.unified_diff(self.source().splitlines(), self.changed().splitlines(), n=0, lineterm="")
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def sample(paths: Sequence[str], count: int, dice: random.Random) -> list[Mutant]:
    """About ``count`` places drawn from files by their share of all places, one a file at least, and one change at each."""
    places = {path: _places(path) for path in paths}
    whole = sum(map(len, places.values()))
    return [mutant for of in places.values() for mutant in _drawn(of, max(1, round(count * len(of) / whole)), dice)]


def again(mutants: Sequence[Mapping[str, Any]]) -> list[Mutant]:
    """The same changes, on whatever line they are now."""
    now = {(m.path, m.operator, m.occurrence): m for path in {m["path"] for m in mutants} for of in _places(path) for m in of}
    return [now[m["path"], m["operator"], m["occurrence"]] for m in mutants]


def _places(path: str) -> list[list[Mutant]]:
    """The changes that can be made, those of one place together."""
    nodes = list(ast_nodes(get_ast((ROOT / path).read_text())))
    places: dict[tuple[int, int], list[Mutant]] = {}
    for name in _operators():
        operator = get_operator(name)()
        starts = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(starts):
            places.setdefault(start, []).append(Mutant(path, name, occurrence, start[0]))
    return [places[start] for start in sorted(places)]


@cache
def _operators() -> tuple[str, ...]:
    left_out = load_config(str(CONFIG)).sub("filters", "operators-filter")["exclude-operators"]
    return tuple(name for name in operator_names() if not any(re.fullmatch(pattern, name) for pattern in left_out))


def _drawn(places: Sequence[list[Mutant]], count: int, dice: random.Random) -> Iterator[Mutant]:
    """One change at each of ``count`` places, but for those after which the program is the same (annotations) or none."""
    for place in dice.sample(places, len(places)):
        mutant = dice.choice(place)
        if _program(mutant.changed()) not in (_program(mutant.source()), None):
            yield mutant
            count -= 1
        if not count:
            return


def _program(source: str) -> str | None:
    """What runs of ``source``: its tree without annotations; none where it is no Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)
