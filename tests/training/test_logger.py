"""Test a run's record of itself: python -m pytest tests/training/test_logger.py."""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from lm.evaluation.validation import Evaluation
from lm.runs import metrics
from lm.system.errors import CheckpointError
from lm.system.progress import Progress
from lm.training import logger
from lm.training.logger import RunLogger, StepWork, Stopwatch

WORK = StepWork(tokens=1000, epochs=0.25, flops=6e9)


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    result = Clock()
    monkeypatch.setattr(logger, "time", result)
    return result


def opened(
    folder: Path,
    step: int = 0,
    seconds: float = 0.0,
    peak_flops: float = 1e12,
    tensorboard: bool = True,
) -> RunLogger:
    progress = Progress(100, step)
    return RunLogger(
        folder, step, seconds, WORK, peak_flops, "cpu", progress, tensorboard, validated=True
    )


def logged(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Return the points of a curve as TensorBoard shows them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def train(book: RunLogger, clock: Clock, first: int, last: int, loss: float = 3.0) -> None:
    """Log steps of two seconds each."""
    for step in range(first, last + 1):
        book.stopwatch.go()
        clock.now += 2
        book.stopwatch.pause()
        book.log_metrics({"loss": loss + step / 100, "lr": 1e-3, "grad_norm": 0.5}, step)


def test_rows_of_training(tmp_path: Path, clock: Clock) -> None:
    book = opened(tmp_path)
    train(book, clock, 1, 2)
    first, second = metrics.read(tmp_path / "metrics.csv")
    # the first pace includes warming up
    assert (first["tokens_per_second"], first["mfu"]) == (None, None)
    assert second.pop("timestamp").endswith("+00:00")
    assert 50 < second.pop("peak_memory_mb") < 100_000
    assert second == {
        "step": 2,
        "epoch": 0.5,
        "split": "train",
        "loss": 3.02,
        "tokens": 2000,
        "perplexity": None,
        "bits_per_byte": None,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 500.0,
        "mfu": pytest.approx(6e9 / 2 / 1e12),
        "seconds": 4.0,
    }


def test_rows_of_validation(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    book = opened(tmp_path)
    book.log_validation(0, Evaluation(loss=math.log(5), bits_per_byte=1.25, tokens=12_345), None)
    [row] = metrics.read(tmp_path / "metrics.csv")
    assert (row["step"], row["split"], row["seconds"], row["lr"], row["mfu"]) == (
        0,
        "val",
        0.0,
        None,
        None,
    )
    assert row["loss"] == pytest.approx(math.log(5), abs=1e-6)
    assert (row["perplexity"], row["bits_per_byte"]) == (pytest.approx(5), 1.25)
    assert (
        capsys.readouterr().out
        == "step 0: validation loss 1.6094, perplexity 5.00, 1.2500 bits per byte (12,345 tokens)\n"
    )


def test_a_validation_of_nothing_is_written_down_as_nan(tmp_path: Path, clock: Clock) -> None:
    book = opened(tmp_path)
    book.log_validation(3, Evaluation(math.nan, math.nan, 0), None)
    [row] = metrics.read(tmp_path / "metrics.csv")
    assert math.isnan(row["loss"])
    assert math.isnan(row["perplexity"])


def test_a_validation_of_preferences_has_no_perplexity(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    book = opened(tmp_path, tensorboard=False)
    book.log_validation(3, Evaluation(0.5, math.nan, 12, per_token=False), None)
    [row] = metrics.read(tmp_path / "metrics.csv")
    assert (row["loss"], row["perplexity"]) == (0.5, None)
    assert capsys.readouterr().out == "step 3: validation loss 0.5000 (12 scored)\n"


def test_an_unknown_peak_leaves_mfu_empty(tmp_path: Path, clock: Clock) -> None:
    book = opened(tmp_path, peak_flops=0.0)
    train(book, clock, 1, 2)
    assert [row["mfu"] for row in metrics.read(tmp_path / "metrics.csv")] == [None, None]


def test_tensorboard_has_the_same_figures_at_once(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are there without finalize(), however slow the writing thread is. A killed run
    therefore has them all.
    """
    write = RecordWriter.write

    def slow_write(writer: RecordWriter, event: bytes) -> None:
        time.sleep(0.02)
        write(writer, event)

    monkeypatch.setattr(RecordWriter, "write", slow_write)
    book = opened(tmp_path)
    train(book, clock, 1, 3)
    assert logged(tmp_path, "loss/train") == [
        (1, pytest.approx(3.01)),
        (2, pytest.approx(3.02)),
        (3, pytest.approx(3.03)),
    ]
    assert logged(tmp_path, "lr/train") == [(step, pytest.approx(1e-3)) for step in (1, 2, 3)]
    assert logged(tmp_path, "tokens_per_second/train") == [(2, 500.0), (3, 500.0)]
    book.log_validation(3, Evaluation(2.0, 1.0, 10), "once\nupon")
    assert logged(tmp_path, "loss/val") == [(3, 2.0)]
    assert logged(tmp_path, "perplexity/val") == [(3, pytest.approx(math.exp(2)))]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    [sample] = events.Tensors("sample/text_summary")
    assert (sample.step, sample.tensor_proto.string_val[0]) == (3, b"once\nupon")


def test_without_tensorboard_there_is_no_file_of_it(tmp_path: Path, clock: Clock) -> None:
    book = opened(tmp_path, tensorboard=False)
    train(book, clock, 1, 1)
    book.log_validation(1, Evaluation(2.0, 1.0, 10), "text")
    book.finalize("success")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_takes_later_rows_out(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run reached step 8, and its last checkpoint is of step 5. Rows 6 to 8 are written
    again, and rows 1 to 5 stay.
    """
    first = opened(tmp_path)
    first.log_validation(0, Evaluation(4.0, 2.0, 10), None)
    train(first, clock, 1, 5)
    first.log_validation(5, Evaluation(3.0, 1.5, 10), None)
    train(first, clock, 6, 8)
    history = (tmp_path / "metrics.csv").read_text().splitlines()[:8]
    capsys.readouterr()

    second = opened(tmp_path, step=5, seconds=10.0)
    assert (
        capsys.readouterr().out
        == "metrics.csv: lines taken out that come after step 5 or are damaged: 3\n"
    )
    assert (tmp_path / "metrics.csv").read_text().splitlines() == history
    train(second, clock, 6, 7, loss=1.0)
    second.finalize("success")
    rows = metrics.read(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["step"] for row in rows if row["split"] == "val"] == [0, 5]
    assert [row["loss"] for row in rows[-2:]] == [1.06, 1.07]
    assert [row["seconds"] for row in rows[-2:]] == [12.0, 14.0]
    # again the first pace includes warming up
    assert [row["tokens_per_second"] for row in rows[-2:]] == [None, 500.0]
    expected = [3.01, 3.02, 3.03, 3.04, 3.05, 1.06, 1.07]
    assert logged(tmp_path, "loss/train") == [
        (step, pytest.approx(loss)) for step, loss in enumerate(expected, start=1)
    ]
    assert [step for step, _ in logged(tmp_path, "loss/val")] == [0, 5]


def test_resumed_twice_in_a_row(tmp_path: Path, clock: Clock) -> None:
    named: set[Path] = set()
    for resumed_at, last, loss in [(0, 4, 3.0), (2, 5, 2.0), (3, 6, 1.0)]:
        book = opened(tmp_path, step=resumed_at)
        train(book, clock, resumed_at + 1, last, loss)
        book.finalize("success")
        # Readers order the files by name, which holds the second in which a session began.
        [events] = set(tmp_path.glob("events.*")) - named
        named.add(events.rename(tmp_path / f"events.out.tfevents.{len(named)}"))
    expected = [3.01, 3.02, 2.03, 1.04, 1.05, 1.06]
    assert [row["loss"] for row in metrics.read(tmp_path / "metrics.csv")] == expected
    assert logged(tmp_path, "loss/train") == [
        (step, pytest.approx(loss)) for step, loss in enumerate(expected, start=1)
    ]


def test_nothing_is_said_where_nothing_was_taken_out(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    train(opened(tmp_path), clock, 1, 3)
    opened(tmp_path, step=3)
    assert capsys.readouterr().out == ""


def test_a_fresh_run_does_not_write_into_an_earlier_one(tmp_path: Path, clock: Clock) -> None:
    train(opened(tmp_path), clock, 1, 1)
    with pytest.raises(CheckpointError, match="belongs to an earlier run"):
        opened(tmp_path)


SAMPLES = [
    ("Attention  is\n\tall", "Attention is all"),
    ("\x1b[31mred\x07\x00", "\N{REPLACEMENT CHARACTER}[31mred" + "\N{REPLACEMENT CHARACTER}" * 2),
    ("x" * 160, "x" * 160),
    ("x" * 161, "x" * 159 + "…"),
    ("", ""),
    ("größer 注意", "größer 注意"),
]


@pytest.mark.parametrize(("sample", "shown"), SAMPLES)
def test_a_sample_is_shown_on_one_line_that_harms_no_terminal(
    sample: str, shown: str, tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(tmp_path).log_validation(1, Evaluation(1.0, 1.0, 10), sample)
    assert capsys.readouterr().out.splitlines()[1:] == [f'  it writes: "{shown}"']


def test_the_newest_figures_are_shown(tmp_path: Path, clock: Clock) -> None:
    shown: list[tuple[Any, ...]] = []
    book = opened(tmp_path)
    book._progress.show = lambda *figures: shown.append(figures)  # type: ignore[method-assign]
    train(book, clock, 1, 2)
    assert shown == [(3.01, 1e-3, None), (3.02, 1e-3, 500.0)]


# TensorBoard's thread raises the error too
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_one_plain_error(tmp_path: Path, clock: Clock) -> None:
    """Event files may grow to 4 KB and no further, so the sample does not fit."""
    book = opened(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            CheckpointError, match="TensorBoard's files cannot be written: File too large"
        ):
            book.log_validation(1, Evaluation(1.0, 1.0, 10), "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_is_none_is_one_plain_error(tmp_path: Path, clock: Clock) -> None:
    book = opened(tmp_path, tensorboard=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="TensorBoard's files cannot be written"):
        logger._event_writer(tmp_path / "file", 0)
    book.finalize("success")


def test_the_stopwatch_leaves_pauses_out(clock: Clock) -> None:
    watch = Stopwatch(100.0)
    clock.now += 7  # not started yet
    watch.go()
    clock.now += 3
    watch.pause()
    clock.now += 60  # a validation
    watch.pause()
    watch.go()
    clock.now += 2
    watch.pause()
    assert watch.seconds == 105.0


def test_steps_per_second(clock: Clock) -> None:
    watch = Stopwatch(0.0)
    watch.go()
    clock.now += 30  # the first steps compile
    watch.pause()
    assert watch.steps_per_second(10) is None
    clock.now += 1000  # a validation
    watch.go()
    clock.now += 5
    watch.pause()
    assert watch.steps_per_second(20) == 2.0
    assert watch.steps_per_second(20) is None  # no time has passed: no division by zero
