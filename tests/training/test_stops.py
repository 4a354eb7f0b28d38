"""Ctrl-C, SIGTERM and SIGUSR1 stop a run in every phase, and it goes on as the run that never
stopped: python -m pytest tests/training/test_stops.py.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import data
import lm.checkpoints.folder
import lm.checkpoints.write
import lm.training.callbacks
import lm.training.parts
import lm.training.record
from lm.system.errors import Stopped
from lm.system.signals import SIGNALS, StopSignals
from lm.training.module import LanguageModel
from model import Decoder
from tests.support.runs import config_file, train
from tests.training.test_train import (
    ROOT,
    assert_same_run,
    evaluations,
    steps,
)

pytestmark = pytest.mark.usefixtures("starts_processes", "trains")

Phase = Callable[[pytest.MonkeyPatch, Callable[[], None]], None]


def calling(owner: Any, name: str, when: Callable[..., bool]) -> Phase:
    """Send the signal as `owner.name` is called, if `when(*arguments)`."""

    def arm(monkeypatch: pytest.MonkeyPatch, send: Callable[[], None]) -> None:
        original = getattr(owner, name)

        def interrupted(*arguments: Any, **options: Any) -> Any:
            if when(*arguments):
                send()
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, interrupted)

    return arm


def in_validation(number: int) -> Phase:
    """Send the signal in the second batch of the `number`th validation."""
    calls: list[int] = []

    def second_batch(decoder: Decoder, *arguments: Any) -> bool:
        if decoder.training or len(arguments) < 2:  # the sample gives no labels
            return False
        calls.append(1)
        return len(calls) == 6 * (number - 1) + 2

    return calling(Decoder, "forward", second_batch)


# phase -> (how to send the signal in it, the step of the newest checkpoint afterwards or None)
PHASES: dict[str, tuple[Callable[[], Phase], int | None]] = {
    "start-up": (lambda: calling(lm.training.parts, "choose_precision", lambda *_: True), None),
    "Lightning's start-up": (
        lambda: calling(LanguageModel, "configure_optimizers", lambda *_: True),
        None,
    ),
    "first validation": (lambda: in_validation(1), None),
    "step": (
        lambda: calling(LanguageModel, "_accumulate", lambda module, batch: module.step == 4),
        5,
    ),
    "update": (lambda: calling(LanguageModel, "_update", lambda module, *_: module.step == 4), 5),
    "last step": (
        lambda: calling(LanguageModel, "_accumulate", lambda module, batch: module.step == 11),
        12,
    ),
    "save": (
        lambda: calling(
            lm.checkpoints.write,
            "sync",
            lambda path: path.name == "train_state.pt" and "00000006" in str(path),
        ),
        6,
    ),
    "retention": (
        lambda: calling(
            lm.training.record,
            "retain",
            lambda folder, keep: (folder / lm.checkpoints.folder.step_name(6)).exists(),
        ),
        6,
    ),
    "validation": (lambda: in_validation(2), 4),
    "last validation": (lambda: in_validation(4), 12),
    "sample": (lambda: calling(lm.training.callbacks, "open_prompt", lambda *_: True), None),
    "waiting for data": (
        lambda: calling(data.TrainingSteps, "__getitem__", lambda rows, step: step == 5),
        5,
    ),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_every_phase(
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    number: signal.Signals,
) -> None:
    """The run stops with the documented exit code, and nothing is half done. The run that goes on
    is the run that never stopped.
    """
    make, newest = PHASES[phase]
    sent: list[int] = []

    def send() -> None:
        if not sent:
            sent.append(number)
            signal.raise_signal(number)

    config, before = config_file(tmp_path), signal.getsignal(number)
    with monkeypatch.context() as patched:
        make()(patched, send)
        with pytest.raises(Stopped, match=f"^stopped by {number.name}") as stopped:
            train(config)
    assert sent
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert (
        steps(tmp_path / "run")[-1:] == [newest]
        if newest is not None
        else steps(tmp_path / "run")[-1:] in ([], [1])
    )
    assert not list((tmp_path / "run").glob(".*tmp*"))
    train(config, resume="auto")
    assert_same_run(straight, tmp_path / "run")


def test_validation_is_cut_short_and_made_up_for(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result of an incomplete validation is never written."""
    config = config_file(tmp_path)
    with monkeypatch.context() as patched:
        in_validation(2)(patched, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            train(config)
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [0]
    train(config, resume="auto")
    assert_same_run(straight, tmp_path / "run")


def test_a_second_sigterm_does_not_keep_the_step_from_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedulers send SIGTERM twice. The first one comes while the run waits for data, the second
    on the way out.
    """
    on_exception = lm.training.callbacks.SaveCheckpoint.on_exception

    def again(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        on_exception(*arguments)

    monkeypatch.setattr(lm.training.callbacks.SaveCheckpoint, "on_exception", again)
    PHASES["waiting for data"][0]()(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped):
        train(config_file(tmp_path))
    assert steps(tmp_path / "run")[-1] == 5


def test_workers_do_not_answer_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked with the run's handlers, and the terminal sends Ctrl-C to them, too."""
    signals = StopSignals(speaks=True, advice="")
    with signals:
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(7 if signals.requested == 0 else 8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def start(config: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "train.py", "--config", str(config), *overrides]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def command_of(process: subprocess.Popen[str]) -> list[str]:
    assert isinstance(process.args, list)
    return [str(part) for part in process.args]


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    while words not in (line := process.stdout.readline()):
        assert line, "the process ended"


@pytest.mark.parametrize("number", SIGNALS)
def test_the_command_leaves_with_the_documented_code(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start(config_file(tmp_path), "--trainer.max_steps=100000")
    wait_for(process, "step 4: validation")
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    lines = errors.strip().splitlines()
    assert (
        lines[0] == f"{number.name}: finishing this step and saving (Ctrl-C again stops at once)"
        or len(lines) == 1
    )
    assert lines[-1].startswith(f"stopped by {number.name}")
    assert lines[-1].endswith(f"; go on with: {shlex.join(command_of(process))} --resume auto")
    assert "Traceback" not in errors


def test_a_terminal_that_goes_stops_no_run_under_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(speaks=True, advice="") as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.requested == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_while_it_starts(tmp_path: Path) -> None:
    """The run stops with one line while it starts."""
    process = start(config_file(tmp_path))
    resumed = f"{shlex.join(command_of(process))} --resume auto"
    while not (tmp_path / "run" / ".lock").exists():
        time.sleep(0.002)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, f"stopped by SIGINT; go on with: {resumed}\n")


def test_a_run_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    """`train.py | head` trains to its end, and `>&-` too."""
    process = start(config_file(tmp_path))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "final.ckpt").exists()


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    """The second Ctrl-C stops a run even in a step that takes for ever."""
    slow = (
        "import sys, time, train, lm.system.errors, lm.training.module\n"
        "accumulate = lm.training.module.LanguageModel._accumulate\n"
        "def endless(self, batch):\n"
        "    print('in the step', flush=True)\n"
        "    while True: time.sleep(0.1)\n"
        "lm.training.module.LanguageModel._accumulate = endless\n"
        "lm.system.errors.run(train.main)\n"
    )
    command = [sys.executable, "-c", slow, "--config", str(config_file(tmp_path))]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(process, "in the step")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "finishing this step" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    last = process.stderr.read().splitlines()[-1]
    assert last.startswith("stopped by SIGINT; go on with: ") and "--config" in last
