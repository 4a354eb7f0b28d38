"""Markdown in which text from elsewhere is nothing but text."""

from __future__ import annotations

import html
import re

from lm.checks.rendering import Table
from lm.display.html import visible

MARKDOWN = re.compile(r"[\\`*_~\[\]()#|$@!:]|(?<=www)\.")  # what could be more than a sign


def safe(text: str) -> str:
    """Text on one line of Markdown that is nothing but itself: no markup, no link, no tag, nothing
    that cannot be seen.
    """
    return MARKDOWN.sub(r"\\\g<0>", html.escape(visible(text), quote=False))


def markdown_table(table: Table, numbers: bool = True) -> str:
    """A table; `numbers`: all but the first column are, and stand to the right."""
    rule = ["---", *(["---:" if numbers else "---"] * (len(table[0]) - 1))]
    lines = [
        [safe(cell) for cell in table[0]],
        rule,
        *([safe(cell) for cell in line] for line in table[1:]),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
