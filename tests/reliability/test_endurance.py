"""Memory, open files and time per step stay the same in a long run, and its record has no gap."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.runs import config_file

pytestmark = pytest.mark.usefixtures("starts_processes")

ROOT = Path(__file__).parents[2]

# This records step, resident bytes, open files, threads and CPU seconds at every hundredth step.
WATCHED = """
import json, os, sys, threading, time
import train, lm.system.errors, lm.training.module
step_of_training = lm.training.module.LanguageModel.training_step
def watched(self, batch, batch_idx):
    step_of_training(self, batch, batch_idx)
    if self.step % 100 == 0:
        resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        sample = [self.step, resident, files, threads, time.process_time()]
        with open(os.environ["SAMPLES"], "a") as file:
            file.write(json.dumps(sample) + "\\n")
lm.training.module.LanguageModel.training_step = watched
lm.system.errors.run(train.main)
"""


def test_a_long_run(
    tmp_path: Path, amount: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    steps = amount(1000, 20_000)
    config = config_file(
        tmp_path,
        model={"context_length": 16, "n_layers": 1, "d_model": 16, "n_heads": 2, "dropout": 0.1},
        trainer={
            "max_steps": steps,
            "batch_size": 2,
            "micro_batch_size": None,
            "validate_every": 200,
            "device": "cpu",
            "precision": "fp32",
        },
        checkpoint={"directory": str(tmp_path / "run"), "save_every": 50, "keep": 2},
        logging={"every": 10, "sample_tokens": 4, "tensorboard": True},
    )
    environment = os.environ | {"SAMPLES": str(tmp_path / "samples.jsonl"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, "--config", str(config), "--trainer.threads=1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample[0] for sample in samples] == list(range(100, steps + 1, 100))
    warm = samples[3:]  # the first validations and saves load what they need
    assert max(sample[2] for sample in warm) <= warm[0][2] + 1, "open files"
    assert max(sample[3] for sample in warm) <= warm[0][3] + 1, "threads"
    growth = (warm[-1][1] - warm[len(warm) // 4][1]) / 2**20
    assert growth <= 8, f"resident memory grew by {growth:.1f} MiB"
    if steps >= 20_000:
        first, last = (samples[end][4] - samples[begin][4] for begin, end in ((9, 19), (-11, -1)))
        figure(
            f"{steps:,} steps: resident memory +{growth:.2f} MiB, {warm[-1][2]} open files, CPU per"
            f" 1,000 steps {first:.2f} -> {last:.2f} s"
        )

    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["split"] == "train"] == list(
        range(10, steps + 1, 10)
    )
    assert [int(row["step"]) for row in rows if row["split"] == "val"] == list(
        range(0, steps + 1, 200)
    )
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == list(range(10, steps + 1, 10))
    assert [event.step for event in events.Scalars("loss/val")] == list(range(0, steps + 1, 200))


def test_a_worker_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    """The run ends with a message and does not hang."""
    code = """
import os, signal, sys, train, lm.system.errors, data
get = data.TrainingSteps.__getitem__
def dying(self, step):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return get(self, step)
data.TrainingSteps.__getitem__ = dying
lm.system.errors.run(train.main)
"""
    command = [
        sys.executable,
        "-c",
        code,
        "--config",
        str(config_file(tmp_path)),
        "--data.workers=2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "DataLoader worker" in done.stderr
    assert "Traceback" not in done.stderr
