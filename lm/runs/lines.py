"""The lines of a run's records, read in bounded memory: evaluations.jsonl, incidents.jsonl,
metrics.csv.

A record may have been cut by a kill, edited, or replaced by something else. A pipe or a device is
refused, because it may block or never end. A line that is too long or is not UTF-8 is damaged.

Beside our errors, the module imports only the standard library.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lm.system.errors import CheckpointError
from lm.system.regular import open_regular

MOST_BYTES = 2**30
MOST_LINES = 2_000_000
MOST_OF_A_LINE = 2**22  # bytes; a sample of a model may be long
MOST_NAMED = 5

Record = TypeVar("Record")


@dataclass(frozen=True)
class Line:
    """A line of a record.

    Attributes:
        number: counted from 1.
        content: the line without its end; only the beginning of one that is too long.
        ended: whether it has a line end. The last line may have been cut.
    """

    number: int
    content: bytes
    ended: bool

    @property
    def text(self) -> str | None:
        """The line as text; None if it is too long or not UTF-8."""
        if len(self.content) > MOST_OF_A_LINE:
            return None
        try:
            return self.content.decode()
        except UnicodeDecodeError:
            return None

    @property
    def values(self) -> dict[str, Any] | None:
        """The JSON object of the line; None if it holds anything else, or gives a key twice."""
        try:
            value = json.loads(self.text or "", object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


def read_records(
    path: Path, parse: Callable[[dict[str, Any] | None], Record | None]
) -> tuple[list[Record], list[int]]:
    """Return what a file of JSON lines records, and the numbers of its damaged lines.

    Without the file both are empty.

    Args:
        path: the file.
        parse: makes a record of a line's values; it returns None for a damaged line.

    Raises:
        CheckpointError: the file cannot be read.
    """
    records, damaged = [], []
    try:
        for line in read_lines(path):
            record = parse(line.values)
            if record is not None:
                records.append(record)
            elif line.content:
                damaged.append(line.number)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return records, damaged


def read_lines(
    path: Path, most_bytes: int = MOST_BYTES, most_lines: int = MOST_LINES
) -> Iterator[Line]:
    """Yield the lines of a regular file.

    Raises:
        OSError: the file cannot be read, is too large, or is not a regular file.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most_bytes:
            raise OSError(errno.EFBIG, f"larger than {most_bytes / 2**20:,.0f} MiB", str(path))
        for number in itertools.count(1):
            content = rest = file.readline(MOST_OF_A_LINE + 2)
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(2**20)
            if not content:
                return
            if number > most_lines:
                raise OSError(errno.EFBIG, f"more than {most_lines:,} lines", str(path))
            yield Line(number, content.removesuffix(b"\n"), ended=rest.endswith(b"\n"))


def left_out(file: Path, numbers: Sequence[int]) -> list[str]:
    """Return the message about the damaged lines of a record: none, or one."""
    if not numbers:
        return []
    named = ", ".join(map(str, numbers[:MOST_NAMED]))
    more = len(numbers) - MOST_NAMED
    return [f"{file.name}: damaged and left out: line {named}" + f" and {more:,} more" * (more > 0)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is given twice")
    return values
