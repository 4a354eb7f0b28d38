"""Rows of tokens for a reader: in the terminal, and as one HTML file.

Characters that cannot be seen, or could command the terminal, are shown as a sign or as their code
point (lm/display/html.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lm.checks.xray import Row
from lm.display.html import Html, document, element, lines_of, visible
from lm.display.tables import Table, cell_width, colour_wanted, html_table, terminal_table
from lm.optim.loss import IGNORE_INDEX
from lm.tokenizer.stream import TextStream
from lm.tokenizer.tokenizer import Tokenizer

SHOWN = 10  # lines of a note in the terminal; the HTML file and --json have all
PART = "·"  # a token that is part of a character
LEGEND = (
    "⟨eos⟩ is no text",
    "↵ ⇥ line end, tab",
    "␛ ⟨200B⟩ cannot be seen",
    "· part of a character, shown with its last part",
)
# Codes of ECMA-48.
LOUD = "1"
QUIET = "90"
SPECIAL = "1;35"
STRIPES = ("38;5;16;48;5;153", "38;5;16;48;5;223")


@dataclass(frozen=True)
class Token:
    """One token as it is shown, or a run of padding.

    Attributes:
        text: safe to show.
        position: the token's place in the row.
        special: the token stands for no text.
        labelled: the position has a label.
        begins: a document begins with this token.
    """

    text: str
    position: int
    special: bool
    labelled: bool
    begins: bool


def special_names(tokenizer: Tokenizer) -> dict[int, str]:
    """Return names for the special tokens: eos and pad by their purpose, others by their text."""
    added = {
        token["id"]: visible(token["content"])
        for token in json.loads(tokenizer.definition).get("added_tokens", [])
    }
    names = {
        number: added.get(number, str(number)).strip("<|>") for number in tokenizer.special_ids
    }
    return {
        number: f"⟨{name}⟩"
        for number, name in (names | {tokenizer.pad_id: "pad", tokenizer.eos_id: "eos"}).items()
    }


def tokens_of(row: Row, tokenizer: Tokenizer) -> list[Token]:
    """Return the tokens of a row; the padding at its end becomes one token."""
    names = special_names(tokenizer)
    stream = TextStream(tokenizer)
    tokens = []
    begins = [False, *(row.documents[1:] != row.documents[:-1]).tolist()]
    labelled = (row.labels != IGNORE_INDEX).tolist()
    for position, number in enumerate(row.ids[: row.used].tolist()):
        text = names.get(number) or visible(stream.push(number)) or PART
        tokens.append(Token(text, position, number in names, labelled[position], begins[position]))
    if padding := len(row.ids) - row.used:
        tokens.append(Token(f"⟨pad × {padding:,}⟩", row.used, True, False, row.used > 0))
    return tokens


def facts(row: Row) -> str:
    """Describe a row in one line."""
    documents = int(row.documents[row.used - 1]) + 1 if row.used else 0
    cut = ["", "cut at the start", "cut at the end", "cut at both ends"][
        row.starts_inside + 2 * row.ends_inside
    ]
    parts = [
        f"{row.used:,} tokens",
        f"{row.supervised:,} with a label",
        f"{documents:,} document{'s' * (documents != 1)}",
        cut,
    ]
    return f"{row.name}: {', '.join(part for part in parts if part)}"


def terminal_row(row: Row, tokens: Sequence[Token], width: int, colour: bool) -> Iterator[str]:
    """Yield lines of at most `width` cells; each begins with the position of its first token.

    ├ marks the beginning of a document.
    """
    yield _paint(facts(row), LOUD, colour)
    digits = len(str(len(row.ids)))
    room = max(8, width - digits - 3)
    striped = are_words(tokens)
    line, used, lead = "", 0, ""
    for token, text in zip(
        tokens,
        [token.text for token in tokens] if colour else _with_marks(tokens, striped),
        strict=True,
    ):
        if not token.labelled:
            style = f"{QUIET};4" if striped and token.position % 2 else QUIET
        elif token.special:
            style = SPECIAL
        elif striped:
            style = STRIPES[token.position % 2]
        else:
            style = ""
        pieces = [text] if cell_width(text) <= room else list(text)
        for piece in pieces:
            if line and (used + cell_width(piece) > room or (token.begins and piece is pieces[0])):
                yield lead + line
                line, used = "", 0
            if not line:
                mark = "├" if token.begins and piece is pieces[0] else "│"
                lead = _paint(f"{token.position:>{digits}} {mark} ", QUIET, colour)
            line += _paint(piece, style, colour)
            used += cell_width(piece)
    yield lead + line


def _with_marks(tokens: Sequence[Token], striped: bool) -> Iterator[str]:
    """Yield the tokens' texts for a terminal without colours.

    ┊ separates tokens of text; ⟦ ⟧ enclose tokens without a label.
    """
    around = [None, *tokens, None]
    for before, token, after in zip(around, tokens, around[2:], strict=False):
        border = (
            "┊"
            if striped and before and not before.special and not token.special and not token.begins
            else ""
        )
        opening = "⟦" if not token.labelled and (before is None or before.labelled) else ""
        closing = "⟧" if not token.labelled and (after is None or after.labelled) else ""
        yield f"{border}{opening}{token.text}{closing}"


def show_rows(rows: Sequence[Row], tokenizer: Tokenizer, unlabelled: str) -> None:
    """Print rows, then a legend; `unlabelled` explains tokens without a label."""
    colour = colour_wanted()
    width = shutil.get_terminal_size((100, 24)).columns
    for row in rows:
        print(*terminal_row(row, tokens_of(row, tokenizer), width, colour), sep="\n", end="\n\n")
    print("   ".join(LEGEND))
    print(f"{_paint('grey', QUIET, True) if colour else '⟦ ⟧'} {unlabelled}")


def show_tables(tables: Mapping[str, Table], notes: Mapping[str, Sequence[str]]) -> None:
    """Print tables and the first lines of each note."""
    for lines in tables.values():
        print(f"\n{terminal_table(lines)}")
    for heading, items in notes.items():
        rest = (
            [f"and {len(items) - SHOWN:,} more, all of them in --html and --json"]
            if len(items) > SHOWN
            else []
        )
        print(f"\n{heading}", *(visible(item) for item in [*items[:SHOWN], *rest]), sep="\n  ")


def are_words(tokens: Sequence[Token]) -> bool:
    """Return whether tokens need visible borders, because few of them are single characters."""
    lengths = [len(token.text) for token in tokens if not token.special]
    return sum(lengths) > 1.5 * len(lengths)


def _paint(text: str, style: str, colour: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if colour and style else text


STYLE = """
:root { --a: #d6e8fb; --b: #fbe6d2; --special: #a3168f }
@media (prefers-color-scheme: dark) { :root { --a: #1d3a57; --b: #553619; --special: #f08be0 } }
.row { font: 14px/1.9 ui-monospace, SFMono-Regular, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere;
  border-left: 3px solid var(--line); padding-left: 1em }
i { font-style: normal; border-radius: 3px }
i:hover { outline: 2px solid var(--special) }
.words i { background: var(--a) }
.words i:nth-child(even) { background: var(--b) }
.row i.q { background: none; color: var(--quiet); text-decoration: underline dotted }
.row i.s { background: none; color: var(--special); font-weight: bold }
.row i.s.q { color: var(--quiet) }
i.b::before { content: ""; display: block; border-top: 1px dashed var(--special);
  margin: .3em 0 }
i[data-p]::before { content: attr(data-p); color: var(--quiet); font-size: 10px;
  vertical-align: super; margin-right: .2em }
i:hover::after { content: attr(data-t); position: fixed; left: 0; right: 0; bottom: 0;
  padding: .5em 1em; background: var(--soft);
  color: var(--ink); font: 14px/1.5 ui-monospace, monospace;
  border-top: 1px solid var(--line); text-decoration: none }
"""
RULER = 32  # one position in so many is written out


def html_page(
    title: str,
    tables: dict[str, Table],
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    notes: dict[str, list[str]],
) -> str:
    """Return a page of tables, rows and notes; a token's details appear under the pointer."""
    parts = [element("h1", title)]
    for heading, lines in tables.items():
        parts += [element("h2", heading), html_table(lines)]
    hints = "underlined: no label, the next token is not learnt"
    more = (
        "a dashed line: a document begins; hover over a token for its position, id, label and"
        " document"
    )
    legend = [part for line in (*LEGEND, hints, more) for part in (line, element("br"))][:-1]
    parts += [element("h2", "Rows"), element("p", *legend, class_="quiet")]
    for row in rows:
        tokens = tokens_of(row, tokenizer)
        parts.append(element("p", facts(row)))
        parts.append(
            element(
                "div",
                *_html_tokens(row, tokens, tokenizer),
                class_="row" + " words" * are_words(tokens),
            )
        )
    for heading, items in notes.items():
        parts += [element("h2", heading), element("ul", *(element("li", item) for item in items))]
    return document(title, *parts, style=STYLE)


def _html_tokens(row: Row, tokens: Sequence[Token], tokenizer: Tokenizer) -> Iterator[Html]:
    names = special_names(tokenizer)
    for token in tokens:
        i = token.position
        label = int(row.labels[i])
        position = f"position {i:,}" + f", {row.positions[i]:,} in its document" * bool(
            row.positions[i] != i
        )
        taught = (
            f"label {label} {names.get(label) or repr(tokenizer.decode([label]))}"
            if token.labelled
            else "no label"
        )
        about = (
            f"{position} · id {row.ids[i]} · {taught} · document {row.documents[i] + 1} of this row"
        )
        flags = "s" * token.special + " q" * (not token.labelled) + " b" * token.begins
        ruler = i if i % RULER == 0 and not token.begins else None
        yield element(
            "i",
            lines_of(token.text),
            class_=flags.strip() or None,
            data_t=about,
            data_p=ruler,
        )
