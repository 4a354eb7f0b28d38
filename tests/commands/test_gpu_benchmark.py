"""Test the frame of benchmarks/gpu.py, which is run by hand on a machine with a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.on_gpu.runs import MissingError, Options

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "data" / "tiny_corpus.txt"
OPTIONS = Options(TEXT, None, 2, True, Path())

pytestmark = pytest.mark.usefixtures("starts_processes")


def benchmark(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", *words]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)


def test_the_list_names_each_check_with_its_seconds() -> None:
    lines = benchmark("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(gpu.BY_NAME)
    assert all(line.split()[1].isdigit() and len(line) <= 130 for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    done = benchmark("--out", str(tmp_path / "gpu.json"), "--text", "nowhere.txt")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "nowhere.txt" in line and "a CUDA device, and torch" in line
    assert not (tmp_path / "gpu.json").exists()


def test_a_rehearsal_writes_its_json(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    names = ["machine", "flash_attention", "out_of_memory"]
    only = [word for name in names for word in ("--only", name)]
    done = benchmark("--rehearse", *only, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["rehearsal"] and list(report["checks"]) == names
    assert [check["passed"] for check in report["checks"].values()] == [True, True, None]
    assert report["checks"]["machine"]["figures"]["torch"] == torch.__version__


def test_a_check_that_fails_is_recorded_with_its_reason() -> None:
    def wrong(options: Options) -> dict[str, object]:
        raise AssertionError("2 graphs were compiled again")

    def absent(options: Options) -> dict[str, object]:
        raise MissingError("no folder")

    failed, skipped = (gpu.result_of(check, OPTIONS) for check in (wrong, absent))
    assert failed["passed"] is False
    assert failed["reason"].startswith("AssertionError: 2 graphs were compiled again (test_gpu_")
    assert (skipped["passed"], skipped["reason"]) == (None, "no folder")


def test_a_process_that_ends_or_hangs_is_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "child.py"
    monkeypatch.setattr(gpu, "__file__", str(program))
    program.write_text("import sys; print('half'); sys.exit('the driver is gone')")
    assert gpu.in_child([], 60)["reason"].endswith("exit code 1: the driver is gone")
    # Its own child holds the pipe, too, and must end with it.
    program.write_text(
        "import subprocess, time; subprocess.Popen(['sleep', '300']); time.sleep(300)"
    )
    assert gpu.in_child([], 10)["reason"] == "not done after 10 s"
    assert gpu.in_child([], 9)["passed"] is None


def test_goals_compare_speeds() -> None:
    speeds = {"ours_gpt2": 300.0, "nanogpt": 200.0}
    results = {name: {"figures": {"tokens_per_second": v}} for name, v in speeds.items()}
    results["machine"] = {"figures": {"gpu": "NVIDIA H200"}}
    assert gpu.goals(results) == {
        "tokens_per_second": {"value": 300, "goal": 500_000},
        "times nanogpt": {"value": 1.5, "goal": 1.25},
    }
    assert gpu.goals({"machine": results["machine"]}) == {}
