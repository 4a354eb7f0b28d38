"""Tables show every cell as text, aligned, in the terminal, in Markdown and in HTML."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.display.tables import (
    EVERY,
    cell_width,
    cut,
    html_table,
    markdown_table,
    terminal_table,
    wrapped,
)

HOSTILE = "\x1b[2J\n| <b>*x*</b> \u202e日本"
cells = st.text(st.characters(codec="utf-8"), max_size=12)
tables = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=4)
)


@pytest.mark.usefixtures("takes_seconds")
@given(tables)
def test_terminal_lines_hold_every_cell_and_no_command(table):
    lines = terminal_table(table).split("\n")
    assert len(lines) == len(table)
    assert all(character.isprintable() for line in lines for character in line)


@pytest.mark.usefixtures("takes_seconds")
@given(tables, st.integers(30, 60))
def test_a_width_limits_every_line(table, width):
    shown = terminal_table(table, width=width, indent="  ")
    assert all(cell_width(line) <= width for line in shown.split("\n"))


def test_words_stand_left_and_numbers_right():
    table = [["name", "n", "date"], ["日本", "1,000", "today"], ["x", "2", "-"]]
    assert terminal_table(table, words=(0, 2)).split("\n") == [
        "name      n  date",
        "日本  1,000  today",
        "x         2  -",
    ]
    assert terminal_table(table, EVERY).split("\n")[2] == "x     2      -"


def test_only_the_widest_column_is_cut():
    table = [["key", "a"], ["x" * 50, "1"]]
    assert terminal_table(table, width=10).split("\n") == ["key      a", "xxxxxx…  1"]
    assert cut("日本語", 5) == "日本…"
    assert cut("日本語", 6) == "日本語"
    assert cut("cafe\u0301 noir", 5) == "cafe\u0301…"  # the accent takes no cell


def test_markdown_and_html_escape_their_cells():
    table = [["name", "n"], [HOSTILE, "1"]]
    head, rule, line = markdown_table(table).splitlines()
    assert (head, rule) == ("| name | n |", "| --- | ---: |")
    assert r"\|" in line and "&lt;b&gt;\\*x\\*" in line and "\x1b" not in line
    assert markdown_table(table, EVERY).splitlines()[1] == "| --- | --- |"
    page = html_table(table, "caption")
    assert "<b>" not in page and "&lt;b&gt;" in page and '<p class="caption">caption</p>' in page
    assert 'class="words"' not in page and 'class="words"' in html_table(table, words=EVERY)


def test_paragraphs_are_indented_and_visible():
    lines = wrapped("word " * 60 + HOSTILE, "  ")
    assert len(lines) > 1
    assert all(line.startswith("  ") and len(line) <= 100 for line in lines)
    assert "\x1b" not in "".join(lines)
