"""Test what a run says about how to go on, at each way to end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lm.commands import load_config
from lm.system.errors import CheckpointError, NonFiniteError, Stopped, UserError
from lm.system.progress import Progress
from lm.training.launch import Run
from tests.support.runs import config_file

GO_ON = "go on with: python train.py --config c.yaml --resume auto"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a run that has saved step 3."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "c.yaml"])
    config = config_file(tmp_path, trainer={"max_minutes": 2.5})
    result = Run(load_config(config), None, None)
    result.progress = Progress(12, 3)
    result.saved = 3
    return result


@pytest.mark.parametrize(
    ("error", "notes"),
    [
        (CheckpointError("the disk is full"), [f"then {GO_ON}"]),
        (UserError("out of memory on device 0"), [f"then {GO_ON}"]),
        (MemoryError(), [f"then {GO_ON}"]),
        (RuntimeError("Connection closed by peer"), [f"then {GO_ON}"]),
        (NonFiniteError("the same step would come again"), []),
        (Stopped("its message says it", 15), []),
    ],
)
def test_an_error_of_a_run_says_how_to_go_on(
    run: Run, error: BaseException, notes: list[str]
) -> None:
    run.__exit__(type(error), error, None)
    assert getattr(error, "__notes__", []) == notes


def test_an_error_before_the_first_step_does_not(run: Run) -> None:
    run.saved = -1
    error = CheckpointError("damaged")
    run.__exit__(CheckpointError, error, None)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("validated", [False, True])
def test_a_run_at_its_time_limit_names_its_last_checkpoint(
    run: Run, validated: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if validated:
        (run.path / "step-00000003.ckpt").mkdir(parents=True)
        (run.path / "best.ckpt").symlink_to("step-00000003.ckpt")
    run.finish(3)
    none = "" if validated else " (no validation yet, so no best.ckpt)"
    assert capsys.readouterr().out == (
        f"the time limit of 2.5 minutes is reached: saved at step 3 as {run.path}/last.ckpt{none};"
        f" {GO_ON}\n"
    )


def test_a_run_names_the_variables_that_it_does_not_use(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lm.training.launch.ignored", ["PL_TRAINER_MAX_STEPS"])
    with run:
        pass
    expected = "environment variables of other programs, not used: PL_TRAINER_MAX_STEPS\n"
    assert capsys.readouterr().out == expected
