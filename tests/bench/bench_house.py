"""How the package is built: its rooms, on how many floors they stand, what climbs, and what goes in circles.

A *room* is a package or loose module at the top of ``kvbench``; ``__init__`` and ``__main__`` are the door and no rooms. An
*arrow* is a room that imports another at least once, inside functions too; names under ``TYPE_CHECKING`` couple nothing at run
time and are counted beside. *Floors* are the rooms of the longest chain of arrows, each circle taken as one room. A *circle* is
a set of rooms, or of files, of which each reaches every other. A *climb* is an import of a file that goes from its room to one
above it. What is above is said by the layers of the checkout's import contracts; in one without, by the order that has the
fewest climbs found: circles stand in the order of their arrows, and rooms of a circle are moved one by one to where fewest
imports climb, as long as that helps. Lines are those of ``.py`` files.

    python tests/bench/bench_house.py                  # this checkout
    python tests/bench/bench_house.py --root ../older  # another, by the same measures
"""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
from benching import ROOT, Column, arguments, closing, listing, option, table

PACKAGE = "kvbench"
DOOR = ("__init__", "__main__")
READ = """
import json, sys, grimp
def imports(**how):
    graph = grimp.build_graph(sys.argv[1], cache_dir=None, **how)
    return {module: sorted(graph.find_modules_directly_imported_by(module)) for module in sorted(graph.modules)}
print(json.dumps([imports(exclude_type_checking_imports=True), imports()]))
"""
"""A process of its own finds the package of the folder that it runs in, whichever this one has loaded."""
COLUMNS: dict[str, Column] = {
    "room": "{room}", "floor": "{floor:}", "files": "{files:,}", "lines": "{lines:,}", "imports rooms": "{imports:}",
    "imported by": "{imported_by:}",
}  # fmt: skip
Imports = Mapping[str, Sequence[str]]
Order = Mapping[str, int]
"""Room → how high it stands."""


def main() -> None:
    given = arguments(__doc__, root=option(ROOT, "A checkout."))
    house, annotated = (House(imports) for imports in read_imports(given.root))
    layers = contracted(given.root / ".importlinter")
    order = layers or house.fewest_climbs()
    counted, beside = house.figures(order), annotated.figures(order)
    sizes = lines_by_room(given.root / PACKAGE)
    rooms = [{**row, "files": len(sizes[row["room"]]), "lines": sum(sizes[row["room"]])} for row in house.rows(order)]
    door = sum(sizes[None])
    table(rooms, COLUMNS)
    print(f"\nwith the door {sum(row['lines'] for row in rooms) + door:,} lines")
    print(f"above and below: {'by the import contracts' if layers else 'the order with the fewest climbs found'}\n")
    listing("counted (with annotations)", {name.replace("_", " "): f"{counted[name]} ({beside[name]})" for name in counted})
    for name, found in house.described(order).items():
        print(f"\n{name.replace('_', ' ')}:", *found or ["none"], sep="\n  ")
    closing(
        "house", **counted, with_annotations=beside, order="contract" if layers else "computed", door_lines=door, by_room=rooms,
        **house.described(order),
    )  # fmt: skip


def read_imports(root: Path) -> list[Imports]:
    """Module → modules that it imports: what runs, then annotations too."""
    done = subprocess.run([sys.executable, "-c", READ, PACKAGE], cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    found: list[Imports] = json.loads(done.stdout)
    return found


def contracted(file: Path) -> Order:
    """How high each room stands by the layers of the contracts in ``file``; nothing where it has none."""
    parser = configparser.ConfigParser()
    parser.read(file)
    for section in parser.values():
        if section.get("type") == "layers":
            layers = [line for line in section["layers"].split("\n") if line.strip()]
            names = [layer.replace("|", ":").replace("(", "").replace(")", "").split(":") for layer in reversed(layers)]
            return {name.strip().removeprefix(f"{PACKAGE}."): height for height, layer in enumerate(names) for name in layer}
    return {}


def lines_by_room(package: Path) -> dict[str | None, list[int]]:
    """Room → lines of each of its files; ``None`` is the door."""
    found: dict[str | None, list[int]] = {None: []}
    for file in sorted(package.rglob("*.py")):
        top = file.relative_to(package).parts[0].removesuffix(".py")
        found.setdefault(None if top in DOOR else top, []).append(len(file.read_text(encoding="utf-8").splitlines()))
    return found


def room_of(module: str) -> str | None:
    """``None`` is the door."""
    _, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return None if not room or room in DOOR else room


@dataclass(frozen=True)
class House:
    """Who imports whom."""

    imports: Imports

    @cached_property
    def steps(self) -> list[tuple[str, str]]:
        """Imports of a file from another room's."""
        pairs = ((file, other) for file, others in self.imports.items() for other in others)
        return [(a, b) for a, b in pairs if room_of(a) and room_of(b) and room_of(a) != room_of(b)]

    @cached_property
    def arrows(self) -> Counter[tuple[str, str]]:
        """Importing and imported room → by how many steps."""
        return Counter((str(room_of(a)), str(room_of(b))) for a, b in self.steps)

    @cached_property
    def graph(self) -> Any:
        graph = nx.DiGraph(list(self.arrows))
        graph.add_nodes_from(room for room in map(room_of, self.imports) if room)
        return graph

    @cached_property
    def floors(self) -> Order:
        """Room → its floor, the lowest 1."""
        merged = nx.condensation(self.graph)
        heights: dict[int, int] = {}
        for circle in reversed(list(nx.topological_sort(merged))):
            heights[circle] = 1 + max((heights[below] for below in merged.successors(circle)), default=0)
        return {room: heights[circle] for room, circle in merged.graph["mapping"].items()}

    def circles_of_rooms(self) -> list[list[str]]:
        return _circles(self.graph)

    def circles_of_files(self) -> list[list[str]]:
        return _circles(nx.DiGraph([(file, other) for file, others in self.imports.items() for other in others]))

    def climbs(self, order: Order) -> list[tuple[str, str]]:
        """Steps to a room above; one that the order does not name stands beside all others."""
        heights = ((a, b, order.get(str(room_of(a))), order.get(str(room_of(b)))) for a, b in self.steps)
        return [(a, b) for a, b, own, other in heights if own is not None and other is not None and own < other]

    def fewest_climbs(self) -> Order:
        """An order of all rooms, bottom to top."""
        merged = nx.condensation(self.graph)
        circles = sorted((_rooms(merged, circle) for circle in merged), key=lambda rooms: (self.floors[rooms[0]], rooms))
        rooms = [room for circle in circles for room in self._settled(circle)]
        return {room: height for height, room in enumerate(rooms)}

    def _settled(self, rooms: Sequence[str]) -> list[str]:
        """The rooms of a circle, each moved to where fewest imports climb until no move helps."""
        best = sorted(rooms, key=lambda room: (sum(self.arrows[room, other] - self.arrows[other, room] for other in rooms), room))
        least, before = self._weight(best), -1
        while least != before:
            before = least
            for room in rooms:
                rest = [other for other in best if other != room]
                tried = [[*rest[:at], room, *rest[at:]] for at in range(len(best))]
                found = min(tried, key=self._weight)
                if self._weight(found) < least:
                    best, least = found, self._weight(found)
        return best

    def _weight(self, order: Sequence[str]) -> int:
        return sum(self.arrows[below, above] for at, below in enumerate(order) for above in order[at + 1 :])

    def figures(self, order: Order) -> dict[str, int]:
        climbs = self.climbs(order)
        return {
            "rooms": len(self.graph), "floors": max(self.floors.values()), "arrows": len(self.arrows), "climbs": len(climbs),
            "climbing_arrows": len({(room_of(a), room_of(b)) for a, b in climbs}), "circles_of_rooms": len(self.circles_of_rooms()),
            "circles_of_files": len(self.circles_of_files()), "files": len(self.imports),
        }  # fmt: skip

    def described(self, order: Order) -> dict[str, list[str]]:
        """What there should be none of, by name."""
        return {
            "climbing_files": [f"{a} → {b}" for a, b in self.climbs(order)],
            "rooms_in_circles": [" ↔ ".join(circle) for circle in self.circles_of_rooms()],
            "files_in_circles": [" ↔ ".join(circle) for circle in self.circles_of_files()],
        }

    def rows(self, order: Order) -> list[dict[str, Any]]:
        """Rooms from the top."""
        out, into = Counter(a for a, _ in self.arrows), Counter(b for _, b in self.arrows)
        rooms = sorted(self.graph, key=lambda room: (-order.get(room, -1), room))
        return [{"room": room, "floor": self.floors[room], "imports": out[room], "imported_by": into[room]} for room in rooms]


def _rooms(merged: Any, circle: int) -> list[str]:
    return sorted(merged.nodes[circle]["members"])


def _circles(graph: Any) -> list[list[str]]:
    """Strongly connected sets of more than one, the largest first."""
    found: Iterable[set[str]] = nx.strongly_connected_components(graph)
    return sorted((sorted(of) for of in found if len(of) > 1), key=lambda of: (-len(of), of))


if __name__ == "__main__":
    main()
