"""metrics.csv: the run's own record, one row for every logged step and every validation.

Lightning's CSVLogger deletes the old file when a run is started again in the same folder. This log
only appends, one write for each row, so a killed run leaves at most one cut line. Only resuming
removes rows, namely those that the resumed run is going to write again. If the run goes back before
saved or validated steps, `RunFolder.rewind` has copied their rows.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lm.runs.lines import MOST_BYTES as MOST_READ
from lm.runs.lines import MOST_LINES, Line, read_lines
from lm.system.disk import open_to_append, read_start, refusals, replace
from lm.system.errors import CheckpointError
from lm.system.json_values import LARGEST

COLUMNS = (
    "step",
    "epoch",
    "split",
    "loss",
    "timestamp",
    "tokens",
    "perplexity",
    "bits_per_byte",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "mfu",
    "peak_memory_mb",
    "seconds",
)
TEXT_COLUMNS = ("split", "timestamp")
INTEGER_COLUMNS = ("step", "tokens")
HEADER = ",".join(COLUMNS)
MOST_BYTES = 2**32  # and lines, of a file that a run resumes or rewinds: 28 million rows
COUNT = re.compile(r"[0-9]{1,16}")
NUMBER = re.compile(r"-?([0-9]{1,400}(\.[0-9]{0,400})?(e[-+]?[0-9]{1,4})?|inf|nan)", re.IGNORECASE)


class MetricsLog:
    """The writer, held by one process of a run.

    Args:
        path: the file; its folder exists.
        resume_step: the step that a resumed run continues from; None for a fresh run, which starts
            the file. Rows after this step are removed; the rows before it stay byte for byte.
        validated: the validation of `resume_step` is recorded. If not, the resumed run repeats it,
            and its row is removed.

    Attributes:
        dropped: how many lines resuming removed: rows after `resume_step`, damaged ones, and a last
            line that was cut.

    Raises:
        CheckpointError: the file cannot be read or written, holds other columns, or (fresh run)
            already holds a run.
    """

    def __init__(self, path: Path, resume_step: int | None, validated: bool = True):
        self.path = path
        self.dropped = 0
        every = list(_all_lines(path, MOST_BYTES, MOST_BYTES))
        first, *lines = every or [Line(1, b"", ended=False)]
        # absent, empty, or cut while the header was written
        if not lines and not first.ended and HEADER.encode().startswith(first.content):
            replace(self.path, HEADER + "\n")
            return
        _check_header(path, first)
        if not lines:
            return
        if resume_step is None:
            raise CheckpointError(
                f"{path} belongs to an earlier run; resume that run, or move its folder away"
            )
        kept = [line.text for line in lines if _is_history(line, resume_step, validated)]
        self.dropped = len(lines) - len(kept)
        if self.dropped:
            replace(self.path, "\n".join([HEADER, *filter(None, kept)]) + "\n")

    def append(self, step: int, split: Literal["train", "val"], **values: float | None) -> None:
        """Add one row; it has left this process when this returns.

        Args:
            step: optimiser steps done.
            split: which text was measured.
            values: other columns by name; a missing one or None stays empty. The time stamp is
                added here.
        """
        assert values.keys() <= set(COLUMNS), (
            f"not columns of metrics.csv: {values.keys() - set(COLUMNS)}"
        )
        timestamp = datetime.now(UTC).isoformat(timespec="seconds")
        row: dict[str, Any] = {**values, "step": step, "split": split, "timestamp": timestamp}
        line = ",".join(_cell(name, row.get(name)) for name in COLUMNS) + "\n"
        with refusals(self.path), open_to_append(self.path) as file:
            file.write(line.encode())


def is_metrics(path: Path) -> bool:
    """Return whether a file is a run's metrics.csv. Raises OSError."""
    return path.is_file() and read_start(path, len(HEADER)).startswith(f"{HEADER}\n".encode())


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows, oldest first: column name -> int, float or str; None for an empty cell.

    A last line that was cut is skipped.

    Raises:
        CheckpointError: the file cannot be read, holds other columns, or a line within it is
            damaged.
    """
    rows, damaged = read_whole_lines(path)
    for number, line in damaged.items():
        raise CheckpointError(f"{path}:{number}: this line is damaged: {line!r}; remove it")
    return rows


def read_whole_lines(path: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Return the rows as `read` does, and the damaged lines by their numbers.

    Raises:
        CheckpointError: the file cannot be read, or holds other columns.
    """
    rows, damaged = [], {}
    for line in _whole_lines(path, MOST_READ, MOST_LINES):
        try:
            rows.append(_row(line))
        except ValueError:
            damaged[line.number] = line.content[:80].decode(errors="replace")
    return rows, damaged


def after(path: Path, step: int) -> str:
    """Return the rows after `step` with the header, as the text of a file; empty without rows.

    Raises:
        CheckpointError: the file cannot be read, or holds other columns.
    """
    lines = []
    for line in _whole_lines(path, MOST_BYTES, MOST_BYTES) if path.exists() else []:
        with contextlib.suppress(ValueError):  # a damaged line
            if _row(line)["step"] > step:
                lines.append(line.content.decode())
    return "\n".join([HEADER, *lines, ""]) if lines else ""


def _all_lines(path: Path, most_bytes: int, most_lines: int) -> Iterator[Line]:
    """Yield the lines of a file; none if it does not exist. Raises CheckpointError."""
    try:
        yield from read_lines(path, most_bytes, most_lines)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _whole_lines(path: Path, most_bytes: int, most_lines: int) -> Iterator[Line]:
    """Yield the lines after the header, which is checked, without a last one that was cut.

    Raises:
        CheckpointError: the file cannot be read, or holds other columns.
    """
    if not path.exists():
        raise CheckpointError(f"{path} cannot be read: {os.strerror(errno.ENOENT)}")
    lines = _all_lines(path, most_bytes, most_lines)
    _check_header(path, next(lines, Line(1, b"", ended=False)))
    yield from (line for line in lines if line.ended)


def _check_header(path: Path, line: Line) -> None:
    if line.text != HEADER:
        header = line.content[:80].decode(errors="replace")
        raise CheckpointError(
            f"{path}:1: these are not the columns of a metrics.csv: {header!r}; they should be"
            f" {HEADER}"
        )


def _row(line: Line) -> dict[str, Any]:
    """Return the cells of a line by their columns. Raises ValueError for a damaged line."""
    if line.text is None or not line.ended:
        raise ValueError("not text, or cut")
    cells = line.text.split(",")
    return {name: _value(name, cell) for name, cell in zip(COLUMNS, cells, strict=True)}


def _is_history(line: Line, resume_step: int, validated: bool) -> bool:
    """Return whether a resumed run keeps a line. It drops damaged ones, so that it can continue."""
    try:
        row = _row(line)
    except ValueError:
        return False
    return bool(
        row["step"] < resume_step
        or (row["step"] == resume_step and (validated or row["split"] != "val"))
    )


def _cell(name: str, value: Any) -> str:
    if value is None or name in TEXT_COLUMNS:
        return value or ""
    if name in INTEGER_COLUMNS:
        return str(int(value))
    return f"{value:.6f}" if name == "loss" else f"{value:.8g}"


def _value(name: str, cell: str) -> Any:
    if name in TEXT_COLUMNS:
        return cell
    if not cell and name != "step":  # without its step a row means nothing
        return None
    if not (COUNT if name in INTEGER_COLUMNS else NUMBER).fullmatch(cell):
        raise ValueError("not a number as this file writes it")
    if name not in INTEGER_COLUMNS:
        return float(cell)
    if int(cell) > LARGEST:
        raise ValueError("no count is so large")
    return int(cell)
