"""Test that a run's records are read in bounded memory, whatever has become of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.runs import lines, metrics
from lm.runs.incidents import read_incidents
from lm.runs.results import read_validations
from lm.system.errors import CheckpointError

VALIDATION = b'{"step": 1, "loss": 2.5, "manifest_sha256": "a"}'
INCIDENT = b'{"step": 1, "kind": "spike", "message": "a"}'
DAMAGED = [
    b'{"step": 1',
    b"[1]",
    b"null",
    b"\x00",
    b'{"step": 1, "loss": 1, "kind": "a", "message": "\xff"}',  # not UTF-8
    b'{"step": 1, "step": 2, "loss": 1, "kind": "a", "message": "b"}',
    b'{"step": "1", "loss": 1, "kind": "a", "message": "b"}',
    b'{"step": true, "loss": 1, "kind": "a", "message": "b"}',
    b'{"step": -1, "loss": 1, "kind": "a", "message": "b"}',
    b'{"step": ' + b"9" * 5000 + b', "loss": 1, "kind": "a", "message": "b"}',
    b'{"step": 1, "loss": "1", "kind": 1, "message": "b"}',
    b'{"step": 1, "kind": "a", "message": []}',
    b"[" * 100_000,
    b'{"step": 1, "loss": 1, "kind": "a", "message": "' + b"x" * 10_000_000 + b'"}',
]
READERS: dict[str, tuple[Callable[[Path], tuple[list[object], list[int]]], bytes]] = {
    "evaluations.jsonl": (read_validations, VALIDATION),  # type: ignore[dict-item]
    "incidents.jsonl": (read_incidents, INCIDENT),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_lines_are_counted_and_the_others_read(name: str, tmp_path: Path) -> None:
    read, good = READERS[name]
    (tmp_path / name).write_bytes(b"\n".join([good, *DAMAGED, good]))
    values, damaged = read(tmp_path)
    assert (len(values), damaged) == (2, list(range(2, len(DAMAGED) + 2)))
    assert lines.left_out(tmp_path / name, damaged) == [
        f"{name}: damaged and left out: line 2, 3, 4, 5, 6 and {len(DAMAGED) - 5} more"
    ]


ROW = "1,0.5,train,2.500000,2026-01-01T00:00:00+00:00,64,,,0.001,1.5,10,,,2.5"
DAMAGED_ROWS = [
    "",
    "1,2",
    ROW + ",",
    ROW.replace("1,", "", 1),
    ROW.replace("64", "6_4"),
    ROW.replace("64", "\u0666\u0664"),
    ROW.replace("64", "9" * 5000),
    ROW.replace("64", str(2**53 + 1)),
    ROW.replace("0.001", " 0.001"),
    ROW.replace("0.001", "1_0"),
    ROW.replace("0.001", "0\0"),
    "-" + ROW,
    "x" * 10_000_000,
]


def test_damaged_rows_are_counted_and_the_others_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    content = "\n".join([metrics.HEADER, ROW, *DAMAGED_ROWS, ROW, "1,0.5,tr"])
    file.write_bytes(content.encode() + b"\xff")
    rows, damaged = metrics.read_whole_lines(file)
    assert (len(rows), list(damaged)) == (2, list(range(3, len(DAMAGED_ROWS) + 3)))
    log = metrics.MetricsLog(file, resume_step=1)
    assert log.dropped == len(DAMAGED_ROWS) + 1
    assert file.read_text() == "\n".join([metrics.HEADER, ROW, ROW, ""])


@pytest.fixture(params=["a pipe", "a folder", "a device", "a large file"])
def unreadable(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a run's folder whose records are no files, or are too large."""
    for name in (*READERS, "metrics.csv"):
        path = tmp_path / name
        if request.param == "a pipe":
            os.mkfifo(path)
        elif request.param == "a folder":
            path.mkdir()
        elif request.param == "a device":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(metrics.MOST_BYTES + 1)  # takes no room on the disk
    return tmp_path


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_record_is_refused_at_once(name: str, unreadable: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: "):
        READERS[name][0](unreadable)


def test_what_is_no_log_is_refused_at_once(unreadable: Path) -> None:
    file = unreadable / "metrics.csv"
    for read in (metrics.read, lambda path: metrics.MetricsLog(path, resume_step=1)):
        with pytest.raises(CheckpointError, match=r"metrics\.csv cannot be read: "):
            read(file)


def test_a_file_of_too_many_lines_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.jsonl"
    file.write_bytes(b"\n" * 4)
    assert [line.number for line in lines.read_lines(file, most_lines=4)] == [1, 2, 3, 4]
    with pytest.raises(OSError, match="more than 3 lines"):
        list(lines.read_lines(file, most_lines=3))
