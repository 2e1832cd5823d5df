"""What git says of the folder that a run is started in, asked so that nothing of that folder is run.

A repository's own configuration can name programs: a file-system monitor, hooks, filters of content, a transport for objects
that are missing. Whoever unpacks a stranger's archive and starts a run inside it has not agreed to any of them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

GIT_SECONDS = 5.0
"""How long git may take to answer; a slow file system costs the git entries and not the run."""
_HARMLESS: Mapping[str, str] = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.untrackedCache": "false",
    "core.pager": "cat",
    "protocol.allow": "never",  # missing objects of a partial clone are not fetched
    "safe.bareRepository": "explicit",  # a bare repository inside the folder is not the folder's own
    "submodule.recurse": "false",
    "status.submoduleSummary": "false",
}
_QUIET: Mapping[str, str] = {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
_FILTERS = r"^filter\..*\.(clean|smudge|process|required)$"


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that the current folder is in and whether it has changes; ``None`` outside one."""
    commit = _git("rev-parse", "HEAD", settings=_HARMLESS)
    if commit is None:
        return None
    filters = (_git("config", "--null", "--name-only", "--get-regexp", _FILTERS, settings=_HARMLESS) or "").split("\0")
    emptied = {name: "false" if name.endswith(".required") else "" for name in filters if name}
    changes = _git("status", "--porcelain", "--ignore-submodules=all", settings={**_HARMLESS, **emptied})
    return {"commit": commit.strip(), "dirty": None if changes is None else bool(changes.strip())}


def _git(*arguments: str, settings: Mapping[str, str]) -> str | None:
    """What git answers under ``settings``, which go over every file of configuration; ``None`` if it does not."""
    counted = os.environ.get("GIT_CONFIG_COUNT", "")
    before = int(counted) if counted.isascii() and counted.isdigit() else 0  # the user's own stay, and come first
    given = {"GIT_CONFIG_COUNT": str(before + len(settings))}
    for i, (key, value) in enumerate(settings.items(), before):
        given |= {f"GIT_CONFIG_KEY_{i}": key, f"GIT_CONFIG_VALUE_{i}": value}
    try:
        done = subprocess.run(
            ["git", "--no-pager", *arguments], capture_output=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL,
            env={**os.environ, **_QUIET, **given},
        )  # fmt: skip
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
