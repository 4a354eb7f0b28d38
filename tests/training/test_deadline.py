"""A run whose schedule follows the clock ends at its deadline, by clocks that these tests set:
python -m pytest tests/training/test_deadline.py.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lm.checkpoints.folder import step_directories, step_of
from lm.config.schema.config import UNLIMITED, Config
from lm.optim.schedule import learning_rate
from lm.runs.metrics import read
from lm.system.errors import ConfigError, Stopped
from lm.training import callbacks, record
from lm.training.deadline import Deadline
from lm.training.module import LanguageModel
from tests.support.runs import config_file, launched, train
from tests.training.test_train import ROOT

SCHEDULES = ("cosine", "linear", "wsd")


def config(minutes: float = 10.0, **keys: Any) -> Config:
    trainer = {"max_minutes": minutes, "validate_every": keys.pop("validate_every", 10**6)}
    trainer |= {key: keys.pop(key) for key in ("max_steps",) if key in keys}
    checkpoint = {"save_every": 50}
    optimizer = {"schedule_by": "time", "final_lr_fraction": 0.0, "warmup_steps": 0} | keys
    return Config.model_validate(
        {
            "data": {"source": {"format": "txt", "files": "unused"}},
            "trainer": trainer,
            "checkpoint": checkpoint,
            "optimizer": optimizer,
        }
    )


@dataclass
class Simulated:
    """A run without a model: `steps` takes the number of a step and returns its seconds."""

    config: Config
    steps: Callable[[int], float] = lambda step: 1.0
    start_up: float = 10.0
    save: float = 5.0
    validation: float = 0.0
    before: float = 0.0
    costs: dict[str, float] = field(default_factory=dict)
    stop_at: float = math.inf  # progress
    first: int = 0
    time: float = 1000.0
    said: list[str] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)

    def run(self, monkeypatch: pytest.MonkeyPatch) -> Simulated:
        monkeypatch.setattr("lm.training.deadline.now", lambda: self.time)
        started, highest = self.time, self.time
        deadline = Deadline(self.config, self.time, self.said.append, self.before, self.costs)
        self.time += self.start_up
        self._do(deadline, "validation", self.validation)
        deadline.require_time()
        for step in itertools.count(self.first):
            self.progress.append(deadline.begin_step(step))
            self.time += self.steps(step)
            highest = max(highest, self.time)
            deadline.end_step()
            self.last = step
            due = (step + 1) % self.config.trainer.validate_every == 0
            if due or deadline.over or (step + 1) % self.config.checkpoint.save_every == 0:
                self._do(deadline, "save", self.save)
            if due or deadline.over:
                self._do(deadline, "validation", self.validation)
            if deadline.over or self.progress[-1] > self.stop_at:
                break
        self.state = deadline.state
        self.took = self.before + max(highest, self.time) - started
        return self

    def _do(self, deadline: Deadline, kind: str, seconds: float) -> None:
        with deadline.measured(kind):
            self.time += seconds

    def rates(self) -> list[float]:
        return [
            learning_rate(self.first + i, UNLIMITED, self.config.optimizer, progress)
            for i, progress in enumerate(self.progress)
        ]


def assert_at_the_deadline(run: Simulated, step: float = 1.0, early: float = 0.0) -> None:
    """Check that the run ends within two steps of its deadline, and that its rate is near 0."""
    assert run.progress == sorted(run.progress) and run.progress[-1] == 1
    seconds = 60 * (run.config.trainer.max_minutes or 0)
    margin = 0.2 * (run.save + run.validation) + 3 + early
    assert seconds - 2 * step - margin <= run.took <= seconds + step, run.took
    assert run.rates()[-1] < 0.02 * run.config.optimizer.lr


def largest_jump(run: Simulated) -> float:
    return max(b - a for a, b in itertools.pairwise(run.progress))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_even_run_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch, schedule: str) -> None:
    run = Simulated(config(schedule=schedule, warmup_steps=20)).run(monkeypatch)
    assert_at_the_deadline(run)
    assert largest_jump(run) < 2.1 / 580 and not run.said
    rates = run.rates()
    assert rates[9] == pytest.approx(10 / 21 * 1e-3) and max(rates) > 0.94e-3
    half = rates[len(rates) // 2] / 1e-3
    assert half == pytest.approx(1 if schedule == "wsd" else 0.5, abs=0.03)


@pytest.mark.parametrize("every", [10, 97])
def test_validations_and_saves_count(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Validation takes 20 % of the time and a save 5 s. Both are reserved for the end."""
    run = Simulated(
        config(minutes=20, validate_every=every), validation=0.25 * every, save=5.0
    ).run(monkeypatch)
    # A validation that is due shortly before the end becomes the last one.
    assert_at_the_deadline(run, early=0.25 * every + 5)


def test_a_validation_shortly_before_the_end_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it there would be time for one step, but not for another validation."""
    run = Simulated(config(validate_every=380), validation=60.0).run(monkeypatch)
    assert_at_the_deadline(run, early=65)
    assert run.last == 379


@pytest.mark.parametrize("pause", [0.3, 0.45])
def test_a_pause_is_passed_over_what_is_left(monkeypatch: pytest.MonkeyPatch, pause: float) -> None:
    run = Simulated(config(), lambda step: 600 * pause if step == 200 else 1.0).run(monkeypatch)
    assert_at_the_deadline(run)
    assert largest_jump(run) < 0.02, "the rate does not fall at once"
    assert len(run.said) > 0 and "passed without a step" in run.said[0]


def test_a_pause_beyond_the_deadline_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Simulated(config(), lambda step: 1e6 if step == 200 else 1.0).run(monkeypatch)
    assert run.progress[-1] == 1 and run.last == 201, "one step, with the last rate"


@pytest.mark.parametrize("slow", [0, 5, 300])
def test_one_slow_step_changes_little(monkeypatch: pytest.MonkeyPatch, slow: int) -> None:
    """Ten times slower, such as the first one, which compiles."""
    even = Simulated(config()).run(monkeypatch)
    run = Simulated(config(), lambda step: 10.0 if step == slow else 1.0).run(monkeypatch)
    assert_at_the_deadline(run)
    assert abs(len(run.progress) - len(even.progress)) <= 11
    assert largest_jump(run) < 12 / 580


def test_a_machine_that_becomes_slower_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Simulated(config(), lambda step: 1.0 if step < 200 else 10.0).run(monkeypatch)
    assert_at_the_deadline(run, step=10)
    assert largest_jump(run) < 0.06


def test_a_machine_that_becomes_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Simulated(config(), lambda step: 10.0 if step < 20 else 0.5).run(monkeypatch)
    assert_at_the_deadline(run)


def test_a_clock_that_goes_back_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    even = Simulated(config()).run(monkeypatch)
    run = Simulated(config(), lambda step: -100.0 if step == 200 else 1.0).run(monkeypatch)
    assert abs(len(run.progress) - len(even.progress)) <= 2, "the run is not longer for it"
    assert run.progress == sorted(run.progress) and run.progress[-1] == 1
    assert all(b - a < 2.1 / 580 for a, b in itertools.pairwise(run.progress))


@pytest.mark.parametrize(("minutes", "steps"), [(0.12, 3), (0.165, 5), (0.2, 7), (0.35, 16)])
def test_runs_of_few_steps(monkeypatch: pytest.MonkeyPatch, minutes: float, steps: int) -> None:
    """A long warm-up is limited by the decay."""
    run = Simulated(config(minutes=minutes, warmup_steps=20), start_up=4, save=0.1).run(monkeypatch)
    assert len(run.progress) == steps
    assert_at_the_deadline(run)


def test_the_smallest_limit_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the schedule: at max_steps the rate has come to its end."""
    run = Simulated(config(max_steps=50)).run(monkeypatch)
    assert len(run.progress) == 50 and run.rates()[-1] == 0 and largest_jump(run) < 0.05
    late = Simulated(config(max_steps=5000)).run(monkeypatch)
    assert_at_the_deadline(late)


def test_stopped_and_resumed_it_ends_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Simulated(config(), stop_at=0.4).run(monkeypatch)
    assert first.state["elapsed"] == pytest.approx(240, abs=12) and not first.state["over"]
    again = Simulated(
        config(),
        before=first.state["elapsed"],
        costs=first.state["costs"],
        first=first.last + 1,
        time=5000.0,
    ).run(monkeypatch)
    assert_at_the_deadline(again)
    assert 0 < again.progress[0] - first.progress[-1] < 0.05, "the second start-up counts"


@pytest.mark.parametrize(("start_up", "before"), [(700.0, 0.0), (10.0, 590.0), (596.0, 0.0)])
def test_without_time_for_a_step_nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch, start_up: float, before: float
) -> None:
    run = Simulated(config(), start_up=start_up, before=before)
    with pytest.raises(ConfigError, match=r"^trainer.max_minutes: 10 minutes leave no time for a"):
        run.run(monkeypatch)
    assert not run.progress


@pytest.mark.usefixtures("starts_processes")
def test_the_time_before_the_first_line_of_ours_counts() -> None:
    """The interpreter's own start and the imports are before it."""
    code = "import time; time.sleep(1); from lm.training.deadline import now, process_started as p"
    command = [sys.executable, "-c", f"{code}; print(now() - p())"]
    age = float(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert age >= 1


# --- whole runs


@dataclass
class Clock:
    time: float = 0.0
    begun: float = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Let a step take 2 s, a save 3 s and a validation 4 s; the start-up takes 10 s."""
    result = Clock()
    monkeypatch.setattr("lm.training.deadline.now", result)
    monkeypatch.setattr("lm.training.launch.process_started", lambda: result.begun)

    def slower(target: Any, name: str, seconds: float) -> None:
        original = getattr(target, name)

        def call(*arguments: Any, **keys: Any) -> Any:
            result.time += seconds
            return original(*arguments, **keys)

        monkeypatch.setattr(target, name, call)

    slower(LanguageModel, "configure_optimizers", 10)
    slower(LanguageModel, "_update", 2)
    slower(record, "write_checkpoint", 3)
    slower(callbacks, "evaluate", 4)
    return result


def timed(folder: Path, minutes: float = 1.5) -> Path:
    keys = {"lr": 3e-3, "warmup_steps": 2, "schedule_by": "time", "final_lr_fraction": 0.0}
    trainer = {"max_steps": None, "max_minutes": minutes, "validate_every": 8}
    return config_file(folder, optimizer=keys, trainer=trainer)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read(folder / "run" / "metrics.csv") if row["split"] == "train"]


@pytest.mark.usefixtures("trains")
def test_a_run_of_so_many_minutes(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    path = timed(tmp_path)
    train(path)
    printed = capsys.readouterr().out
    assert "run: 1.5 minutes, in steps of 8 rows" in printed and " left" in printed
    assert 90 - 4 - 5 <= clock.time <= 92
    rows = logged(tmp_path)
    assert rows[-1]["lr"] < 0.02 * 3e-3 < rows[len(rows) // 2]["lr"]
    last = step_of(step_directories(tmp_path / "run")[-1])
    assert (tmp_path / "run" / "final.ckpt").resolve().name == f"step-{last:08d}.ckpt"
    lines = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == last == rows[-1]["step"]
    meta = json.loads((tmp_path / "run" / "final.ckpt" / "meta.json").read_text())
    assert meta["over"] and 70 < meta["elapsed"] < 90

    clock.time = 0.0
    train(path, resume="auto")
    assert f"finished its {last} steps" in capsys.readouterr().out
    (tmp_path / "run" / "final.ckpt").unlink()  # killed before the pictures
    train(path, resume="auto")
    assert (tmp_path / "run" / "final.ckpt").exists()
    assert step_of(step_directories(tmp_path / "run")[-1]) == last, "no step more"
    train(path, "--trainer.max_minutes=2.5", resume="auto")
    assert step_of(step_directories(tmp_path / "run")[-1]) > last


@pytest.mark.usefixtures("trains")
def test_what_another_limit_ended_can_be_lengthened(tmp_path: Path, clock: Clock) -> None:
    """Only what the clock has ended needs a later deadline."""
    path, run = timed(tmp_path), tmp_path / "run"
    train(path, "--trainer.max_steps=6")
    assert step_of(step_directories(run)[-1]) == 6
    (run / "final.ckpt").unlink()  # killed before the pictures
    clock.begun, clock.time = 0.0, 0.0
    train(path, "--trainer.max_steps=6", resume="auto")
    assert step_of(step_directories(run)[-1]) == 6, "no step more"
    clock.time = 0.0
    train(path, "--trainer.max_steps=9", resume="auto")
    assert step_of(step_directories(run)[-1]) == 9


@pytest.mark.usefixtures("trains")
def test_what_the_clock_ended_goes_on_by_steps(tmp_path: Path, clock: Clock) -> None:
    """`max_minutes` then limits the session, and no longer the run."""
    path, run = timed(tmp_path, minutes=1.0), tmp_path / "run"
    train(path)
    last = step_of(step_directories(run)[-1])
    clock.time = 0.0
    by_steps = ("--optimizer.schedule_by=steps", f"--trainer.max_steps={last + 2}")
    train(path, *by_steps, resume="auto")
    assert step_of(step_directories(run)[-1]) == last + 2


@pytest.mark.usefixtures("trains")
def test_it_resumes_and_says_that_it_is_not_exact(
    tmp_path: Path,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = timed(tmp_path)
    update = LanguageModel._update

    def stop(self: LanguageModel, *arguments: Any) -> None:
        update(self, *arguments)
        if self.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(LanguageModel, "_update", stop)
        train(path)
    spent = json.loads((tmp_path / "run" / "last.ckpt" / "meta.json").read_text())["elapsed"]
    assert spent == pytest.approx(clock.time, abs=4)
    before, clock.time = clock.time, 0.0
    capsys.readouterr()
    train(path, resume="auto")
    printed = capsys.readouterr().out
    said = printed.index("not bit for bit those of an unbroken run")
    assert said < printed.index("step "), "before it starts"
    assert 90 - 4 - 5 <= spent + clock.time <= 92 and before > 20
    rows = logged(tmp_path)
    rates = [row["lr"] for row in rows[2:]]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.02 * 3e-3


@pytest.mark.usefixtures("trains")
def test_a_start_up_longer_than_the_deadline_trains_nothing(tmp_path: Path, clock: Clock) -> None:
    path = timed(tmp_path, minutes=0.2)
    with pytest.raises(ConfigError, match=r"^trainer.max_minutes: 0.2 minutes leave no") as refusal:
        train(path)
    assert refusal.value.exit_code == 2
    assert not step_directories(tmp_path / "run")


@pytest.mark.usefixtures("starts_processes")
def test_two_processes_with_different_clocks_have_equal_weights(tmp_path: Path) -> None:
    path = timed(tmp_path, minutes=5)
    keys = ["--trainer.devices=2", "--trainer.micro_batch_size=4", "--trainer.max_steps=1000"]
    keys += ["--trainer.early_stopping=1", "--optimizer.lr=1"]  # it ends after some steps
    launched(2, "tests.support.skewed", str(tmp_path), "--config", str(path), *keys)
    one, two = (json.loads((tmp_path / f"process-{rank}.json").read_text()) for rank in (0, 1))
    assert len(one["rates"]) >= 8 and one == two
