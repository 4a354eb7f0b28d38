"""Text files as bytes: found, unpacked, and as lines or paragraphs, also from the middle so that
several processes can share one file.

A span is a pair of bytes' numbers: its first, and the one behind its last. Each line, and each
paragraph, lies in exactly one of the spans that a file is cut into, wherever the cuts are.
"""

from __future__ import annotations

import codecs
import contextlib
import glob
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from lm.system.errors import DataError

SPAN_BYTES = 2**22
GZIP = b"\x1f\x8b"
PACKED = {
    rb"PK\x03\x04": "a zip archive",
    rb"PK\x05\x06": "an empty zip archive",
    rb"\x28\xb5\x2f\xfd": "packed by zstd",
    rb"\xfd7zXZ": "packed by xz",
    rb"BZh[1-9](1AY&SY|\x17rE8)": "packed by bzip2",  # "BZh" alone may be the beginning of a word
}

Span = tuple[int, int]


@contextlib.contextmanager
def opened(file: str) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked where gzip packed it. DataError for other archives, and for one that
    is cut or damaged.
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
    """Whether gzip packed it, whatever its name."""
    with Path(file).open("rb") as stream:
        return stream.read(len(GZIP)) == GZIP


def byte_spans(file: str) -> list[Span]:
    """Equal parts of a file."""
    size = Path(file).stat().st_size
    return [(start, min(start + SPAN_BYTES, size)) for start in range(0, size, SPAN_BYTES)]


def whole(file: str) -> bytes:
    """All of a file, without a byte order mark."""
    with opened(file) as stream:
        return stream.read().removeprefix(codecs.BOM_UTF8)


def lines_before(file: str, span: Span) -> int:
    """How many lines of a file come before the first that `lines` counts in a span."""
    if span[0] == 0:
        return 0
    left, count = span[0] - 1, 1  # the line that byte start - 1 belongs to, or ends
    with Path(file).open("rb") as stream:
        while chunk := stream.read(min(left, 2**20)):
            count += chunk.count(b"\n")
            left -= len(chunk)
    return count


def lines(file: str, span: Span | None) -> Iterator[tuple[int, bytes]]:
    """Lines with their ends, counted from 1, without a byte order mark. Only \\n ends a line:
    str.splitlines knows ten more ends.
    """
    for number, (position, line) in enumerate(_lines_from(file, span), 1):
        if span is not None and position >= span[1]:
            return
        yield number, line


def paragraphs(file: str, span: Span | None) -> Iterator[tuple[int, bytes]]:
    """Runs of lines that are not blank, without the last line's end, each with the number of its
    first line.

    A paragraph lies in the span in which the last blank line before it begins; the first paragraph
    in the first span.
    """
    start, end = span or (0, None)
    ours = start == 0
    first, parts = 0, list[bytes]()
    for number, (position, line) in enumerate(_lines_from(file, span), 1):
        blank = not line.strip()
        if blank and parts:
            yield first, b"".join(parts).rstrip(b"\r\n")
            parts = []
        if end is not None and position >= end and (blank or not ours):
            return
        if blank:
            ours = True
        elif ours:
            first = first if parts else number
            parts.append(line)
    if parts:
        yield first, b"".join(parts).rstrip(b"\r\n")


def _lines_from(file: str, span: Span | None) -> Iterator[tuple[int, bytes]]:
    """The lines that begin at or behind a span's start, each with the place in the file where it
    begins.
    """
    with opened(file) as stream:
        position = 0
        if span is not None and span[0] > 0:
            # The line that covers byte start - 1 began before the span. Its end is looked for in
            # the span only: it may be far away.
            position = stream.seek(span[0] - 1)
            part = stream.readline(span[1] - position)
            if not part.endswith(b"\n"):
                return
            position += len(part)
        for line in stream:
            yield position, line.removeprefix(codecs.BOM_UTF8) if position == 0 else line
            position += len(line)


def find_files(patterns: list[str], key: str) -> list[str]:
    """The files that paths and globs name, `~` expanded, as often as they are named. DataError
    (blaming `key`) where there is none.
    """
    found = []
    for pattern in patterns:
        path = Path(os.path.expanduser(pattern))  # noqa: PTH111 - Path.expanduser fails where ~name is nobody
        with reading(pattern, key):
            # A name with a bracket in it is first of all a name.
            names = [str(path)] if path.exists() else glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob: relative only
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
        found += files
    return found


@contextlib.contextmanager
def reading(file: str, key: str) -> Iterator[None]:
    """Whatever the operating system refuses in here is a DataError that names the file and the key."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{key}: {file} cannot be read ({error.strerror or error})") from error
