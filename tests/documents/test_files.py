"""Each line and paragraph of a file is read exactly once, for any content and any spans."""

import bz2
import gzip
import io
import itertools
import lzma
import re
import sys
import tarfile
import zipfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm.documents import files as text_files
from lm.documents.files import (
    byte_spans,
    find_files,
    is_read_from_start,
    lines,
    lines_before,
    opened,
    paragraphs,
)
from lm.system.errors import DataError

BOM = b"\xef\xbb\xbf"


def slow_lines(content):
    """Return the numbers and bytes of all lines by the definition: a line ends after each \\n."""
    *ended, last = content.split(b"\n")
    found = [line + b"\n" for line in ended] + [last] * bool(last)
    return [
        (number, line.removeprefix(BOM) if number == 1 else line)
        for number, line in enumerate(found, 1)
    ]


def slow_paragraphs(content):
    """Return the runs of lines that are not blank."""
    found = []
    for blank, run in itertools.groupby(slow_lines(content), lambda line: not line[1].strip()):
        if not blank:
            numbers, parts = zip(*run, strict=True)
            found.append((numbers[0], b"".join(parts).rstrip(b"\r\n")))
    return found


def spans_of(size, cuts):
    return list(itertools.pairwise([0, *sorted(cuts), size]))


PIECES = [
    b"\n",
    b"\n",
    b"\n\n",
    b"\r\n",
    b"\r",
    b"a",
    b"bc",
    b" ",
    b"\t",
    b"\x01",
    b"\xff",
    BOM,
    "\u2028ü".encode(),
    b"x" * 9,
]
files = (
    st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join) | st.binary(max_size=60)
).filter(
    lambda content: (
        not any(re.match(magic, content) for magic in text_files.PACKED)
        and text_files.refusal(content, None) is None
        and (b"\n" in content or b"\r" not in content)  # else it is refused
    )
)


@pytest.mark.usefixtures("takes_seconds")
@given(content=files, cuts=st.data())
@settings(max_examples=400, deadline=None)
def test_any_spans_together_are_the_whole(tmp_path_factory, content, cuts):
    file = tmp_path_factory.mktemp("spans") / "a.txt"
    file.write_bytes(content)
    spans = spans_of(
        len(content),
        (
            cuts.draw(st.sets(st.integers(1, max(1, len(content) - 1)), max_size=8))
            if len(content) > 1
            else []
        ),
    )
    for read, expected in (lines, slow_lines(content)), (paragraphs, slow_paragraphs(content)):
        assert list(read(str(file), None)) == expected
        found = []
        for span in spans:
            found += [
                (lines_before(str(file), span) + number, raw)
                for number, raw in read(str(file), span)
            ]
        assert found == expected


@given(content=files, size=st.integers(1, 10))
@example(content=b"", size=3)
@settings(max_examples=60, deadline=None)
def test_a_file_is_cut_into_equal_spans(tmp_path_factory, content, size):
    file = tmp_path_factory.mktemp("cut") / "a.txt"
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "SPAN_BYTES", size)
        spans = byte_spans(str(file))
    assert spans == [
        (start, min(start + size, len(content))) for start in range(0, len(content), size)
    ]
    assert b"".join(
        line for span in spans for _, line in lines(str(file), span)
    ) == content.removeprefix(BOM)


@pytest.mark.parametrize("end", ["", "\r"])
def test_lines_that_end_with_cr_alone_are_refused_by_name(tmp_path, end):
    """They would be one line, or one document with all of the text."""
    file = tmp_path / "mac.txt"
    file.write_bytes(f"one\rtwo\r\rthree{end}".encode())
    for read in (lines, paragraphs):
        with pytest.raises(DataError, match=r"mac.txt: lines that end with CR alone.* tr '\\r'"):
            list(read(str(file), None))
    file.write_bytes(b"one\rtwo\nthree\r")
    assert [line for _, line in lines(str(file), None)] == [b"one\rtwo\n", b"three\r"]
    file.write_bytes(b"one\r\r")
    assert [line for _, line in lines(str(file), None)] == [b"one\r\r"]


class Counted(io.BufferedReader):
    """A file that counts the bytes read from it."""

    taken = 0

    def readline(self, *arguments):
        part = super().readline(*arguments)
        Counted.taken += len(part)
        return part

    __next__ = readline

    def __iter__(self):
        return iter(self.readline, b"")


@pytest.mark.parametrize("read", [lines, paragraphs])
@pytest.mark.parametrize(
    "content",
    [b"x" * 300_000, b"a\n" + b"x" * 300_000 + b"\nb\n", b"a\n\n" + b"x" * 300_000 + b"\n\nb"],
)
def test_a_line_longer_than_many_spans_is_not_read_once_for_each(
    tmp_path, monkeypatch, read, content
):
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    monkeypatch.setattr(text_files, "SPAN_BYTES", 1000)
    monkeypatch.setattr(Counted, "taken", 0)
    whole = list(read(str(file), None))
    open_file = type(file).open
    monkeypatch.setattr(
        type(file), "open", lambda self, mode, *_: Counted(open_file(self, mode, buffering=0), 512)
    )
    found = [raw for span in byte_spans(str(file)) for _, raw in read(str(file), span)]
    assert found == [raw for _, raw in whole]
    # Its own span reads it, the span before looks ahead, and all spans inside search for its end.
    assert len(content) <= Counted.taken <= 3 * len(content) + 1000


def test_a_paragraph_longer_than_many_spans_is_not_read_once_for_each(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_bytes(b"a line of a paragraph\n" * 10_000)
    monkeypatch.setattr(text_files, "SPAN_BYTES", 1000)
    monkeypatch.setattr(Counted, "taken", 0)
    open_file = type(file).open
    monkeypatch.setattr(
        type(file), "open", lambda self, mode, *_: Counted(open_file(self, mode, buffering=0), 512)
    )
    assert (
        len([raw for span in byte_spans(str(file)) for _, raw in paragraphs(str(file), span)]) == 1
    )
    assert Counted.taken < 3 * 220_000


# --- compressed files


def test_gzip_is_known_by_its_content(tmp_path):
    for name in ("a.txt.gz", "a.txt", "a"):
        (tmp_path / name).write_bytes(gzip.compress(BOM + b"one\n") + gzip.compress(b"two\n"))
        assert list(lines(str(tmp_path / name), None)) == [
            (1, b"one\n"),
            (2, b"two\n"),
        ], "two members are one file"
    (tmp_path / "plain.gz").write_bytes(b"one\n")
    assert list(lines(str(tmp_path / "plain.gz"), None)) == [(1, b"one\n")]


TEXT = b"".join(b"line %d of some text\n" % i for i in range(5000))
PACKED = gzip.compress(TEXT)
DAMAGED = {
    "header only": PACKED[:4],
    "cut": PACKED[: len(PACKED) // 2],
    "cut in the check sum": PACKED[:-3],
    "flipped": PACKED[:100] + bytes([PACKED[100] ^ 255]) + PACKED[101:],
    "another check sum": PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:],
    "followed by something": PACKED + b"something else",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_gzip_file_is_refused_by_name(tmp_path, damage):
    file = tmp_path / "a.txt.gz"
    file.write_bytes(DAMAGED[damage])
    with pytest.raises(DataError) as error:
        list(lines(str(file), None))
    assert str(error.value).startswith(f"{file}: the gzip file is cut or damaged; fetch it again (")


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_bzip2_and_xz_are_read_like_gzip(tmp_path, pack):
    file = tmp_path / "a.txt"
    file.write_bytes(pack(TEXT))
    assert list(lines(str(file), None)) == slow_lines(TEXT)
    assert is_read_from_start(str(file), None)
    for damaged in (pack(TEXT)[:-20], pack(TEXT)[:60] + b"x" * 40):
        file.write_bytes(damaged)
        with pytest.raises(DataError) as error:
            list(lines(str(file), None))
        assert "file is cut or damaged; fetch it again (" in str(error.value)


def test_zstd_is_read_with_its_library(tmp_path, monkeypatch):
    file = tmp_path / "a.txt.zst"
    frame = b"(\xb5/\xfd$\x05)\x00\x00one\ntwo\xd1\xc0\xc9"
    file.write_bytes(frame)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"-m pip install zstandard, or unpack it"):
        list(lines(str(file), None))


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-32", "shift_jis"])
def test_another_encoding_is_converted(tmp_path, encoding):
    text = "".join(
        f"Zeile {i}: {'äß' if encoding != 'shift_jis' else 'かな'}\n" for i in range(9000)
    )
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode(encoding))
    assert b"".join(line for _, line in lines(str(file), None, encoding)).decode() == text
    assert is_read_from_start(str(file), encoding)


def test_what_an_encoding_does_not_have(tmp_path):
    """One byte is a bad row; a file cut in the middle of a character is refused."""
    file = tmp_path / "a.txt"
    file.write_bytes(b"gr\x81n\nfine\n")
    assert list(lines(str(file), None, "cp1252")) == [(1, b"gr\x81n\n"), (2, b"fine\n")]
    file.write_bytes("fine".encode("utf-16-le")[:-1])
    with pytest.raises(DataError, match="not utf-16-le"):
        list(lines(str(file), None, "utf-16-le"))


def test_a_folder_with_brackets_in_its_name(tmp_path):
    folder = tmp_path / "my [data] (1)"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt"):
        (folder / name).touch()
    assert find_files([f"{folder}/*.txt"], "key") == [f"{folder}/a.txt"]
    assert find_files([f"{folder}/**/[b].txt"], "key") == [f"{folder}/deep/b.txt"]


def zipped():
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").writestr("a.txt", TEXT)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(9), "a 7z archive"),
    ],
)
def test_other_archives_are_refused_by_name(tmp_path, content, name):
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(DataError) as error, opened(str(file)):
        pass
    assert str(error.value) == f"{file}: {name}, not text; unpack it first, or pack it with gzip"


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT))
    return buffer.getvalue()


NO_TEXT = {
    "zip or docx": (zipped(), "a zip archive{}, not text; unpack it first, or pack it with gzip,"),
    "tar": (tarred(), "a tar archive{}, not text; unpack it"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40", "packed by lz4{}, not text; unpack it"),
    "PDF": (b"%PDF-1.4\n", "a PDF{}, not text; extract its text"),
    "RTF": (rb"{\rtf1 a}", "an RTF document{}, not text; extract its text"),
    "OLE": (bytes.fromhex("d0cf11e0a1b11ae1"), "an old Office document{}, not text; extract"),
    "SQLite": (b"SQLite format 3\0" + bytes(80), "an SQLite database{}, not text; export its"),
    "ELF": (b"\x7fELF\x02\x01", "a program{}, not text; name a file of text"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "a PNG image{}, not text; name a file of text"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image{}, not text; name a file of text"),
}


@pytest.mark.parametrize("pack", [None, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("encoding", [None, "cp1252"])
@pytest.mark.parametrize(("content", "message"), NO_TEXT.values(), ids=NO_TEXT)
def test_what_is_no_text_is_refused_also_inside_a_packing(
    tmp_path, content, message, encoding, pack
):
    file = tmp_path / "a.txt"
    file.write_bytes(pack(content) if pack else content)
    with pytest.raises(DataError) as error:
        list(lines(str(file), None, encoding))
    names = {gzip.compress: "gzip", bz2.compress: "bzip2", lzma.compress: "xz"}
    inside = f" inside {names[pack]}" if pack else ""
    assert str(error.value).startswith(f"{file}: {message.format(inside)}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # a header with the time would give the test another name in each process of xdist
        (
            gzip.compress(gzip.compress(TEXT, mtime=0), mtime=0),
            "packed twice, by gzip and gzip; unpack it once",
        ),
        (b"some\0text\n", "NUL bytes, not text; name a file of text, or remove them (tr -d"),
        (gzip.compress(b"some\0text\n", mtime=0), "NUL bytes, not text"),
        ("text\n".encode("utf-16"), "NUL bytes, as in utf-16; write encoding: utf-16 if"),
        ("text\n".encode("utf-16-be"), "NUL bytes, as in utf-16-be; write encoding: utf-16-be if"),
    ],
)
def test_two_packings_and_nul_bytes_are_refused(tmp_path, content, message):
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(lines(str(file), None))
    assert str(error.value).startswith(f"{file}: {message}")


def test_a_word_that_begins_like_an_archive_is_a_word(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"BZh is no bzip2, PK no zip\n")
    assert list(lines(str(tmp_path / "a.txt"), None)) == [(1, b"BZh is no bzip2, PK no zip\n")]


def test_zstd(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    file = tmp_path / "a.txt"
    frames = zstandard.compress(TEXT) + zstandard.compress(b"more\n")
    file.write_bytes(frames)
    assert list(lines(str(file), None)) == slow_lines(TEXT + b"more\n")
    for damaged in (frames[:-30], frames[:-3], frames + b"something else"):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="the zstd file is cut or damaged"):
            list(lines(str(file), None))
