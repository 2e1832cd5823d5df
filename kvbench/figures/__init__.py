"""What is shown of a run, as plain data, and how it is written: tables and heat maps, one writer a format, axes and colours.

``data`` is what an evaluator gives. ``terminal``, ``markdown``, ``html``, ``csv`` and ``latex`` each write it; ``widths`` breaks it to a
width first, where a format has one. ``axes`` and ``colours`` are those of the dashboard's plots and of a report's alike.
"""

from __future__ import annotations

from kvbench.figures.data import Figure, Grid, Table

__all__ = ["Figure", "Grid", "Table"]
