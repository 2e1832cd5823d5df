"""The one reading of a journal: ``apply(state, event) -> state``, pure and total.

The dashboard, the plain display, ``watch``, resume and the final result all fold the same events through this reducer. A
``RunState`` is never changed in place. What it says of figures hangs on which events there were and, within a unit, on their
order; how the streams of several units lie between each other changes nothing but times and the log.

``states``     what is known of a run: frozen
``kept``       records and finished units: they grow at the same cost at any size, and are read in the plan's order
``changes``    making a new state of an old one at a small cost
``under_way``  the rules of workers and units
``rules``      those of all else, and ``apply``
"""

from kvbench.record.state.rules import apply, replay
from kvbench.record.state.states import OVER_BUDGET, MethodState, Records, RunState, Status

__all__ = [
    "OVER_BUDGET",
    "MethodState",
    "Records",
    "RunState",
    "Status",
    "apply",
    "replay",
]
