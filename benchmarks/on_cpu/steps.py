"""Run a training script as its own command would, and time its optimiser steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# Both kinds of repository have their model in model.py of the current folder.
PROGRAM = """
import json, os, runpy, sys, time
last, script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
sys.path.insert(0, os.getcwd())
import torch.optim.optimizer as optimizer
wall, cpu = [], []

def after_step(*_):
    wall.append(time.perf_counter())
    cpu.append(time.process_time())
    if len(wall) == int(last):
        report()
        os._exit(0)

def report():
    print("\\nSTEPS", json.dumps([wall, cpu]), flush=True)

optimizer.register_optimizer_step_post_hook(after_step)
try:
    runpy.run_path(script, run_name="__main__")
finally:
    report()
"""


class Steps(NamedTuple):
    """When each optimiser step ended, in seconds: by the clock, and in CPU time of the process."""

    wall: list[float]
    cpu: list[float]


def run_steps(command: list[str], folder: Path, cores: int, last: int = 0, skip: int = 0) -> Steps:
    """Run a script on some cores, with as many threads.

    Args:
        command: the script and its arguments.
        folder: where it runs.
        cores: how many, the first ones of those that this process may use.
        last: end the process after this many steps. 0: let it run to its end.
        skip: this many cores are left to others.
    """
    allowed = sorted(os.sched_getaffinity(0))[skip:][:cores] or os.sched_getaffinity(0)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(last), *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": str(cores)},
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("STEPS ")]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}\n{done.stderr[-1000:]}")
    return Steps(*json.loads(lines[-1].removeprefix("STEPS ")))
