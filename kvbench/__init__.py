"""kvbench: what a KV-cache compression method costs in quality, and what it saves in memory and time.

    >>> import kvbench
    >>> cache = kvbench.make_cache(model, "kivi:bits=2")
    >>> model.generate(**inputs, past_key_values=cache)
    >>> cache.ledger()

    >>> kvbench.run(kvbench.RunSpec(methods=(kvbench.MethodSpec.parse("kivi:bits=2"),)))

Importing this package imports neither torch nor transformers; each name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvbench.api import make_cache
    from kvbench.engine.start import run
    from kvbench.spec import CorpusSpec, EvaluatorSpec, MethodSpec, ModelSpec, RunSpec

    __version__: str

__all__ = ["CorpusSpec", "EvaluatorSpec", "MethodSpec", "ModelSpec", "RunSpec", "__version__", "make_cache", "run"]

_HOMES = {
    "make_cache": "kvbench.api",
    "run": "kvbench.engine.start",
    **dict.fromkeys(("CorpusSpec", "EvaluatorSpec", "MethodSpec", "ModelSpec", "RunSpec"), "kvbench.spec"),
}


def __getattr__(name: str) -> Any:
    """Load a public name from its home (PEP 562)."""
    if name == "__version__":
        from kvbench.version import own

        value: Any = own()
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'kvbench' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
