"""Two results side by side: what differs, what is not shown to, and what may not be compared.

``compare`` is plain data in, plain data out: no torch, no screen. The rules are in ``align`` (what may be compared),
``judge`` (what is shown), ``thresholds`` (what fails a build) and ``render`` (how it reads).
"""

from __future__ import annotations

from kvbench.compare.comparison import Comparison, compare
from kvbench.compare.judge import Change, Finding
from kvbench.compare.sides import Side, side_of
from kvbench.compare.thresholds import Checked, Threshold, check

__all__ = ["Change", "Checked", "Comparison", "Finding", "Side", "Threshold", "check", "compare", "side_of"]
