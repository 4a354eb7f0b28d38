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
