"""Pages are one file in which text stays text: python -m pytest tests/display/test_html.py."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.display import html
from lm.display.html import (
    Html,
    document,
    element,
    escape,
    folded,
    joined,
    lines_of,
    visible,
)
from lm.display.style import DARK, LIGHT
from lm.display.tables import html_table

HOSTILE = (
    "</title></style><script>alert(\"1\")</script><img src=x onerror=alert(1)>' onload='x & &amp;"
    " \x1b[2J\u202egnp\u2028\ud800"
)


class Read(HTMLParser):
    """The page as a browser sees it."""

    def __init__(self, content: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_text_is_never_markup():
    content = document(
        HOSTILE,
        element("h1", HOSTILE, id=HOSTILE, title=HOSTILE),
        html_table([[HOSTILE, HOSTILE], [HOSTILE, HOSTILE]], HOSTILE),
        folded(HOSTILE, HOSTILE),
        joined([HOSTILE, element("b", HOSTILE)]),
    )
    read = Read(content)
    assert not {"script", "img"} & {tag for tag, _ in read.tags}
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert read.text.count(visible(HOSTILE)) == 11
    assert [attributes["title"] for tag, attributes in read.tags if tag == "h1"] == [
        visible(HOSTILE)
    ]
    assert all(character.isprintable() or character == "\n" for character in content)


@given(st.text(st.characters()))
def test_what_is_read_is_what_was_written(text):
    read = Read(element("p", text, title=text))
    assert read.text == visible(text) and read.tags == [("p", {"title": visible(text)})]
    assert Read(lines_of(text)).text.replace("↵\n", "↵") == visible(text)


def test_markup_is_escaped_once_and_text_each_time():
    assert element("p", element("b", "a < b")) == "<p><b>a &lt; b</b></p>"
    assert escape(escape("&")) == "&amp;" and isinstance(element("p"), Html)
    # Markup that is concatenated as a string is text.
    assert element("p", str(element("b", "x")) + "") == "<p>&lt;b&gt;x&lt;/b&gt;</p>"
    assert (
        element("br", class_="a", aria_label="b", viewBox="0 0", hidden=False, id=None)
        == '<br class="a" aria-label="b" viewBox="0 0">'
    )


def test_a_table_can_be_read_out():
    read = Read(html_table([["step", "loss"], ["100", "1.5"]], "Validations"))
    assert [tag for tag, _ in read.tags] == [
        "p",
        "div",
        "table",
        "thead",
        "tr",
        "th",
        "th",
        "tbody",
        "tr",
        "th",
        "td",
    ]
    assert [attributes.get("scope") for tag, attributes in read.tags if tag == "th"] == [
        "col",
        "col",
        "row",
    ]


def test_a_page_needs_nothing_from_elsewhere():
    content = document("A run", element("p", "see https://example.org"))
    assert html.POLICY in content and not re.search(r"url\(|@import|<link|<script|src=", content)


def luminance(colour: str) -> float:
    """Return the relative luminance as WCAG 2.2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_pages_have_both_palettes():
    light, dark, *_ = re.findall(r":root \{(.*?)\}", html.STYLE, re.DOTALL)
    for text, palette in ((light, LIGHT), (dark, DARK)):
        assert dict(re.findall(r"--(\w+): (#\w+)", text)) == palette


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_everything_can_be_told_from_its_ground(scheme):
    for ground in ("paper", "soft"):
        assert contrast(scheme["ink"], scheme[ground]) > 7
        for name in ("quiet", "mark", "c0"):  # the colours of text
            assert contrast(scheme[name], scheme[ground]) > 4.5, name
    assert [
        name
        for name in scheme
        if re.fullmatch(r"c\d", name) and contrast(scheme[name], scheme["paper"]) < 3
    ] == []
