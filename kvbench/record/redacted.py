"""What is published of a run says nothing of the machine's own affairs: where files lie, who runs it, what its environment holds.

A result is sent to others. In place of a path it has the last name of it; hashes say which weights and which text that was.
The run's folder keeps the true paths in ``spec.json`` and ``events.jsonl``, which a resumed run needs; they are the user's own.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_PATH = re.compile(r"(?<![\w.:/~\\-])(?:file://)?/(?:[^\s/'\"<>|:;,()\[\]{}]+/)+[^\s/'\"<>|:;,()\[\]{}]*")
"""An absolute path of two names or more, where it does not continue a word or a URL."""
_SECRET = re.compile("TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_WORDS = frozenset({"root", "user", "users", "admin", "test", "guest", "localhost", "runner", "default"})
"""Names of users and hosts that are words as well, and tell nothing."""
TOLD = ("reason", "unread", "failed", "error")
"""Fields of records that say why there is no figure."""
SECRET_LENGTH, VALUE_LENGTH = 6, 16
"""Characters from which an environment value that is named like a secret, or any other, is left out of messages."""


class Sharing:
    """Makes texts fit to be shared.

    Args:
        spec: The run's plain specification. Its paths may hold spaces, by which a path in a message cannot be told.
    """

    def __init__(self, spec: Any) -> None:
        self._known = sorted({path.rstrip(os.sep) for path in _paths_of(spec)}, key=len, reverse=True)
        self._roots, self._environment, self._names = _roots(), _environment(), _names()

    def facts(self, data: Any) -> Any:
        """Nested plain data, each absolute path in it by its last name; keys too, since labels may hold one."""
        return _mapped(data, self._without_paths)

    def messages(self, data: Any) -> Any:
        """The same, and what others wrote into their errors: names of user and host, values of the environment."""
        return _mapped(data, self._message)

    def record(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A record; what a model wrote is left as it is, and only why something failed is a message."""
        told = {key: self._message(data[key]) for key in TOLD if isinstance(data.get(key), str)}
        return {**data, **told} if told else data

    def _without_paths(self, text: str) -> str:
        if os.sep not in text:
            return text
        for path in self._known:
            text = text.replace(path, Path(path).name)
        for root in self._roots:
            text = text.replace(f"{root}{os.sep}", "")
        return _PATH.sub(lambda found: Path(found[0]).name, text)

    def _message(self, text: str) -> str:
        text = self._without_paths(text)
        for value, name in self._environment:
            text = text.replace(value, f"${name}")
        for name, shown in self._names:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", shown, text)
        return text


def _mapped(data: Any, change: Callable[[str], str]) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {change(key) if isinstance(key, str) else key: _mapped(value, change) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_mapped(value, change) for value in data]
    return data


def _paths_of(spec: Any) -> Iterator[str]:
    """The texts of a plain specification that are absolute paths of a name at least."""
    if isinstance(spec, str) and os.path.isabs(spec) and Path(spec).name:
        yield spec
    values = spec.values() if isinstance(spec, Mapping) else spec if isinstance(spec, list | tuple) else ()
    for value in values:
        yield from _paths_of(value)


def _roots() -> list[str]:
    """Folders that paths begin with, the longest first: the current one, home, temporary files, Python's own."""
    found = {str(Path.home()), tempfile.gettempdir(), sys.prefix}
    with suppress(OSError):  # deleted meanwhile
        found.add(os.getcwd())
    return sorted((root.rstrip(os.sep) for root in found if len(root) > 2), key=len, reverse=True)


def _environment() -> list[tuple[str, str]]:
    """(value, name) of what no message may hold, the longest first."""
    found = [(v, name) for name, v in os.environ.items() if len(v) >= (SECRET_LENGTH if _SECRET.search(name) else VALUE_LENGTH)]
    return sorted(found, key=lambda pair: -len(pair[0]))


def _names() -> list[tuple[str, str]]:
    """Names of user and host, and what stands for them."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = ""
    host = socket.gethostname()
    found = ((user, "USER"), (host, "HOST"), (host.partition(".")[0], "HOST"))
    return [(name, shown) for name, shown in found if len(name) > 3 and name.lower() not in _WORDS]
