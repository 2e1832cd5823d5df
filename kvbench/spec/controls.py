"""Rows that every table has: what nothing removed gives, and what removing without thought gives."""

from __future__ import annotations

BASELINE = "baseline"
"""Label of the row that all others are compared with."""
RANDOM = "random"
CONTROLS = (BASELINE, RANDOM)
