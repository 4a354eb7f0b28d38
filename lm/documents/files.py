"""Find text files, decompress them, and read their lines or paragraphs as bytes.

Several processes can share one file, because reading can start in the middle. A span is a pair of
byte positions: its first byte and the byte after its last. Each line and each paragraph belongs to
exactly one of the spans of a file, wherever the cuts are.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from lm.documents.globs import expand
from lm.system.errors import DataError

SPAN_BYTES = 2**22
GZIP = b"\x1f\x8b"
PACKED = {
    rb"PK\x03\x04": "a zip archive",
    rb"PK\x05\x06": "an empty zip archive",
    rb"\x28\xb5\x2f\xfd": "packed by zstd",
    rb"\xfd7zXZ": "packed by xz",
    rb"BZh[1-9](1AY&SY|\x17rE8)": "packed by bzip2",  # "BZh" alone may begin a word
}

Span = tuple[int, int]


@contextlib.contextmanager
def opened(file: str) -> Iterator[IO[bytes]]:
    """Open a file's bytes, decompressed if it is gzip.

    Raises:
        DataError: it is another kind of archive, or the gzip file is cut or damaged.
    """
    with Path(file).open("rb") as stream:
        head = stream.read(10)
        stream.seek(0)
        if packed := next((name for magic, name in PACKED.items() if re.match(magic, head)), None):
            raise DataError(f"{file}: {packed}, not text; unpack it first, or pack it with gzip")
        try:
            yield (
                cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if head.startswith(GZIP) else stream
            )
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{file}: the gzip file is cut or damaged; fetch it again ({error})"
            ) from error


def is_gzip(file: str) -> bool:
    """Return whether the content is gzip, whatever the file's name."""
    with Path(file).open("rb") as stream:
        return stream.read(len(GZIP)) == GZIP


def byte_spans(file: str) -> list[Span]:
    """Cut a file into spans of SPAN_BYTES."""
    size = Path(file).stat().st_size
    return [(start, min(start + SPAN_BYTES, size)) for start in range(0, size, SPAN_BYTES)]


def read_all(file: str) -> bytes:
    """Read a file without its byte order mark."""
    with opened(file) as stream:
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


def lines(file: str, span: Span | None) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a span with their numbers from 1, with line ends, without byte order mark.

    Only \\n ends a line; str.splitlines would split at ten more characters.
    """
    for number, (position, line) in enumerate(_lines_from(file, span), 1):
        if span is not None and position >= span[1]:
            return
        yield number, line


def paragraphs(file: str, span: Span | None) -> Iterator[tuple[int, bytes]]:
    """Yield the runs of lines that are not blank, each with the number of its first line.

    The end of the last line is removed. A paragraph belongs to the span in which the last blank
    line before it begins; the first paragraph belongs to the first span.
    """
    start, end = span or (0, None)
    in_span = start == 0  # whether the current paragraph belongs to this span
    first, parts = 0, list[bytes]()
    for number, (position, line) in enumerate(_lines_from(file, span), 1):
        blank = not line.strip()
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


def _lines_from(file: str, span: Span | None) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that begin at or after a span's start, each with its byte position."""
    with opened(file) as stream:
        position = 0
        if span is not None and span[0] > 0:
            # The line that holds byte start - 1 began before the span. Its end is searched in the
            # span only, because it may be far away.
            position = stream.seek(span[0] - 1)
            part = stream.readline(span[1] - position)
            if not part.endswith(b"\n"):
                return
            position += len(part)
        for line in stream:
            yield position, line.removeprefix(codecs.BOM_UTF8) if position == 0 else line
            position += len(line)


def find_files(patterns: list[str], key: str) -> list[str]:
    """Return the files that paths and globs name, with `~` expanded and repetitions kept.

    Raises:
        DataError: a pattern matches no file; the message names `key`.
    """
    matched = []
    for pattern in patterns:
        # Path.expanduser raises for an unknown ~user.
        path = Path(os.path.expanduser(pattern))  # noqa: PTH111
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
    return expand(str(path))


@contextlib.contextmanager
def reading(file: str, key: str) -> Iterator[None]:
    """Turn an OSError into a DataError that names the file and the key."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{key}: {file} cannot be read ({error.strerror or error})") from error
