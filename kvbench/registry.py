"""Names of methods and evaluators, found through entry points and loaded only when used.

The built-ins are declared in ``pyproject.toml`` under the same groups that a plug-in uses::

    [project.entry-points."kvbench.methods"]
    my_score = "my_package:MyScore"
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kvbench.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Generic[T]):
    """Entry points of one group, by name.

    Args:
        group: Entry-point group, for example ``kvbench.methods``.
        kind: The singular noun used in messages (``method``).
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group, self.kind = group, kind

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points  # here, since it costs 25 ms that many commands need not pay

        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            other = points.get(point.name)
            if other is not None and other.value != point.value:
                raise UsageError(
                    f"{self.kind} '{point.name}' is registered twice: {other.value} and {point.value}",
                    hint="uninstall one of the packages",
                )
            points[point.name] = point
        if not points:
            raise UsageError(
                f"no {self.kind} is registered: kvbench's own metadata is not installed",
                hint="python -m pip install -e .",
            )
        return points

    def names(self) -> list[str]:
        """Every registered name, in alphabetical order."""
        return sorted(self._points)

    def load(self, name: str) -> type[T]:
        """Import what ``name`` stands for.

        Raises:
            UnknownName: no such name; carries the nearest ones.
            UsageError: the plug-in cannot be imported.
        """
        point = self._points.get(name)
        if point is None:
            raise UnknownName(self.kind, name, self._points)
        try:
            loaded: Any = point.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"{self.kind} '{name}' ({point.value}) cannot be imported: {error}",
                hint="reinstall the package that provides it",
            ) from error
        return loaded  # type: ignore[no-any-return]
