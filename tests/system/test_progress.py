"""Test the progress of a run: bars and lines."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from lm.system import progress
from lm.system.progress import Progress, ReadingProgress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    result = Clock()
    monkeypatch.setattr(progress, "time", result)
    return result


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace stderr by a terminal. This is not a fixture: pytest installs its own stderr between
    set-up and test.
    """
    result = Terminal()
    monkeypatch.setattr(sys, "stderr", result)
    return result


def test_without_a_terminal_plain_lines_come_every_ten_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Progress(max_steps=1000, step=0)
    for step in range(1, 26):
        clock.now += 1
        display.show(5.0 - step / 10, 3e-4, 12_345.6)
        display.advance(step)
    display.close()
    output = capsys.readouterr()
    assert output.err == ""
    assert (
        output.out == "step 10/1,000  loss 4.0000  lr 3.00e-04  12,346 tok/s  16 min 30 s left\n"
        "step 20/1,000  loss 3.0000  lr 3.00e-04  12,346 tok/s  16 min 20 s left\n"
    )


def test_a_line_is_due_before_the_first_figures_are_there(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Progress(max_steps=3, step=0)
    for step in (1, 2):
        clock.now += 60
        display.advance(step)
    assert capsys.readouterr().out == "step 1/3\nstep 2/3  1 min left\n"


def test_the_last_step_is_always_shown(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    display = Progress(max_steps=2, step=0)
    display.advance(1)
    display.show(1.5, 1e-3, None)
    display.advance(2)
    assert capsys.readouterr().out == "step 2/2  loss 1.5000  lr 1.00e-03\n"


def test_time_left_counts_from_the_first_step_and_not_from_before_it(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Progress(max_steps=101, step=0)
    clock.now += 500  # loading, compiling, the validation at step 0
    display.advance(1)
    clock.now += 400  # 10 steps, with a validation among them
    display.advance(11)
    assert capsys.readouterr().out.splitlines()[-1].endswith("1 h left")


def test_a_resumed_run_counts_only_its_own_steps(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Progress(max_steps=5000, step=4000)
    for step in (4001, 4002, 4003):
        clock.now += 30
        display.advance(step)
    assert capsys.readouterr().out.splitlines()[-1] == "step 4,003/5,000  8 h 18 min left"


@pytest.mark.parametrize(("max_steps", "step"), [(1, 1), (5, 5), (5, 1)])
def test_no_division_by_zero(
    max_steps: int, step: int, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run has a single step, one is resumed at its end, and one has a stopped clock."""
    display = Progress(max_steps, step - 1)
    clock.now += progress.LINE_SECONDS
    display.advance(step)
    display.advance(step)
    clock.now += progress.LINE_SECONDS
    display.advance(max_steps)
    assert capsys.readouterr().out.splitlines()[-1] == f"step {max_steps}/{max_steps}"


def test_a_nan_is_shown_as_one(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    display = Progress(1, 0)
    display.show(float("nan"), 0.0, None)
    display.advance(1)
    assert capsys.readouterr().out == "step 1/1  loss nan  lr 0.00e+00\n"


def test_silent_when_disabled(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = on_terminal(monkeypatch)
    display = Progress(2, 0, enabled=False)
    display.say("anything")
    display.show(1.0, 1e-3, 5.0)
    display.advance(1)
    clock.now += 100
    display.advance(2)
    display.close()
    assert capsys.readouterr().out == terminal.getvalue() == ""


def test_on_a_terminal_a_bar_with_the_same_figures(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = on_terminal(monkeypatch)
    display = Progress(max_steps=40, step=10)
    display.advance(11)
    for step in range(12, 40):
        clock.now += 2
        display.show(2.5, 1e-3, 1000.0)
        display.advance(step)
    display.close()
    frames = terminal.getvalue().replace("\n", "").split("\r")
    shown = [frame for frame in frames if frame.strip()]
    assert "10/40" in shown[0]  # where the run was resumed
    assert " 25%|" in shown[0]
    assert shown[-1].rstrip().endswith("| 39/40, loss 2.5000  lr 1.00e-03  1,000 tok/s  2 s left")
    assert capsys.readouterr().out == ""  # no plain lines next to the bar


def test_lines_do_not_tear_the_bar(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = on_terminal(monkeypatch)
    display = Progress(max_steps=40, step=0)
    display.advance(1)
    before = len(terminal.getvalue())
    display.say("step 1: validation loss 2.5000")
    assert capsys.readouterr().out == "step 1: validation loss 2.5000\n"
    # The bar was erased before the line was printed ...
    assert terminal.getvalue()[before:].startswith("\r ")
    assert "1/40" in terminal.getvalue()[before:]  # ... and drawn again after it
    display.close()
    display.say("done")
    assert capsys.readouterr().out == "done\n"


# --- reading text


def test_reading_prints_lines_where_there_is_no_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(30_000_000))
    with ReadingProgress("tokenising", [str(tmp_path / "a.txt")], 5_000_000) as display:
        for _ in range(5):
            clock.now += 4
            display.advance(2_000_000)
    with ReadingProgress("measuring", ["someone/stories"], 0) as display:
        clock.now += 10
        display.advance(5_000_000)
    output = capsys.readouterr()
    assert output.out == "tokenising: 11 MB of 30 MB, 500 kB/s\nmeasuring: 5 MB, 500 kB/s\n"
    assert output.err == ""


def test_reading_is_a_bar_on_a_terminal_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = on_terminal(monkeypatch)
    with ReadingProgress("tokenising", [], 0) as display:
        display.advance(5_000_000)
    assert "tokenising: " in terminal.getvalue()
    assert terminal.getvalue().endswith("\r"), "nothing of it is left on the screen"
    assert capsys.readouterr().out == ""


def test_a_run_by_the_clock_shows_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    display = Progress(max_steps=2**40, step=0, seconds_left=lambda: 90)
    display.advance(1)
    display.advance(2, last=True)
    assert capsys.readouterr().out == "step 2  1 min 30 s left\n"
