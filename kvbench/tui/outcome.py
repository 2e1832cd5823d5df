"""How a dashboard was left."""

from __future__ import annotations

from typing import Literal

Outcome = Literal["finished", "detached", "cancel"]
"""After the run's end, while it goes on, or asking for its end."""
