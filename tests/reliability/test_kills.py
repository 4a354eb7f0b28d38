"""A run of train.py that is killed with kill -9 and started again is the run that nobody killed:
python -m pytest tests/reliability/test_kills.py.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lm.checkpoints.folder import (
    Checkpoint,
    newest_whole,
    pointed,
    step_directories,
    step_name,
    step_of,
)
from tests.support.forked import ROOT, finish, kill_at, start, unfinished
from tests.support.runs import config_file, corpus, large_state
from tests.training.test_train import assert_same, assert_same_run, optimizer_state, weights

pytestmark = pytest.mark.usefixtures("starts_processes")

Amount = Callable[[int, int], int]
Figure = Callable[[str], None]


def assert_tidy(folder: Path, keep: int) -> None:
    """Check that only the checkpoints of `keep` and of the links are there, that the links have
    targets, and that nothing temporary is left.
    """
    run = folder / "run"
    linked = {pointed(run, name) for name in ("best.ckpt", "last.ckpt", "final.ckpt")}
    assert {*step_directories(run)} == {*step_directories(run)[-keep:]} | linked
    assert newest_whole(run) == (Checkpoint(pointed(run, "final.ckpt")), [])
    assert pointed(run, "last.ckpt") == pointed(run, "final.ckpt")
    assert [path for path in folder.rglob("*") if ".tmp" in path.name] == []
    assert [*(folder / "tmp").iterdir()] == []
    known = {
        "metrics.csv",
        "evaluations.jsonl",
        "config.yaml",
        "curves.png",
        ".lock",
        ".run-id",
        "best.ckpt",
        "last.ckpt",
        "final.ckpt",
    }
    assert {path.name for path in run.iterdir()} == known | {
        path.name for path in step_directories(run)
    }


# A forked process is the same as the command


def test_a_forked_process_does_what_the_command_does(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    for arguments, code in (
        (["--trainer.max_steps=4"], 0),
        (["--trainer.seed=x"], 2),
        (["--resume", tmp_path / "nothing.ckpt"], 5),
    ):
        command = [sys.executable, "train.py", "--config", str(config), *map(str, arguments)]
        shell = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        fork = start(tmp_path, *arguments)
        assert fork.wait() == shell.returncode == code
        assert fork.err == shell.stderr
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "run-1"))


# Killed at any moment


def test_killed_at_random_moments(tmp_path: Path, amount: Amount, figure: Figure) -> None:
    wanted, least_in_write = amount(3, 50), amount(1, 10)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
        large_state(folder, steps=4 * wanted)
    begun = time.monotonic()
    finish(straight)
    a_step = (time.monotonic() - begun) / (4 * wanted)
    rng, run, kills, in_write, aside = random.Random(wanted), killed / "run", 0, 0, 0
    while kills < wanted:
        process = start(killed, "--resume", "auto")
        assert kill_at(process, run, rng, in_write=kills % 2 == 0, longest=1 + 5 * a_step), (
            f"finished after {kills} kills: too few steps"
        )
        kills += 1
        in_write += bool(unfinished(run))
        assert newest_whole(run)[1] == [], "what stands under a final name is whole"
    aside = len([*killed.glob("run-*")])
    finish(killed, "--resume", "auto")
    assert_same_run(straight / "run", run)
    assert_tidy(killed, keep=2)
    assert_tidy(straight, keep=2)
    assert not any(step_directories(path) for path in killed.glob("run-*")), (
        "only what had saved nothing yet starts again"
    )
    assert in_write >= least_in_write
    figure(
        f"{kills} of {kills} kill -9 at random moments ({in_write} while a checkpoint was written,"
        f" {aside} before the first one): the same weights, averaged weights, optimiser state,"
        " metrics and evaluations as without; no stray file"
    )


def test_killed_ten_times_within_one_pass_over_the_data(
    tmp_path: Path, amount: Amount, figure: Figure
) -> None:
    """Each session goes on from the last one's position, not from the start of the pass."""
    wanted = amount(3, 10)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
        config_file(
            folder,
            trainer={
                "max_steps": 20 + 2 * wanted,
                "batch_size": 8,
                "micro_batch_size": 4,
                "validate_every": 7,
            },
            checkpoint={"directory": str(folder / "run"), "save_every": 1, "keep": 2},
        )
        corpus(folder, documents=200)
    finish(straight)
    reached: list[int] = []
    for _ in range(wanted):
        process = start(killed, "--resume", "auto")
        while process.alive() and newest(killed / "run") <= max(reached, default=0):
            time.sleep(0.001)
        assert process.kill() == -9
        reached.append(newest(killed / "run"))
    epoch = Checkpoint(killed / "run" / step_name(reached[-1])).meta["epoch"]
    assert epoch < 1 and reached == sorted(set(reached))
    finish(killed, "--resume", "auto")
    assert_same_run(straight / "run", killed / "run")
    figure(
        f"{wanted} of {wanted} consecutive resumes within one pass over the data (at steps"
        f" {', '.join(map(str, reached))}): the same run"
    )


def newest(run: Path) -> int:
    return max((step_of(path) for path in step_directories(run)), default=0)


# Resumed from every kind of point

STEPS = 12
EDGES = [
    (1, True),
    (7, True),
    (8, False),
    (8, True),
    (9, True),
    (11, True),
    (12, False),
    (12, True),
]
POINTS = {
    1: EDGES,
    2: [(step, True) for step in range(1, STEPS + 1)] + [(4, False), (8, False), (12, False)],
    4: EDGES,
}
A_FEW = {2: [(1, True), (8, False), (9, True), (12, False)]}


def test_resumed_from_every_kind_of_point(tmp_path: Path, amount: Amount, figure: Figure) -> None:
    """A run resumed from any point is the same run. A point is (step, whether its validation was
    recorded). A pass over the data ends within step 9.
    """
    points = POINTS if amount(0, 1) else A_FEW
    done = 0
    for accumulation, places in points.items():
        folder = tmp_path / f"accumulation-{accumulation}"
        folder.mkdir()
        every_step(folder, accumulation)
        finish(folder)
        epochs = [Checkpoint(path).meta["epoch"] for path in step_directories(folder / "run")]
        assert len(epochs) == STEPS and epochs[7] < 1 < epochs[8]
        for step, validated in places:
            again = tmp_path / "again"
            shutil.copytree(folder, again, symlinks=True)
            every_step(again, accumulation)
            if step == STEPS or not validated:
                as_if_killed(again / "run", step, validated)
            finish(again, "--resume", again / "run" / step_name(step))
            assert_same_run(folder / "run", again / "run")
            shutil.rmtree(again)
            done += 1
    figure(
        f"{done} of {done} points (passes' borders, before and after validations, accumulation"
        f" {', '.join(map(str, points))}): same run"
    )


def every_step(folder: Path, accumulation: int) -> Path:
    trainer = {
        "max_steps": STEPS,
        "batch_size": 8,
        "micro_batch_size": 8 // accumulation,
        "validate_every": 4,
    }
    return config_file(
        folder,
        trainer=trainer,
        checkpoint={"directory": str(folder / "run"), "save_every": 1, "keep": 20},
    )


def as_if_killed(run: Path, step: int, validated: bool) -> None:
    """Leave the run as if killed right after the result of `step` was recorded. If it is not
    `validated`, the kill came before, with its row already in metrics.csv.
    """
    lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step - (not validated)]
    (run / "evaluations.jsonl").write_text("".join(kept))
    for name in ("final.ckpt", "curves.png"):
        (run / name).unlink()


# Settings that change nothing

HARMLESS = [
    ["--data.workers=2", "--trainer.validate_every=100"],
    ["--data.workers=1", "--checkpoint.save_every=1", "--logging.every=5"],
    ["--logging.sample_tokens=0", "--checkpoint.keep=1", "--logging.tensorboard=true"],
    ["--data.workers=1"],
    ["--data.workers=2"],
    ["--data.workers=4"],
    ["--data.workers=4", "--trainer.validate_every=100"],
    ["--trainer.validate_every=1"],
    ["--trainer.validate_every=100"],
    ["--checkpoint.save_every=5"],
    ["--logging.every=100"],
    ["--checkpoint.save_every=100", "--trainer.validate_every=5", "--logging.every=2"],
]


@pytest.fixture
def plain(tmp_path: Path, starts_processes: None) -> Iterator[Path]:
    folder = tmp_path / "plain"
    folder.mkdir()
    config_file(folder)
    finish(folder)
    yield folder / "run"


def test_workers_and_intervals_change_no_weight(
    tmp_path: Path, plain: Path, amount: Amount, figure: Figure
) -> None:
    variants = HARMLESS[: amount(3, len(HARMLESS))]
    for arguments in variants:
        folder = tmp_path / "variant"
        folder.mkdir()
        config_file(folder)
        process = start(folder, *arguments)
        # stderr may hold torch's warning about more workers than cores
        assert process.wait() == 0, process.err
        assert_same(state(plain), state(folder / "run"))
        shutil.rmtree(folder)
    figure(
        f"{len(variants)} of {len(variants)} numbers of workers and intervals of validating, saving"
        " and logging: the same weights"
    )


def state(run: Path) -> list[Any]:
    """Return everything that the next step depends on."""
    return [weights(run), weights(run, file="ema.safetensors"), optimizer_state(run)]
