"""What is recorded of the environment, and what is not."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import subprocess
from pathlib import Path

import orjson
import pytest

from kvbench.instruments import environment

pytestmark = pytest.mark.fast


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_versions_and_hardware_are_recorded_as_plain_values() -> None:
    import torch
    import transformers

    found = environment.describe("cpu")
    assert orjson.loads(orjson.dumps(found)) == found
    assert (found["python"], found["torch"], found["transformers"]) == (
        platform.python_version(),
        torch.__version__,
        transformers.__version__,
    )
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu_cores"] >= 1
    assert found["memory_bytes"] > 1 << 28
    assert found["cpu"]
    assert (found["gpu"], found["gpu_clocks"]) == (None, None)


def test_nothing_personal_is_recorded() -> None:
    text = orjson.dumps(environment.describe("cpu")).decode()
    assert os.getcwd() not in text
    assert str(Path.home()) + "/" not in text
    assert f'"{getpass.getuser()}"' not in text
    assert socket.gethostname() not in text


def test_the_checkout_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert environment.git_state() is None
    git(tmp_path, "init")
    assert environment.git_state() is None  # no commit yet
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    clean = environment.git_state()
    assert clean is not None
    assert (len(clean["commit"]), clean["dirty"]) == (40, False)
    (tmp_path / "file").write_text("b")
    assert environment.git_state() == {"commit": clean["commit"], "dirty": True}


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_state() is None


def test_a_package_that_is_not_installed() -> None:
    assert environment.version_of("no-such-package-at-all") is None


def test_nothing_of_a_hostile_repository_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init")
    (tmp_path / ".gitattributes").write_text("* filter=evil diff=evil\n")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    trap = tmp_path / ".git" / "trap"
    trap.write_text(f"#!/bin/sh\necho $0 $@ >> {tmp_path / '.git' / 'sprung'}\ncat\n")
    trap.chmod(0o755)
    hooks = tmp_path / ".git" / "mine"
    hooks.mkdir()
    for name in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        (hooks / name).symlink_to(trap)
    for key in (
        "core.fsmonitor",
        "filter.evil.clean",
        "filter.evil.smudge",
        "filter.evil.process",
        "diff.evil.textconv",
        "core.sshCommand",
    ):
        git(tmp_path, "config", key, str(trap))
    git(tmp_path, "config", "core.hooksPath", str(hooks))
    (tmp_path / "file").write_text("b")  # looked into by any status
    found = environment.git_state()
    assert found is not None
    assert found["dirty"] is True
    assert not (tmp_path / ".git" / "sprung").exists()
