"""Tables for the terminal, for Markdown and for HTML, and paragraphs for the terminal.

A table is a list of lines of cells; the first line holds the headings. Cells may come from models,
data or folder names: each writer shows them as text and never as markup or terminal commands.

    print(terminal_table([["step", "loss"], ["100", "1.8214"]]))
"""

from __future__ import annotations

import html
import itertools
import os
import re
import sys
import textwrap
import unicodedata
from collections.abc import Container, Sequence

from lm.display.html import Html, element, joined, visible

Table = list[list[str]]

TERMINAL_WIDTH = 100  # cells
MISSING = "–"  # a cell whose value does not exist or is not known
NOT_RECORDED = "not recorded"
# The columns that hold words and are aligned to the left. The others hold numbers.
FIRST: Container[int] = (0,)
EVERY: Container[int] = range(sys.maxsize)
MARKDOWN = re.compile(r"[\\`*_~\[\]()#|$@!:]|(?<=www)\.")  # characters that could be markup


def terminal_table(
    table: Sequence[Sequence[str]],
    words: Container[int] = FIRST,
    *,
    width: int | None = None,
    indent: str = "",
) -> str:
    """Return the table as aligned lines, two spaces between its columns.

    Args:
        table: the headings, then the lines; without a line, the result is empty.
        words: the columns that are aligned to the left.
        width: cuts cells of the widest columns until the lines, with their indent, take at most
            this many terminal cells.
        indent: precedes every line.
    """
    cells = [[visible(cell) for cell in line] for line in table]
    widths = [max(map(cell_width, column)) for column in zip(*cells, strict=True)]
    while width is not None and len(indent) + sum(widths) + 2 * (len(widths) - 1) > width:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for line in cells:
        padded = []
        for i, (cell, room) in enumerate(zip(line, widths, strict=True)):
            text = cut(cell, room)
            gap = " " * (room - cell_width(text))
            padded.append(text + gap if i in words else gap + text)
        lines.append(f"{indent}{'  '.join(padded)}".rstrip())
    return "\n".join(lines)


def markdown_table(table: Sequence[Sequence[str]], words: Container[int] = FIRST) -> str:
    """Return the table as Markdown; columns that are not `words` are aligned to the right."""
    rule = ["---" if i in words else "---:" for i in range(len(table[0]))]
    lines = [[safe(cell) for cell in line] for line in table]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def html_table(
    table: Sequence[Sequence[str]], caption: str = "", words: Container[int] = FIRST
) -> Html:
    """Return the table as HTML that scrolls sideways where its column is narrow.

    `words` is FIRST or EVERY; the style of lm/display/html.py knows these two.
    """
    headings, *lines = table
    head = element("thead", element("tr", *(element("th", cell, scope="col") for cell in headings)))
    body = (
        # The first cell names its row.
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in lines
    )
    inner = element(
        "table",
        head,
        element("tbody", *body),
        class_="words" if words is EVERY else None,
    )
    scrolled = element(
        "div",
        inner,
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or " / ".join(headings),
    )
    # Not a caption element, which is as wide as the table and would be cut with it.
    return joined([element("p", caption, class_="caption"), scrolled]) if caption else scrolled


def safe(text: str) -> str:
    """Escape text for one line of Markdown: no markup, no link, no tag, no invisible character."""
    return MARKDOWN.sub(r"\\\g<0>", html.escape(visible(text), quote=False))


def wrapped(text: str, indent: str = "") -> list[str]:
    """Return a paragraph as indented lines of at most TERMINAL_WIDTH characters."""
    return textwrap.wrap(
        visible(text), TERMINAL_WIDTH, initial_indent=indent, subsequent_indent=indent
    )


def cut(text: str, width: int) -> str:
    """Shorten text to `width` terminal cells; an ellipsis marks the cut."""
    if cell_width(text) <= width:
        return text
    ends = itertools.accumulate(map(cell_width, text))
    kept = sum(1 for _ in itertools.takewhile(lambda end: end < width, ends))
    return f"{text[:kept]}…"


def colour_wanted() -> bool:
    """Return whether stdout is a terminal that shows colours, and nobody asked for none."""
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def cell_width(text: str) -> int:
    """Count the terminal cells of a text: two for East Asian characters, none for accents."""
    return sum(
        (
            0
            if unicodedata.category(character) in ("Mn", "Me")
            else 2
            if unicodedata.east_asian_width(character) in "WF"
            else 1
        )
        for character in text
    )
