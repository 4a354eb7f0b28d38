"""The proof of exact resume passes for an exact one and finds any difference: python -m pytest
tests/commands/test_resume_proof.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lm.checks.sameness import first_difference, read_trace
from lm.system.errors import CheckpointError
from tests.support.runs import config_file
from tests.training.test_train import ROOT


def proof(config: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.resume_proof", "--config", str(config), *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=os.environ | environment
    )


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--stops=2"], id="stopped", marks=pytest.mark.long),
        pytest.param(["--stops=1", "--kill", "--data.workers=2"], id="killed"),
    ],
)
def test_identical(tmp_path: Path, arguments: list[str]) -> None:
    passes = {"max_steps": None, "max_epochs": 0.5}  # less than these steps
    done = proof(config_file(tmp_path, trainer=passes), "--steps=9", *arguments)
    assert done.returncode == 0, done.stderr
    straight, interrupted, verdict = done.stdout.splitlines()
    assert straight.split() == ["straight", "9", "steps"]
    assert interrupted.startswith(
        f"interrupted  by {'SIGKILL' if '--kill' in arguments else 'SIGTERM'} in step "
    )
    assert verdict.startswith("identical: the batches and numbers of 9 steps, every tensor of ")
    assert not (tmp_path / "run").exists(), "the user's own run is left alone"


@pytest.mark.usefixtures("starts_processes")
def test_what_differs_is_found(tmp_path: Path) -> None:
    """The random numbers depend on the process, as if a generator's state were not restored."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, lm.optim.randomness as r\nfold = r.fold\nr.fold = lambda *parts: fold(*parts) +"
        " (os.getpid() if len(parts) > 1 else 0)\n"
    )
    done = proof(config_file(tmp_path), "--steps=6", "--stops=1", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 6
    assert done.stderr.startswith(
        "not identical; the first difference is in step 1: the loss differs ("
    )


@pytest.mark.usefixtures("starts_processes")
def test_a_wrong_configuration_is_the_runs_own_answer(tmp_path: Path) -> None:
    done = proof(config_file(tmp_path), "--steps=3", "--stops=3")
    assert (done.returncode, done.stderr) == (
        2,
        "--stops: 3 do not fit into 3 steps; write 1 or more, and less than --steps\n",
    )
    done = proof(config_file(tmp_path), "--data.source.files=nothing.txt")
    assert done.returncode == 3
    assert "nothing.txt" in done.stderr


@pytest.fixture
def run(smoke_run: Path) -> Path:
    return smoke_run / "run"


TRACE = {1: {"batch": "aa", "loss": (1.5).hex()}, 2: {"batch": "bb", "loss": (1.25).hex()}}


def test_the_first_difference(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    assert first_difference(run, copy, TRACE, TRACE) is None
    assert first_difference(run, copy, TRACE, {1: TRACE[1]}) == "the steps: 2 against 1"
    assert (
        first_difference(run, copy, TRACE, TRACE | {2: TRACE[2] | {"batch": "cc"}})
        == "step 2: the batch differs (bb, cc)"
    )
    assert (
        first_difference(
            run, copy, TRACE, TRACE | {1: TRACE[1] | {"loss": (1.5000000000000002).hex()}}
        )
        == "step 1: the loss differs (1.5, 1.5000000000000002)"
    )
    state_file = copy / "step-00000009.ckpt" / "train_state.pt"
    state = torch.load(state_file, weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"][0, 0] += 1
    torch.save(state, state_file)
    assert (
        first_difference(run, copy, TRACE, TRACE)
        == "step 9: train_state.pt: exp_avg of parameter 0 differs in 1 of 8,320 values, by at"
        " most 1"
    )
    weights_file = copy / "step-00000006.ckpt" / "ema.safetensors"
    weights = load_file(weights_file)
    del weights["norm.weight"]
    save_file(weights, weights_file)
    assert (
        first_difference(run, copy, TRACE, TRACE)
        == "step 6: ema.safetensors: norm.weight is in one of them only"
    )


def test_a_step_that_was_done_again_must_be_the_same(tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": step, "batch": "aa", "loss": loss.hex()})
        for step, loss in ((1, 1.0), (2, 2.0), (2, 2.0), (3, 3.0))
    ]
    (tmp_path / "trace.jsonl").write_text("\n".join(lines))
    assert list(read_trace(tmp_path / "trace.jsonl")) == [1, 2, 3]
    (tmp_path / "trace.jsonl").write_text("\n".join([*lines, lines[0].replace("aa", "bb")]))
    with pytest.raises(
        CheckpointError, match=r"^step 1: repeated after a kill, the batch differs \(aa, bb\)$"
    ):
        read_trace(tmp_path / "trace.jsonl")
