"""CSV and TSV as programs really write them: no row is glued to others or lost uncounted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from lm.config.schema.source import SingleSource
from lm.documents.faults import Fault
from lm.documents.formats import FORMATS
from lm.system.errors import DataError


def rows(path: Path, content: str, **keys: Any) -> list[tuple[int, str]]:
    """Return the number and text of each row, or the kind of its fault."""
    path.write_bytes(content.encode())
    source = TypeAdapter(SingleSource).validate_python(
        {"format": "csv", "files": "unused", "text_key": "text", **keys}
    )
    found = FORMATS["csv"](str(path), source, None)
    return [(number, text.kind if isinstance(text, Fault) else str(text)) for number, text in found]


GLUED = "quote that takes in rows"
UNQUOTED = 'id\ttext\n1\t"Who is\n2\tthere?\n3\tNobody, said the voice"\n4\tfine\n'


def test_a_quote_that_takes_in_rows_is_found_where_tabs_part_columns(tmp_path: Path) -> None:
    """The rows below it are read by themselves."""
    expected = [(2, GLUED), (3, "there?"), (4, 'Nobody, said the voice"'), (5, "fine")]
    assert rows(tmp_path / "a.tsv", UNQUOTED) == expected
    with_quotes = [(2, '"Who is'), *expected[1:]]
    assert rows(tmp_path / "a.tsv", UNQUOTED, quoting="none") == with_quotes
    glued = "Who is\n2\tthere?\n3\tNobody, said the voice"
    assert rows(tmp_path / "a.tsv", UNQUOTED, quoting="minimal") == [(2, glued), (5, "fine")]


def test_lines_in_quotes_stay_one_text(tmp_path: Path) -> None:
    """Text with commas may look like two rows; like four, it does not."""
    letter = 'id,text\n1,"Dear Ann\nit rains, too"\n2,fine\n'
    assert rows(tmp_path / "a.csv", letter) == [(2, "Dear Ann\nit rains, too"), (4, "fine")]
    early = 'id,text\n1,"open\n2,two\n3,three\n4,four"\n5,fine\n'
    found = rows(tmp_path / "a.csv", early)
    assert found == [(2, GLUED), (3, "two"), (4, "three"), (5, 'four"'), (6, "fine")]


def test_a_broken_row_takes_no_others_along(tmp_path: Path) -> None:
    content = 'id,text\n1,"open\n2,two\n3,"closed" and more\n4,four\n'
    expected = [(2, "broken CSV"), (3, "two"), (4, "broken CSV"), (5, "four")]
    assert rows(tmp_path / "a.csv", content) == expected


def test_an_escape_makes_a_quote_ordinary(tmp_path: Path) -> None:
    content = 'id,text\n1,"say \\"hi\\", Ann"\n2,fine\n'
    assert rows(tmp_path / "a.csv", content)[0] == (2, "broken CSV")
    found = rows(tmp_path / "a.csv", content, escape="\\")
    assert found == [(2, 'say "hi", Ann'), (3, "fine")]


def test_names_for_a_file_without_a_line_of_names(tmp_path: Path) -> None:
    content = '1\teng\t"Go!" he said.\n2\tdeu\tGeh.\n'
    keys = {"names": ["id", "language", "text"], "quoting": "none"}
    found = rows(tmp_path / "a.tsv", content, **keys)
    assert found == [(1, '"Go!" he said.'), (2, "Geh.")]
    with pytest.raises(DataError, match="no column 'text'; there are"):
        rows(tmp_path / "a.tsv", content, names=["id", "language", "sentence"])


def test_a_name_with_tsv_means_tabs(tmp_path: Path) -> None:
    for name in ("a.tsv", "A.TSV", "b.tab"):
        assert rows(tmp_path / name, "id\ttext\n1\ta, b\n") == [(2, "a, b")]


def test_the_other_separator_is_guessed_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'\(now \',\'; perhaps "\\t"\)'):
        rows(tmp_path / "a.csv", "id\ttext\n1\tone\n")


def test_an_encoding_of_the_names_too(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("größe,text\n1,süß\n".encode("cp1252"))
    source = {"format": "csv", "files": "unused", "encoding": "cp1252"}
    section = TypeAdapter(SingleSource).validate_python(source)
    assert list(FORMATS["csv"](str(file), section, None)) == [(2, "süß")]
    utf8 = TypeAdapter(SingleSource).validate_python(source | {"encoding": None})
    with pytest.raises(DataError, match="looks like cp1252; write encoding: cp1252"):
        list(FORMATS["csv"](str(file), utf8, None))
    other = TypeAdapter(SingleSource).validate_python(source | {"encoding": "shift_jis"})
    with pytest.raises(DataError, match="it is not shift_jis either; correct encoding"):
        list(FORMATS["csv"](str(file), other, None))


# ---------------------------------------------------------------- as Excel and pandas write them


@pytest.mark.parametrize("first", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n', "\ufeffsep=;\n"])
def test_excels_first_line_names_the_delimiter(tmp_path: Path, first: str) -> None:
    """It is no row, and the numbers of the lines go on counting it."""
    content = first + "id;text\n1;one, two\n3\n"
    expected = [(3, "one, two"), (4, "another number of columns")]
    assert rows(tmp_path / "a.csv", content) == expected
    assert rows(tmp_path / "a.tsv", content) == expected
    named = rows(tmp_path / "a.csv", first + "1;one\n", names=["id", "text"])
    assert named == [(2, "one")]


@pytest.mark.parametrize(
    "above",
    ["# made by a program\n", "# one\n# two\n", "# one\n# two, and more\n", "#\n", "## a, b, c\n"],
)
def test_comments_above_the_names_are_refused_by_name(tmp_path: Path, above: str) -> None:
    with pytest.raises(
        DataError, match=r"a.csv:1: a comment above the columns' names; remove such lines"
    ):
        rows(tmp_path / "a.csv", above + "id,text\n1,one\n")


@pytest.mark.parametrize("name", ["#", "#id", "# of words"])
def test_a_name_may_begin_like_a_comment(tmp_path: Path, name: str) -> None:
    content = f'{name},text\n#1,"a, b\nc"\n'
    assert rows(tmp_path / "a.csv", content) == [(2, "a, b\nc")]


def test_spaces_around_names_are_no_part_of_them(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.csv", " text ,id\n one ,1\n") == [(2, " one ")]
    with pytest.raises(DataError, match="2 columns are called 'text'"):
        rows(tmp_path / "a.csv", "text, text\none,1\n")


def test_a_space_after_each_delimiter_is_no_text(tmp_path: Path) -> None:
    """The line of names shows that a file has them."""
    content = 'id, text\n1, "b, ""c"""\n2, d, \n3, e\n'
    expected = [(2, 'b, "c"'), (3, "another number of columns"), (4, "e")]
    assert rows(tmp_path / "a.csv", content) == expected


SPACED = "quote after a space"


def test_a_quote_after_a_space_is_not_guessed(tmp_path: Path) -> None:
    """If the names do not show it, nobody can tell whether the quotes belong to the text."""
    content = 'id,text\n1, "b, c"\n2, "d"\n3, "e" he said\n4," ""f"", , ""g"""\n'
    said = [(4, ' "e" he said'), (5, ' "f", , "g"')]
    assert rows(tmp_path / "a.csv", content) == [(2, SPACED), (3, SPACED), *said]
    by_the_book = [(2, "another number of columns"), (3, ' "d"'), *said]
    assert rows(tmp_path / "a.csv", content, quoting="minimal") == by_the_book


def test_lines_that_end_with_cr_alone_are_refused(tmp_path: Path) -> None:
    for keys in ({}, {"quoting": "none"}, {"names": ["id", "text"]}):
        with pytest.raises(DataError, match=r"a.csv: lines that end with CR alone"):
            rows(tmp_path / "a.csv", "id,text\r1,one\r", **keys)
