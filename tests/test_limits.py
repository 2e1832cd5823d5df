"""A test that computes for too long fails by its CPU seconds, with its processes; one that waits does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TESTS = """
import subprocess, sys, time

def test_busy():
    while True:
        pass

def test_busy_child():
    subprocess.run([sys.executable, "-c", "while True: pass"], timeout=60)

def test_waiting():
    time.sleep(1.5)

def test_quick():
    pass
"""


def test_a_test_has_a_limit_of_cpu_seconds_and_none_of_the_clock(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {Path(__file__).parent}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "limits", "--cpu-limit=0.4", "-p", "no:cacheprovider"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    told = re.findall(r"^test_it.py::(\w+) has taken (.*) CPU seconds; the limit is 0.4$", said, re.MULTILINE)
    assert [name for name, _ in told] == ["test_busy", "test_busy_child"], said
    assert all(0.4 <= float(seconds) < 10 for _, seconds in told)
    assert "2 failed, 2 passed" in said
