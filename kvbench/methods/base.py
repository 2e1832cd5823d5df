"""What plug-ins build a method of, and find it by: their one import, whatever moves behind it. Importable without torch."""

from kvbench.methods.method import Eviction, Method, check_window, must_be, must_divide, param
from kvbench.methods.registered import (
    METHODS,
    expand,
    facts,
    free,
    left_out,
    named,
    objections,
    refuse,
    refuse_taken,
    resolve,
)  # fmt: skip
from kvbench.spec import CONTROLS

__all__ = [
    "CONTROLS", "METHODS", "Eviction", "Method", "check_window", "expand", "facts", "free", "left_out", "must_be", "must_divide",
    "named", "objections", "param", "refuse", "refuse_taken", "resolve",
]  # fmt: skip
