"""Find text files, decompress them, and read their lines or paragraphs as bytes of UTF-8.

Several processes can share one file, because reading can start in the middle. A span is a pair of
byte positions: its first byte and the byte after its last. Each line and each paragraph belongs to
exactly one of the spans of a file, wherever the cuts are.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import functools
import glob
import gzip
import io
import itertools
import lzma
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from lm.documents.globs import expand
from lm.documents.tfrecord import is_tfrecord
from lm.system.errors import DataError

SPAN_BYTES = 2**22
# The first bytes of packed files; "BZh" alone may begin a word.
PACKED = {
    rb"\x1f\x8b": "gzip",
    rb"\x28\xb5\x2f\xfd": "zstd",
    rb"\xfd7zXZ": "xz",
    rb"BZh[1-9](1AY&SY|\x17rE8)": "bzip2",
}
_ARCHIVE = "unpack it first, or pack it with gzip"
_EXTRACT = "extract its text"
_NAME_TEXT = "name a file of text"
# What is no text, by its first bytes, also inside a packing; each with what to do.
REFUSED = {
    rb"PK\x03\x04": ("a zip archive", _ARCHIVE + ", and extract the text of a docx, xlsx or epub"),
    rb"PK\x05\x06": ("an empty zip archive", _ARCHIVE),
    rb"7z\xbc\xaf\x27\x1c": ("a 7z archive", _ARCHIVE),
    rb"Rar!\x1a\x07": ("a rar archive", _ARCHIVE),
    rb"[^\0].{256}ustar[\0 ]": ("a tar archive", "unpack it, and name the files in it"),
    rb"\x04\x22\x4d\x18": ("packed by lz4", _ARCHIVE),
    rb"%PDF-": ("a PDF", _EXTRACT),
    rb"\{\\rtf": ("an RTF document", _EXTRACT),
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an old Office document", _EXTRACT),
    rb"SQLite format 3\0": ("an SQLite database", "export its rows, such as to CSV"),
    rb"\x7fELF": ("a program", _NAME_TEXT),
    rb"\x89PNG\r\n\x1a\n": ("a PNG image", _NAME_TEXT),
    rb"\xff\xd8\xff[\xc0-\xfe]": ("a JPEG image", _NAME_TEXT),
}
HEAD = 512  # bytes that tell what a file is
BUFFER = 2**16  # bytes; the default is often 4,096, and each filling is a system call

Span = tuple[int, int]
_Kind = TypeVar("_Kind")


@contextlib.contextmanager
def opened(file: str, encoding: str | None = None) -> Iterator[IO[bytes]]:
    """Open a file as bytes of UTF-8, decompressed and converted from its encoding.

    A byte that the encoding does not have stays as it is, so its row is not UTF-8.

    Raises:
        DataError: it is no text, such as an archive, or the packed file is cut or damaged; or
            zstandard, which unpacks zstd, is not installed.
    """
    with Path(file).open("rb", BUFFER) as stream:
        head = stream.read(HEAD)
        stream.seek(0)
        packing = _kind(head, PACKED)
        try:
            plain = _unpacked(stream, packing, file)
            if packing is not None:
                head = plain.read(HEAD)
                rest = iter(functools.partial(plain.read, 2**16), b"")
                plain = _as_file(itertools.chain([head] if head else [], rest))
            if fault := refusal(head, encoding, packing):
                raise DataError(f"{file}: {fault}")
            yield plain if encoding is None else _as_file(_converted(plain, encoding))
        except UnicodeError as error:
            if encoding is None:
                raise
            raise DataError(f"{file}: not {encoding} ({error}); write its encoding") from error
        except Exception as error:
            # zstandard's error has no base class that could be named without importing it.
            damaged = isinstance(error, EOFError | zlib.error | gzip.BadGzipFile | lzma.LZMAError)
            without_number = isinstance(error, OSError) and error.errno is None
            if packing is None or not (
                damaged or without_number or type(error).__name__ == "ZstdError"
            ):
                raise
            raise DataError(
                f"{file}: the {packing} file is cut or damaged; fetch it again ({error})"
            ) from error


def refusal(head: bytes, encoding: str | None, packing: str | None = None) -> str | None:
    """Return why a file is no text, by the first bytes of its content, and what to do."""
    if found := _kind(head, REFUSED):
        inside = f" inside {packing}" if packing else ""
        return f"{found[0]}{inside}, not text; {found[1]}"
    if is_tfrecord(head):
        return (
            "a TFRecord file, not text; write its records as JSON lines, as"
            " tf.data.TFRecordDataset reads them"
        )
    if packing is not None and (again := _kind(head, PACKED)):
        return f"packed twice, by {packing} and {again}; unpack it once"
    if encoding is None and b"\0" in head:
        if likely := wide_encoding(head):
            return f"NUL bytes, as in {likely}; write encoding: {likely} if it is text"
        return "NUL bytes, not text; name a file of text, or remove them (tr -d '\\000')"
    return None


def wide_encoding(start: bytes) -> str | None:
    """Return which encoding of two or four bytes a text's first bytes look like, if any."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = start[::2].count(b"\0"), start[1::2].count(b"\0")
    if even + odd > len(start) / 5 and min(even, odd) * 20 <= even + odd:
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def _kind(head: bytes, kinds: dict[bytes, _Kind]) -> _Kind | None:
    return next(
        (kind for magic, kind in kinds.items() if re.match(magic, head, re.DOTALL)),
        None,
    )


def _unpacked(stream: IO[bytes], packing: str | None, file: str) -> IO[bytes]:
    if packing == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if packing == "bzip2":
        return bz2.BZ2File(stream)
    if packing == "xz":
        return lzma.LZMAFile(stream)
    if packing == "zstd":
        try:
            import zstandard
        except ImportError:
            raise DataError(
                f"{file}: packed by zstd; {sys.executable} -m pip install zstandard, or unpack it"
            ) from None
        return _as_file(_unpacked_zstd(stream, zstandard))
    return stream


def _converted(stream: IO[bytes], encoding: str) -> Iterator[bytes]:
    """Yield the bytes of a text in another encoding, as UTF-8."""
    chunks = iter(functools.partial(stream.read, 2**16), b"")
    for text in codecs.iterdecode(chunks, encoding, "surrogateescape"):
        yield text.encode("utf-8", "surrogateescape")


def _unpacked_zstd(stream: IO[bytes], zstandard: Any) -> Iterator[bytes]:
    """Yield the bytes of a file that zstd packed. Its own reader takes a cut file for a whole."""
    frame = None
    # A few bytes can hold very many: small chunks keep the result small.
    for chunk in iter(functools.partial(stream.read, 2**12), b""):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("its end is missing")


class _Chunks(io.RawIOBase):
    """A file of the bytes that an iterator makes."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if (chunk := next(self._chunks, None)) is None:
                return 0
            self._rest = chunk
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _as_file(chunks: Iterator[bytes]) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(_Chunks(chunks), 2**16))


def is_read_from_start(file: str, encoding: str | None) -> bool:
    """Return whether bytes of the file are no bytes of its text: it is packed, or not UTF-8."""
    with Path(file).open("rb") as stream:
        return encoding is not None or _kind(stream.read(HEAD), PACKED) is not None


def byte_spans(file: str) -> list[Span]:
    """Cut a file into spans of SPAN_BYTES."""
    size = Path(file).stat().st_size
    return [(start, min(start + SPAN_BYTES, size)) for start in range(0, size, SPAN_BYTES)]


def read_all(file: str, encoding: str | None = None) -> bytes:
    """Read a file without its byte order mark."""
    with opened(file, encoding) as stream:
        return stream.read().removeprefix(codecs.BOM_UTF8)


def lines_before(file: str, span: Span) -> int:
    """Return how many lines come before the first that `lines` yields for a span."""
    if span[0] == 0:
        return 0
    left, count = span[0] - 1, 1  # one line holds byte start - 1
    with Path(file).open("rb") as stream:
        while chunk := stream.read(min(left, 2**20)):
            count += chunk.count(b"\n")
            left -= len(chunk)
    return count


def lines(file: str, span: Span | None, encoding: str | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a span with their numbers from 1, with line ends, without byte order mark.

    Only \\n ends a line; str.splitlines would split at ten more characters.
    """
    for number, (position, line) in enumerate(_lines_from(file, span, encoding), 1):
        if span is not None and position >= span[1]:
            return
        yield number, line


def paragraphs(
    file: str, span: Span | None, encoding: str | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield the runs of lines that are not blank, each with the number of its first line.

    The end of the last line is removed. A paragraph belongs to the span in which the last blank
    line before it begins; the first paragraph belongs to the first span.
    """
    start, end = span or (0, None)
    in_span = start == 0  # whether the current paragraph belongs to this span
    first, parts = 0, list[bytes]()
    for number, (position, line) in enumerate(_lines_from(file, span, encoding), 1):
        blank = not line or line.isspace()
        if blank and parts:
            yield first, b"".join(parts).rstrip(b"\r\n")
            parts = []
        if end is not None and position >= end and (blank or not in_span):
            return
        if blank:
            in_span = True
        elif in_span:
            first = first if parts else number
            parts.append(line)
    if parts:
        yield first, b"".join(parts).rstrip(b"\r\n")


def _lines_from(file: str, span: Span | None, encoding: str | None) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that begin at or after a span's start, each with its byte position."""
    with opened(file, encoding) as stream:
        position = 0
        if span is not None and span[0] > 0:
            # The line that holds byte start - 1 began before the span. Its end is searched in the
            # span only, because it may be far away.
            position = stream.seek(span[0] - 1)
            part = stream.readline(span[1] - position)
            if not part.endswith(b"\n"):
                return
            position += len(part)
        elif first := stream.readline():
            require_line_feeds(file, first)
            yield 0, first.removeprefix(codecs.BOM_UTF8)
            position = len(first)
        for line in stream:
            yield position, line
            position += len(line)


def require_line_feeds(file: str, first_line: bytes) -> None:
    """Raise DataError if a file's first line is all of it, with lines that end with CR inside."""
    if not first_line.endswith(b"\n") and re.search(rb"\r[^\r]", first_line):
        raise DataError(
            f"{file}: lines that end with CR alone, as on old Macs; convert them to LF, as"
            " tr '\\r' '\\n' < FILE > NEW does"
        )


def find_files(patterns: list[str], key: str) -> list[str]:
    """Return the files that paths and globs name, with repetitions kept.

    Raises:
        DataError: a pattern matches no file; the message names `key`.
    """
    matched = []
    for pattern in patterns:
        path = Path(pattern)
        with reading(pattern, key):
            # An existing file may have a bracket in its name.
            names = [str(path)] if path.exists() else _glob(path)
            files = [name for name in names if Path(name).is_file()]
        if path.is_dir():
            raise DataError(
                f"{key}: {pattern} is a folder; name its files, such as {path / '*.txt'}"
            )
        if not files:
            fault = (
                "is not an ordinary file"
                if path.exists()
                else "matches no file"
                if set("*?[") & set(pattern)
                else "does not exist"
            )
            raise DataError(f"{key}: {pattern} {fault}; relative paths start in {Path.cwd()}")
        matched += files
    return matched


def _glob(path: Path) -> list[str]:
    # A folder that exists is itself, though its name may look like a pattern.
    folder = next(parent for parent in path.parents if parent.is_dir())
    return expand(str(Path(glob.escape(str(folder))) / path.relative_to(folder)))


@contextlib.contextmanager
def reading(file: str, key: str) -> Iterator[None]:
    """Turn an OSError into a DataError that names the file and the key."""
    try:
        yield
    except OSError as error:
        name = error.filename or file
        raise DataError(f"{key}: {name} cannot be read ({error.strerror or error})") from error
