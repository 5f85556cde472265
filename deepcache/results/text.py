"""Names, prompts and settings are data: a text as one line, and as a cell of Markdown, CSV and LaTeX."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from typing import Any

_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}  # controls with tab and line breaks, halves of characters, separators of lines
# What GitHub's Markdown reads within a line, beside HTML; an underscore between letters or digits is one.
_MARKDOWN = re.compile(r"[\\`*\[\]~|$]|(?<![^\W_])_|_(?![^\W_])")
# With these a spreadsheet begins a formula; the last four are their full-width forms.
# Source: CSV Injection (OWASP), https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def plain(text: str) -> str:
    """The text on one line, encodable in UTF-8: of what no line can hold its escape, such as `\\n` or `\\ud800`."""
    return "".join(_escaped(character) for character in text)


def encodable(text: str) -> str:
    """The text with halves of characters, which UTF-8 has not, as their escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def of_each(value: Any, change: Callable[[str], str]) -> Any:
    """A value of dictionaries and lists with every text in it changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {of_each(key, change): of_each(each, change) for key, each in value.items()}
    return [of_each(each, change) for each in value] if isinstance(value, list) else value


def markdown(text: str) -> str:
    """A plain text within a line or a cell of Markdown, where it shows as it is."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(text, quote=False))


def csv_cell(value: object) -> object:
    """A cell of CSV: behind an apostrophe a text that a spreadsheet would run as a formula; a number stays one."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _escaped(character: str) -> str:
    is_none = ord(character) & 0xFFFE == 0xFFFE  # U+FFFE and its like are no characters, and XML refuses them
    return ascii(character)[1:-1] if is_none or unicodedata.category(character) in _CONTROLS else character
