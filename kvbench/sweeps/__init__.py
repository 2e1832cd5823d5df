"""Sweeps: rows that differ along axes, planned before a run and read from its records after it.

An axis is any parameter of the swept methods (``rank``; ``+bits`` is the store's of a composed method), or ``context`` or
``batch``, at whose values every row is measured. The run is an ordinary one: its rows are its methods, and ``RunSpec.sweep``
says where each of them stands.
"""

from kvbench.sweeps.ablations import ABLATIONS, of_ablation
from kvbench.sweeps.combinations import LARGEST, Setting, Sweep, apply, of_methods, parse_axes
from kvbench.sweeps.tables import figures

__all__ = ["ABLATIONS", "LARGEST", "Setting", "Sweep", "apply", "figures", "of_ablation", "of_methods", "parse_axes"]
