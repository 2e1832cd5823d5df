"""What is asked for: frozen, parsed and validated before anything is loaded.

``values``      parameters' values as text          ``named``    methods and evaluators with their parameters
``model``       which model, in which numbers       ``run``      :class:`RunSpec`, the whole question of one run
``budgets``     bytes that a method has to meet     ``unit``     a piece of a run's work
``parameters``  from ``name:param=value`` to a dataclass; ``registry`` finds what the name stands for
``presets``     named sets of values                ``suites``   named sets of evaluators
``controls``    rows that every table has           ``sizes``    numbers that must be a mistake
"""

from kvbench.spec.controls import BASELINE, CONTROLS, RANDOM
from kvbench.spec.model import HALF, DTypeName, ModelSpec, auto_cache_dtype
from kvbench.spec.named import EvaluatorSpec, MethodSpec, NamedSpec, split_list
from kvbench.spec.run import Bos, CorpusSpec, Protocol, RunSpec, SweepRow, SweepSpec
from kvbench.spec.unit import Unit
from kvbench.spec.values import FIRST, Params, ParamValue, format_value, parse_value

__all__ = [
    "BASELINE",
    "CONTROLS",
    "FIRST",
    "HALF",
    "RANDOM",
    "Bos",
    "CorpusSpec",
    "DTypeName",
    "EvaluatorSpec",
    "MethodSpec",
    "ModelSpec",
    "NamedSpec",
    "ParamValue",
    "Params",
    "Protocol",
    "RunSpec",
    "SweepRow",
    "SweepSpec",
    "Unit",
    "auto_cache_dtype",
    "format_value",
    "parse_value",
    "split_list",
]
