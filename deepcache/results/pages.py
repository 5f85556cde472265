"""Pages of HTML, each made from a template; a page needs no other file and loads nothing."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=PackageLoader("deepcache.results"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def rendered(template: str, **values: object) -> str:
    """Return a page from the name of its template and the template's values; every text in them is escaped."""
    return str(_TEMPLATES.get_template(template).render(**values))
