"""HTML pages in one file: no script, no outside address; they fit light, dark, narrow and paper.

Only `element` makes markup. It escapes everything that is not markup already, so text from models
and data can be passed as it is. Characters that cannot be seen, or that could turn the direction of
the text after them, are shown as a sign or as their code point.

    page = document("A run", element("h1", name), element("p", text_of_a_model))
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from lm.display.style import DARK, LIGHT

SIGNS = {chr(code): chr(0x2400 + code) for code in range(32)} | {"\x7f": "␡", "\n": "↵", "\t": "⇥"}
WITHOUT_END = ("br", "meta")
# Nothing runs and nothing loads, should any text ever get past the escaping. Styles may stand in
# the page and in its attributes, where matplotlib writes them.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
LIGHT_VARIABLES, DARK_VARIABLES = (
    " ".join(f"--{name}: {colour};" for name, colour in palette.items())
    for palette in (LIGHT, DARK)
)
STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT_VARIABLES} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK_VARIABLES} }} }}"""
STYLE += """
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { background: var(--paper); color: var(--ink); max-width: 66em; margin: 0 auto;
  padding: 2.2em 1.2em 5em; overflow-wrap: break-word; font: 16px/1.55 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1, h2, h3 { font-family: Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4",
  Georgia, serif; font-weight: 600; line-height: 1.25; text-wrap: balance }
h1 { font-size: 2em; margin: 0 0 .3em }
h2 { font-size: 1.35em; margin: 2.4em 0 .7em }
h3 { font-size: 1.08em; margin: 1.6em 0 .4em }
p { margin: .5em 0; max-width: 46em }
a { color: var(--c0); text-underline-offset: .15em }
.quiet { color: var(--quiet) }
.small { font-size: .875em }
.mark { color: var(--mark); font-weight: 600 }
code, .code { font: .9em/1.5 ui-monospace, SFMono-Regular, "Cascadia Code", "DejaVu Sans Mono",
  Menlo, monospace; overflow-wrap: anywhere }
.scroll { overflow-x: auto; margin: .8em 0 1.2em }
.scroll:focus-visible { outline: 2px solid var(--c0) }
table { border-collapse: collapse; font-size: .9375em; font-variant-numeric: tabular-nums }
.caption { color: var(--quiet); font-size: .85em; margin: .8em 0 -.6em }
th, td { padding: .32em 1.3em .32em 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap }
th { font-weight: 500 }
thead th { color: var(--quiet); font-size: .9em; white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 7em }
table.words th, table.words td { text-align: left; white-space: normal }
table.words td { min-width: 8em }
details { margin: .6em 0 }
summary { cursor: pointer; color: var(--c0); width: fit-content }
summary:hover { text-decoration: underline }
ul { padding-left: 1.2em }
li { margin: .2em 0 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3em 0; max-width: none }
@media (max-width: 480px) {
  body { font-size: 15px; padding: 1.2em .9em 3em }
  h1 { font-size: 1.6em }
}
@media print {
  :root { --paper: #fff; --ink: #000; --line: #bbb }
  body { font-size: 10.5pt; max-width: none; padding: 0 }
  h2, h3 { break-after: avoid }
  figure, tr { break-inside: avoid }
  .scroll { overflow: visible }
  a { color: inherit }
}
"""


class Html(str):
    """Markup; every text in it has been escaped."""

    __slots__ = ()


def visible(text: str) -> str:
    """Replace every character that is not printable by its sign or its code point.

    In the result no character moves the cursor or turns the direction of the text after it.
    """
    return "".join(
        character if character.isprintable() else SIGNS.get(character, f"⟨{ord(character):04X}⟩")
        for character in text
    )


def escape(text: str) -> Html:
    """Return text as markup that shows exactly this text; markup stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(visible(text)))


def lines_of(text: str) -> Html:
    """Escape text of several lines; each line end is both shown and kept (in class `text`)."""
    return Html(escape(text).replace(SIGNS["\n"], SIGNS["\n"] + "\n"))


def joined(parts: Iterable[str]) -> Html:
    """Join texts and markup into one piece of markup."""
    return Html("".join(escape(part) for part in parts))


def element(tag: str, *children: str, **attributes: object) -> Html:
    """Return `<tag attributes>children</tag>`; texts in children and values are escaped.

    An attribute's name is written `class_`, `aria_label`, `viewBox`: one trailing underscore is
    dropped, the others become hyphens. The values None and False omit the attribute.
    """
    written = "".join(
        f' {name.removesuffix("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{tag}{written}>" + ("" if tag in WITHOUT_END else f"{joined(children)}</{tag}>"))


def folded(summary: str, *parts: str, opened: bool = False) -> Html:
    """Return parts that open at a click on the summary."""
    attributes = {"open": "open"} if opened else {}
    return element("details", element("summary", summary), *parts, **attributes)


def document(title: str, *body: str, style: str = "") -> str:
    """Return the page's file. `style` is CSS that follows the style of all pages, unescaped."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", title),
        Html(f"<style>{STYLE}{style}</style>"),
    ]
    page = element("html", element("head", *head), element("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"
