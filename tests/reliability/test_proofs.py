"""Run tools.resume_proof on shipped configurations and with the compiler. This takes minutes, so it
needs --long.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.runs import config_file

pytestmark = pytest.mark.usefixtures("starts_processes")

ROOT = Path(__file__).parents[2]


def verdict(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tools.resume_proof", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.long
@pytest.mark.parametrize("kill", [[], ["--kill"]], ids=["stopped", "killed"])
def test_the_smoke_run(kill: list[str], figure: Callable[[str], None]) -> None:
    said = verdict("--config", "config_smoke.yaml", "--steps=40", "--stops=4", *kill)
    assert said.startswith("identical: the batches and numbers of 40 steps")
    figure(said)


@pytest.mark.long
def test_compiled(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """A run with the real compiler resumes identically. The machine needs a C++ compiler."""
    config = str(config_file(tmp_path))
    done = subprocess.run(
        [sys.executable, "train.py", "--config", config, "--trainer.compile=on"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "runs uncompiled" not in done.stdout, "what follows would prove nothing"
    said = verdict("--config", config, "--steps=8", "--stops=2", "--trainer.compile=on")
    assert said.startswith("identical: ")
    figure(said)
