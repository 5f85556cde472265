"""Names, prompts and settings are data: how a text becomes one line, a cell of Markdown or CSV, a file, and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_NUM_NAMED = 3  # texts that a message names
_NONE = "".join(
    chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)  # no characters: XML refuses them
# Control characters (tabs and line breaks too), lone surrogates, line separators
_CONTROLS = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029{_NONE}]")
# The characters that GitHub's Markdown interprets within a line, beside HTML; an underscore within a word is not one.
_MARKDOWN = re.compile(r"[\\`*\[\]~|$]|(?<![^\W_])_|_(?![^\W_])")
# A spreadsheet takes a text that begins with one of these for a formula; the last four are the full-width forms.
# Source: CSV Injection (OWASP), https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_STRICT = {"autoescape": True, "undefined": StrictUndefined}
_TEMPLATES = Environment(loader=PackageLoader("deepcache.results"), trim_blocks=True, lstrip_blocks=True, **_STRICT)


def plain(text: str) -> str:
    """Return the text on one line that UTF-8 can encode; other characters become escapes such as `\\n` or `\\ud800`."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def encodable(text: str) -> str:
    """Return the text with every lone surrogate, which UTF-8 cannot encode, replaced by its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def of_each(value: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to every text within dictionaries, lists and tuples, keys included; tuples become lists."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {of_each(name, change): of_each(each, change) for name, each in value.items()}
    return [of_each(each, change) for each in value] if isinstance(value, (list, tuple)) else value


def some(texts: Sequence[str], between: str) -> str:
    """Join the first few of these texts, and say how many more there are."""
    more = f" and {len(texts) - _NUM_NAMED} more" if len(texts) > _NUM_NAMED else ""
    return between.join(texts[:_NUM_NAMED]) + more


def markdown(text: str) -> str:
    """Escape a plain text so that a line or a cell of Markdown shows it unchanged."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(text, quote=False))


def csv_cell(value: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would run as a formula; return other values unchanged."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def rendered(template: str, **values: object) -> str:
    """Return a page of HTML, which needs no other file, from a template and its values, whose texts are escaped."""
    return str(_TEMPLATES.get_template(template).render(**values))
