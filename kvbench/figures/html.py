"""Tables and heat maps as HTML, and the pages that hold them: templates of this package, in which all text is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kvbench.figures import colours
from kvbench.figures.data import Table, grouped, notes_of, title_of


def page(template: str, **values: object) -> Markup:
    """A template of the package (``report/report.html``) with ``values`` in it; ``figures/figure.html`` has what draws figures."""
    return Markup(_templates().get_template(template).render(values))


@cache
def _templates() -> Environment:
    loader = FileSystemLoader(Path(__file__).parents[1])
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.globals |= {"grouped": grouped, "notes_of": notes_of, "title_of": title_of}
    found.globals |= {"fill": colours.fill, "ink": colours.ink, "ramp": colours.RAMP}
    found.filters["lines"] = lambda text: Markup("<br>").join(text.split("\n"))
    found.filters["px"] = "{:.1f}".format
    found.tests["table"] = lambda figure: isinstance(figure, Table)
    return found
