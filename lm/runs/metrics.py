"""metrics.csv: the run's own record, one row for every logged step and every validation.

Lightning's CSVLogger deletes the old file when a run is started again in the same folder. This log
only ever appends, one write for each row, so that a killed run leaves at most one cut line.
Resuming takes away the rows that the resumed run is going to write again; nothing else ever does.
Where the run goes back behind saved or validated steps, `RunFolder.rewind` has put a copy of them
aside.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lm.system.disk import refusals, replace
from lm.system.errors import CheckpointError

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


class MetricsLog:
    """The writer, held by one process of a run.

    Args:
        path: the file; its folder exists.
        resume_step: None for a fresh run, which starts the file. The step that a resumed run
            continues from: rows after it are taken away, history up to it stays as it is, byte for
            byte.
        validated: the validation of `resume_step` is on record. If not, the resumed run does it
            again, and a row of it is taken away.

    Attributes:
        dropped: the lines that resuming took away: rows after `resume_step`, damaged ones, and a
            last line that was cut.

    Raises:
        CheckpointError: the file cannot be read or written, holds other columns, or (fresh run)
            already holds a run.
    """

    def __init__(self, path: Path, resume_step: int | None, validated: bool = True):
        self.path = path
        self.dropped = 0
        text = _text(path) if path.exists() else ""
        start = HEADER + "\n"
        if start.startswith(text):  # absent, empty, or cut while the header was written
            if text != start:
                replace(self.path, start)
            return
        lines = _lines(path, text)
        if resume_step is None:
            raise CheckpointError(
                f"{path} belongs to an earlier run; resume that run, or move its folder away"
            )
        kept = [line for line in lines if _is_history(line, resume_step, validated)]
        self.dropped = len(lines) - len(kept) + (not text.endswith("\n"))
        if self.dropped:
            replace(self.path, "\n".join([HEADER, *kept]) + "\n")

    def append(self, step: int, split: Literal["train", "val"], **values: float | None) -> None:
        """Add one row; it has left this process when this returns.

        Args:
            step: optimiser steps done.
            split: which text was measured.
            values: other columns by name; what is left out or None stays empty. The time stamp is
                added here.
        """
        assert values.keys() <= set(COLUMNS), (
            f"not columns of metrics.csv: {values.keys() - set(COLUMNS)}"
        )
        timestamp = datetime.now(UTC).isoformat(timespec="seconds")
        row: dict[str, Any] = {**values, "step": step, "split": split, "timestamp": timestamp}
        line = ",".join(_cell(name, row.get(name)) for name in COLUMNS) + "\n"
        with refusals(self.path), self.path.open("ab") as file:
            file.write(line.encode())


def read(path: Path) -> list[dict[str, Any]]:
    """The rows, oldest first: column name -> int, float or str, None where the cell is empty. A
    last line that was cut is left out.

    Raises:
        CheckpointError: the file cannot be read, holds other columns, or a line within it is
            damaged.
    """
    rows, damaged = read_whole_lines(path)
    for number, line in damaged.items():
        raise CheckpointError(f"{path}:{number}: this line is damaged: {line[:80]!r}; remove it")
    return rows


def read_whole_lines(path: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """As `read`, but damaged lines come back beside the rows, by their numbers. Raises
    CheckpointError for a file that cannot be read.
    """
    rows, damaged = [], {}
    for number, line in enumerate(_lines(path, _text(path)), start=2):
        try:
            rows.append(_row(line))
        except ValueError:
            damaged[number] = line
    return rows, damaged


def after(path: Path, step: int) -> str:
    """The rows that come after `step`, under the header, as the text of a file; nothing if there
    are none. Raises CheckpointError.
    """
    lines = []
    for line in _lines(path, _text(path)) if path.exists() else []:
        with contextlib.suppress(ValueError):  # a damaged line
            if _row(line)["step"] > step:
                lines.append(line)
    return "\n".join([HEADER, *lines, ""]) if lines else ""


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _lines(path: Path, text: str) -> list[str]:
    """The whole lines behind the header, which is checked."""
    # behind the last line end stands nothing, or a line that was cut
    header, *lines = text.split("\n")[:-1] or [text]
    if header != HEADER:
        raise CheckpointError(
            f"{path}:1: these are not the columns of a metrics.csv: {header[:80]!r}; they should be"
            f" {HEADER}"
        )
    return lines


def _row(line: str) -> dict[str, Any]:
    return {name: _value(name, cell) for name, cell in zip(COLUMNS, line.split(","), strict=True)}


def _is_history(line: str, resume_step: int, validated: bool) -> bool:
    """False too for a line that a power cut damaged: it must not keep the run from going on."""
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
    if name == "step":
        return int(cell)  # never empty: without its step a row means nothing
    if not cell:
        return None
    return int(cell) if name in INTEGER_COLUMNS else float(cell)
