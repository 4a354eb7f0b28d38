"""metrics.csv keeps its history: python -m pytest tests/runs/test_metrics.py."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from lm.runs import metrics
from lm.runs.metrics import HEADER, MetricsLog
from lm.system.errors import CheckpointError


def filled(path: Path, steps: int = 5) -> MetricsLog:
    log = MetricsLog(path, resume_step=None)
    for step in range(1, steps + 1):
        log.append(step, "train", loss=1 / step, tokens=step * 100, lr=3e-4)
    return log


def test_fresh_run_writes_the_header_and_one_line_for_each_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsLog(path, resume_step=None).append(
        7,
        "val",
        epoch=0.5,
        loss=1.23456789,
        tokens=1_536_000,
        perplexity=3.4368908,
        bits_per_byte=1.7811,
        seconds=1_234_567.8,
    )
    header, line, rest = path.read_text().split("\n")
    assert (
        header == "step,epoch,split,loss,timestamp,tokens,perplexity,bits_per_byte,lr,grad_norm,"
        "tokens_per_second,mfu,peak_memory_mb,seconds"
    )
    assert re.fullmatch(
        r"7,0\.5,val,1\.234568,\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00,1536000,3\.4368908,1\.7811,,,,,,1234567\.8",
        line,
    )
    assert rest == ""


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, resume_step=None)
    log.append(0, "val", loss=math.nan, tokens=0, perplexity=math.inf)
    log.append(10, "train", loss=2.5, lr=0.1 + 0.2, grad_norm=0.0)
    first, second = metrics.read(path)
    assert first["step"] == 0 and first["tokens"] == 0 and first["split"] == "val"
    assert math.isnan(first["loss"]) and first["perplexity"] == math.inf and first["lr"] is None
    assert (
        second["loss"] == 2.5
        and second["lr"] == 0.3
        and second["grad_norm"] == 0.0
        and second["tokens"] is None
    )
    assert type(second["step"]) is int and list(second) == list(metrics.COLUMNS)


def test_a_row_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = filled(path, steps=2)  # the log stays open
    assert [row["step"] for row in metrics.read(path)] == [1, 2]
    log.append(3, "train", loss=0.1)
    assert [row["step"] for row in metrics.read(path)] == [1, 2, 3]


def test_rows_go_to_the_end_of_a_file_that_grew_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = filled(path, steps=1)
    MetricsLog(path, resume_step=1).append(2, "val", loss=1.0)
    log.append(2, "train", loss=1.0)
    assert [(row["step"], row["split"]) for row in metrics.read(path)] == [
        (1, "train"),
        (2, "val"),
        (2, "train"),
    ]


def test_resume_keeps_history_and_drops_what_comes_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    filled(path)
    history = path.read_text().splitlines(keepends=True)
    log = MetricsLog(path, resume_step=3)
    assert log.dropped == 2
    assert path.read_text() == "".join(history[:4])  # byte for byte
    log.append(4, "train", loss=0.5)
    assert [row["step"] for row in metrics.read(path)] == [1, 2, 3, 4]
    assert not list(tmp_path.glob(".*"))


def test_a_validation_that_is_done_again_is_taken_out(tmp_path: Path) -> None:
    """The row is removed if a kill came before its line in evaluations.jsonl."""
    path = tmp_path / "metrics.csv"
    log = filled(path, steps=2)
    log.append(2, "val", loss=0.5)
    whole = path.read_text()
    assert (
        MetricsLog(path, resume_step=2, validated=True).dropped == 0 and path.read_text() == whole
    )
    assert MetricsLog(path, resume_step=2, validated=False).dropped == 1
    assert [(row["step"], row["split"]) for row in metrics.read(path)] == [
        (1, "train"),
        (2, "train"),
    ]


def test_the_rows_after_a_step_can_be_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert metrics.after(path, 0) == ""
    filled(path)
    lines = path.read_text().splitlines(keepends=True)
    assert metrics.after(path, 5) == ""
    assert metrics.after(path, 3) == lines[0] + lines[4] + lines[5]
    path.write_text("".join([*lines[:5], "four\n", lines[5], "5,0.1,tr"]))
    assert metrics.after(path, 3) == lines[0] + lines[4] + lines[5], "what is damaged is no row"


def test_a_long_file_that_can_be_resumed_can_be_rewound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "metrics.csv")
    monkeypatch.setattr(metrics, "MOST_LINES", 3)
    assert metrics.after(tmp_path / "metrics.csv", 4).count("\n") == 2
    with pytest.raises(CheckpointError, match="more than 3 lines"):
        metrics.read(tmp_path / "metrics.csv")


@pytest.mark.parametrize("resume_step", [5, 9])
def test_resume_with_nothing_to_drop_does_not_touch_the_file(
    tmp_path: Path, resume_step: int
) -> None:
    path = tmp_path / "metrics.csv"
    filled(path)
    before = path.stat()
    assert MetricsLog(path, resume_step).dropped == 0
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_every_cut_of_the_last_line_is_tolerated_by_read_and_mended_by_resume(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.csv"
    filled(path, steps=3)
    whole = path.read_bytes()
    third = whole.rindex(b"\n", 0, -1) + 1
    for end in range(third + 1, len(whole)):
        path.write_bytes(whole[:end])
        assert [row["step"] for row in metrics.read(path)] == [1, 2]
        log = MetricsLog(path, resume_step=3)
        assert log.dropped == 1 and path.read_bytes() == whole[:third]
        log.append(3, "train", loss=0.25)
        assert [row["step"] for row in metrics.read(path)] == [1, 2, 3]


def test_a_header_that_was_cut_starts_the_file_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for cut in ("", HEADER[:9], HEADER, HEADER + "\n"):
        for resume_step in (None, 4):
            path.write_text(cut)
            assert MetricsLog(path, resume_step).dropped == 0
            assert path.read_text() == HEADER + "\n"
    before = path.stat()
    MetricsLog(path, resume_step=4)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    path.unlink()
    MetricsLog(path, resume_step=4)  # the file was lost, the checkpoint was not
    assert path.read_text() == HEADER + "\n"


def test_fresh_run_never_takes_another_runs_history(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    filled(path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"metrics\.csv belongs to an earlier run"):
        MetricsLog(path, resume_step=None)
    assert path.read_bytes() == before


@pytest.mark.parametrize("resume_step", [None, 3])
@pytest.mark.parametrize("text", ["step,train_loss\n1,2.0\n", "step,train_loss"])
def test_other_columns_are_refused_and_left_alone(
    tmp_path: Path, resume_step: int | None, text: str
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    for act in (lambda: MetricsLog(path, resume_step), lambda: metrics.read(path)):
        with pytest.raises(
            CheckpointError, match=r"metrics\.csv:1: these are not the columns.*'step,train_loss'"
        ):
            act()
    assert path.read_text() == text


@pytest.mark.parametrize(
    "damage", ["\0" * 40, "2,,train,1.0", "two" + "," * 13, "," * 13, "2,,train,low" + "," * 10]
)
def test_a_damaged_line_is_named_by_read_and_counted_by_resume(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.csv"
    filled(path, steps=3)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], damage, *lines[3:]]) + "\n")
    with pytest.raises(CheckpointError, match=r"metrics\.csv:3: this line is damaged"):
        metrics.read(path)
    assert MetricsLog(path, resume_step=3).dropped == 1
    assert [row["step"] for row in metrics.read(path)] == [1, 3]


def test_bytes_that_are_not_text_are_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(CheckpointError, match=r"metrics\.csv:1"):
        metrics.read(path)


def test_a_disk_that_refuses_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read: No such file"):
        metrics.read(tmp_path / "metrics.csv")
    with pytest.raises(CheckpointError, match=r"cannot be read: Is a directory"):
        metrics.read(tmp_path)
    with pytest.raises(CheckpointError, match="could not be written"):
        MetricsLog(tmp_path / "absent" / "metrics.csv", resume_step=None)
    log = filled(tmp_path / "metrics.csv")
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(CheckpointError, match="could not be written"):
        log.append(6, "train", loss=1.0)


def test_a_full_disk_while_resuming_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.csv"
    filled(path)
    before = path.read_bytes()

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(
        CheckpointError,
        match=r"No space left on device; .* free\); what was saved before is untouched",
    ):
        MetricsLog(path, resume_step=2)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_unknown_column_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="learning_rate"):
        MetricsLog(tmp_path / "metrics.csv", resume_step=None).append(1, "train", learning_rate=0.1)
