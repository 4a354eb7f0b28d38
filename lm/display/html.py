"""HTML pages that are one file and need nothing else: no script, nothing from elsewhere, light and
dark, narrow, on paper.

Markup is only ever made by `element`, which escapes whatever is not markup already: so text of
models and of data can be handed to it as it is. What cannot be seen, or could turn the direction of
what follows, is shown by a sign or by its code point.

    page = document("A run", element("h1", name), element("p", text_of_a_model))
"""

from __future__ import annotations

import html
from collections.abc import Iterable

SIGNS = {chr(code): chr(0x2400 + code) for code in range(32)} | {"\x7f": "␡", "\n": "↵", "\t": "⇥"}
WITHOUT_END = ("br", "meta")
# The policy lets nothing run or load, should anything ever get past the escaping.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# Every text has a contrast of 4.5 to its ground, every line of a chart one of 3 (WCAG 2.2, AA);
# tests/display/test_html.py computes them.
STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #22262b; --quiet: #5c646d; --line: #dedfdc; --soft: #f1f1ed; --mark: #8a5a00;
  --c0: #2166ac; --c1: #c2452d; --c2: #2b7f4f; --c3: #a05f00; --c4: #7a4fa3; --c5: #0e7784; --c6: #8c4a3c; --c7: #5a6068 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16191d; --ink: #e3e5e7; --quiet: #9ea6af; --line: #353a41; --soft: #1f2328; --mark: #e6b455;
    --c0: #6cb0f0; --c1: #f28b74; --c2: #69c795; --c3: #e5ae4d; --c4: #bd98e6; --c5: #4fc4d1; --c6: #d39c8c; --c7: #a6adb5 }
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; background: var(--paper);
  color: var(--ink); max-width: 66em; margin: 0 auto; padding: 2.2em 1.2em 5em; overflow-wrap: break-word }
h1, h2, h3 { font-family: Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4", Georgia, serif; font-weight: 600;
  line-height: 1.25; text-wrap: balance }
h1 { font-size: 2em; margin: 0 0 .3em } h2 { font-size: 1.35em; margin: 2.4em 0 .7em } h3 { font-size: 1.08em; margin: 1.6em 0 .4em }
p { margin: .5em 0; max-width: 46em } a { color: var(--c0); text-underline-offset: .15em }
.quiet { color: var(--quiet) } .small { font-size: .875em } .mark { color: var(--mark); font-weight: 600 }
code, .code { font: .9em/1.5 ui-monospace, SFMono-Regular, "Cascadia Code", "DejaVu Sans Mono", Menlo, monospace; overflow-wrap: anywhere }
.scroll { overflow-x: auto; margin: .8em 0 1.2em } .scroll:focus-visible { outline: 2px solid var(--c0) }
table { border-collapse: collapse; font-size: .9375em; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--quiet); font-size: .9em; padding: 0 0 .4em }
th, td { padding: .32em 1.3em .32em 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; white-space: nowrap }
th { font-weight: 500 } thead th { color: var(--quiet); font-size: .9em }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 7em }
table.words th, table.words td { text-align: left; white-space: normal } table.words td { min-width: 8em }
details { margin: .6em 0 } summary { cursor: pointer; color: var(--c0); width: fit-content } summary:hover { text-decoration: underline }
ul { padding-left: 1.2em } li { margin: .2em 0 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3em 0; max-width: none }
@media (max-width: 480px) { body { font-size: 15px; padding: 1.2em .9em 3em } h1 { font-size: 1.6em } }
@media print {
  :root { --paper: #fff; --ink: #000; --line: #bbb } body { font-size: 10.5pt; max-width: none; padding: 0 }
  h2, h3 { break-after: avoid } figure, tr { break-inside: avoid } .scroll { overflow: visible } a { color: inherit }
}
"""


class Html(str):
    """Markup, in which all that was text has been escaped."""

    __slots__ = ()


def visible(text: str) -> str:
    """Text in which every character can be seen, none moves the cursor, and none turns the
    direction of what follows.
    """
    return "".join(
        character if character.isprintable() else SIGNS.get(character, f"⟨{ord(character):04X}⟩")
        for character in text
    )


def escape(text: str) -> Html:
    """Text as markup that shows just it; markup as it is."""
    return text if isinstance(text, Html) else Html(html.escape(visible(text)))


def lines_of(text: str) -> Html:
    """Text of several lines, for a place that keeps them (class `text`): each line end is seen and
    done.
    """
    return Html(html.escape(visible(text)).replace(SIGNS["\n"], SIGNS["\n"] + "\n"))


def joined(parts: Iterable[str]) -> Html:
    """Pieces of text and of markup, one behind the other."""
    return Html("".join(escape(part) for part in parts))


def element(tag: str, *children: str, **attributes: object) -> Html:
    """`<tag attributes>children</tag>`; children and values that are not markup are escaped.

    An attribute's name is written `class_`, `aria_label`, `viewBox`: one trailing underscore goes,
    others become hyphens. None and False leave it out.
    """
    given = "".join(
        f' {name.removesuffix("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{tag}{given}>" + ("" if tag in WITHOUT_END else f"{joined(children)}</{tag}>"))


def folded(summary: str, *parts: str, opened: bool = False) -> Html:
    """What is shown when the summary is clicked."""
    return element(
        "details", element("summary", summary), *parts, **({"open": "open"} if opened else {})
    )


def document(title: str, *body: str, style: str = "") -> str:
    """The whole file. `style` is CSS, as it is, beside the style of all pages."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", title),
        Html(f"<style>{STYLE}{style}</style>"),
    ]
    whole = element("html", element("head", *head), element("body", *body), lang="en")
    return f"<!doctype html>\n{whole}\n"
