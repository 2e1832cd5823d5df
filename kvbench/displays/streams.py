"""stdout and stderr as every command uses them: data to the one, talk to the other, nothing that orders a terminal about."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress

from kvbench.errors import ResourceError
from kvbench.printable import FALLBACK, printable

_SGR = re.compile(r"(\x1b\[[0-9;]*m)")


def prepare() -> None:
    """Make the standard streams usable however the program was started.

    A descriptor that was closed would be given to the next file that is opened, and what is printed would end in there: it is
    taken first. Signs that an encoding lacks are written by others that it has.
    """
    while True:
        fd = os.open(os.devnull, os.O_RDONLY)  # nothing can be written to it, so a closed stdout stays an error
        if fd > 2:
            os.close(fd)
            break
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it lives as long as the program)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=FALLBACK)


def put(text: str, *, coloured: bool = False) -> None:
    """Write data to stdout, now.

    Args:
        text: Control characters in it are written as escapes. coloured: Colours are meant and stay.

    Raises:
        BrokenPipeError: nobody reads it any more.
        ResourceError: it is closed, or full.
    """
    safe = "".join(part if _SGR.fullmatch(part) else printable(part) for part in _SGR.split(text)) if coloured else printable(text)
    try:
        sys.stdout.write(safe)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(error) from error


def talk(text: str) -> None:
    """A line for the reader, not for the pipe; a terminal that is gone is no error."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


def settle(error: OSError | None = None) -> ResourceError | None:
    """Write what is left; what cannot be written is dropped, so that it is no error at the program's very end.

    Returns:
        Why something was dropped, or ``None``: all is written, or its reader left.
    """
    failed = error
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as found:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(found, OSError) and stream is sys.stdout:
                failed = failed or found
    return None if failed is None or isinstance(failed, BrokenPipeError) else _unwritable(failed)


def _unwritable(error: OSError) -> ResourceError:
    return ResourceError(f"stdout cannot be written: {error.strerror or error}", hint="open it, or send it where there is room")
