"""Bench scripts: what they share, and that the house is counted right, on one that is small enough to count by hand."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "bench" / "bench_house.py"
FILES = {
    "__init__.py": "from kvbench.top import t\n",
    "__main__.py": "import kvbench.top.u\n",
    "errors.py": "",
    "low/__init__.py": "",
    "low/a.py": "from typing import TYPE_CHECKING\nimport kvbench.errors\n\nif TYPE_CHECKING:\n    from kvbench.top import t\n",
    "mid/__init__.py": "",
    "mid/x.py": "from kvbench.low import a\nfrom kvbench.mid import y\n",
    "mid/y.py": "def late():\n    from kvbench.top import t\n",
    "top/__init__.py": "",
    "top/t.py": "from kvbench.mid import x\n",
    "top/u.py": "from kvbench.mid import x\nfrom kvbench.top import t\n",
}
CONTRACT = """[importlinter]
root_package = kvbench

[importlinter:contract:rooms]
name = Down
type = layers
containers = kvbench
layers =
    top
    # a word
    mid : unborn
    low
    (errors)
"""


def figures(root: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, SCRIPT, "--root", root], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    pytest.importorskip("grimp")
    for name, text in FILES.items():
        file = tmp_path / "kvbench" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / ".importlinter").write_text(CONTRACT)
    return tmp_path


def test_a_house_is_counted(checkout: Path) -> None:
    found = figures(checkout)
    counted = {
        "rooms": 4, "floors": 3, "arrows": 4, "climbs": 1, "climbing_arrows": 1, "circles_of_rooms": 1, "circles_of_files": 1, "files": 11,
    }  # fmt: skip
    assert counted.items() <= found.items()
    assert found["with_annotations"] == counted | {"floors": 2, "arrows": 5, "climbs": 2, "climbing_arrows": 2}
    assert found["climbing_files"] == ["kvbench.mid.y → kvbench.top.t"]
    assert found["rooms_in_circles"] == ["mid ↔ top"]
    assert found["files_in_circles"] == ["kvbench.mid.x ↔ kvbench.mid.y ↔ kvbench.top.t"]
    assert {row["room"]: (row["floor"], row["files"], row["lines"]) for row in found["by_room"]} == {
        "top": (3, 3, 3), "mid": (3, 3, 4), "low": (2, 2, 5), "errors": (1, 1, 0),
    }  # fmt: skip
    assert (found["order"], found["door_lines"]) == ("contract", 2)


def test_without_a_contract_the_order_has_the_fewest_climbs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    house = importlib.import_module("bench_house").House(
        {
            "kvbench": ["kvbench.c.one"], "kvbench.a": ["kvbench.b.one", "kvbench.b.two"], "kvbench.b.one": ["kvbench.c.one", "kvbench.d"],
            "kvbench.b.two": ["kvbench.c.one", "kvbench.b.one"], "kvbench.c.one": ["kvbench.a"], "kvbench.d": [],
        }
    )  # fmt: skip
    order = house.fewest_climbs()
    assert sorted(order, key=order.__getitem__) == ["d", "c", "b", "a"]
    assert house.climbs(order) == [("kvbench.c.one", "kvbench.a")]


def test_scripts_share_arguments_a_table_and_a_closing_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    benching = importlib.import_module("benching")
    monkeypatch.setattr("sys.argv", ["script", "run", "--samples", "3", "--all"])
    given = benching.arguments("Says.", where={"nargs": "?"}, samples=8, all=False, rate=benching.option(None, "A rate.", type=float))
    assert vars(given) == {"where": "run", "samples": 3, "all": True, "rate": None}
    columns = {"method": "{method}", "loss": "{loss:.2f}", "codes": "{stored[codes]:,}", "": lambda row: "!" * (row["loss"] > 0.1)}
    benching.table([{"method": "a", "loss": 0.126, "stored": {"codes": 1200}}, {"method": "b", "loss": None, "stored": None}], columns)
    table = capsys.readouterr().out.splitlines()
    assert [line.split() for line in table[2:]] == [["a", "0.13", "1,200", "!"], ["b", "–", "–", "–"]]
    benching.closing("mine", loss=0.126)
    said = json.loads(capsys.readouterr().out)
    assert (said["bench"], said["loss"], said["machine"]["python"]) == ("mine", 0.126, ".".join(map(str, sys.version_info[:3])))
