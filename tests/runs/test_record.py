"""Test reading a run's folder, complete or not: python -m pytest tests/runs/test_record.py."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lm.checkpoints.folder import step_name
from lm.checkpoints.write import point, write_checkpoint, write_json
from lm.runs.metrics import MetricsLog
from lm.runs.record import read_run
from lm.system.errors import CheckpointError
from lm.system.locks import claim

META = {
    "format": 1,
    "model": {},
    "tokenizer": {},
    "config": {"trainer": {"max_steps": 20}},
    "tokens": 640,
    "seconds": 3.5,
}


def save(folder: Path, step: int, **changes: object) -> str:
    meta = {**META, "step": step, **changes}
    return write_checkpoint(
        folder / step_name(step), {"meta.json": lambda path: write_json(path, meta)}
    )["sha256"]


def run_folder(folder: Path) -> Path:
    folder.mkdir()
    log = MetricsLog(folder / "metrics.csv", resume_step=None)
    for step in range(10, 30, 10):
        log.append(step, "train", loss=5 - step / 10, tokens=32 * step, seconds=step / 8, lr=1e-3)
    log.append(20, "val", loss=3.25, tokens=640, seconds=2.5)
    lines = []
    for step, loss in ((0, 5.5), (10, 3.25), (20, 3.5)):
        sha256 = save(folder, step) if step else None
        lines.append(
            {
                "step": step,
                "manifest_sha256": sha256,
                "loss": loss,
                "perplexity": math.exp(loss),
                "bits_per_byte": loss / 2,
            }
        )
        lines[-1] |= {"tokens": 99, "seconds": 0.5, "sample": f"at {step}"}
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    point(folder, "best.ckpt", folder / step_name(10))
    return folder


def test_all_of_a_run_is_read(tmp_path):
    run = read_run(run_folder(tmp_path / "my run"))
    assert run.problems == () and run.name == "my run"
    assert run.points("train", "loss") == [(320, 4.0), (640, 3.0)]
    assert run.points("val", "loss", over="seconds") == [(2.5, 3.25)]
    assert run.best == run.validations[1] and run.best.sample == "at 10"
    assert (
        run.checkpoint_of(run.best).links == ("best.ckpt",)
        and run.checkpoint_of(run.validations[0]) is None
    )
    assert (run.step, run.tokens, run.seconds, run.finished, run.going) == (
        20,
        640,
        2.5,
        False,
        False,
    )
    assert run.config == META["config"] and run.meta["step"] == 20
    point(tmp_path / "my run", "final.ckpt", tmp_path / "my run" / step_name(20))
    assert read_run(tmp_path / "my run").finished


def test_a_run_that_is_going_is_not_disturbed(tmp_path):
    folder = run_folder(tmp_path / "run")
    with claim(folder):
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert read_run(folder).going
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not read_run(folder).going


def test_sources_of_a_validation(tmp_path):
    folder = run_folder(tmp_path / "run")
    sources = {"a.txt": {"loss": 3.0, "tokens": 7}, "odd": {"loss": "x", "tokens": 7}, "none": None}
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": 30, "loss": 2.5, "sources": sources, "a key of the future": 1})
            + "\n"
        )
    run = read_run(folder)
    assert run.validations[-1].losses_by_source == {"a.txt": (3.0, 7)} and run.best.step == 30
    assert run.validations[-1].tokens is None and math.isnan(run.validations[-1].bits_per_byte)


@pytest.mark.parametrize("name", ["metrics.csv", "evaluations.jsonl"])
def test_a_missing_part_is_named_and_the_rest_is_read(tmp_path, name):
    folder = run_folder(tmp_path / "run")
    (folder / name).unlink()
    run = read_run(folder)
    assert run.problems == (f"{name} is missing",)
    assert (
        len(run.checkpoints) == 2
        and (not run.rows) == (name == "metrics.csv")
        and (not run.validations) != (name == "metrics.csv")
    )


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"\xff\xfe", b"[" * 100_000, b"null", b"1e999", b"step,loss\n1,2\n"]
)
@pytest.mark.parametrize(
    "name",
    [
        "metrics.csv",
        "evaluations.jsonl",
        "answers.json",
        "ranking.json",
        "incidents.jsonl",
        "config.yaml",
    ],
)
def test_no_file_can_stop_it(tmp_path, name, damage):
    folder = run_folder(tmp_path / "run")
    (folder / name).write_bytes(damage)
    run = read_run(folder)
    assert run.step == 20 and all("\n" not in problem for problem in run.problems)


def test_damaged_lines_are_counted_out(tmp_path):
    folder = run_folder(tmp_path / "run")
    with (folder / "metrics.csv").open("a") as file:
        file.write("30,0.5,train,oops\n40,,train,1.5,,1280,,,,,,,,\n")
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write(
            '{"step": 30, "loss"\n{"step": -1, "loss": 2}\n{"step": 40, "loss": NaN}\n{"step": 50,'
            ' "loss": 1e400}\n'
        )
    (folder / "incidents.jsonl").write_text(
        '{"step": 3, "kind": "spike", "message": "high"}\n{"step": 4}\n{"step'
    )
    run = read_run(folder)
    assert run.incidents == ((3, "spike", "high"),)
    assert run.problems == (
        "metrics.csv: damaged and left out: line 5",
        "evaluations.jsonl: damaged and left out: line 4, 5",
        "incidents.jsonl: damaged and left out: line 2, 3",
    )
    assert run.rows[-1]["step"] == 40 and [v.step for v in run.validations] == [0, 10, 20, 40, 50]
    assert run.best.step == 10 and math.isnan(run.validations[-1].loss)


def test_rows_with_counts_beyond_all_counts_are_named(tmp_path):
    folder = run_folder(tmp_path / "run")
    kept = len(read_run(folder).rows)
    with (folder / "metrics.csv").open("a") as file:
        file.write(f"{10**20},0.5,train,1.5,,1280,,,,,,,,\n" * 2)
    run = read_run(folder)
    assert len(run.rows) == kept
    assert run.problems == ("metrics.csv: damaged and left out: line 5, 6",)


def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = run_folder(tmp_path / "run")
    (folder / step_name(20) / "meta.json").write_text('{"format": 1}')
    run = read_run(folder)
    assert len(run.problems) == 1 and "step-00000020.ckpt/meta.json" in run.problems[0]
    assert run.checkpoints[1].problem and run.meta["step"] == 10


def test_huge_and_wrong_numbers_are_none(tmp_path):
    folder = run_folder(tmp_path / "run")
    for saved in (10, 20):
        (folder / step_name(saved) / "meta.json").write_text(
            json.dumps({**META, "step": saved, "tokens": 10**400, "seconds": True})
        )
    (folder / "metrics.csv").unlink()
    run = read_run(folder)
    assert run.tokens is None and run.seconds is None


def test_without_a_checkpoint_the_configuration_is_that_of_the_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("trainer:\n  max_steps: 7\n")
    run = read_run(folder)
    assert run.config == {"trainer": {"max_steps": 7}} and run.best is None and run.step == 0
    assert set(run.problems) == {"metrics.csv is missing", "evaluations.jsonl is missing"}


def test_what_is_no_run_is_refused(tmp_path):
    folder = run_folder(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for path, advice in (
        (tmp_path / "empty", "no run"),
        (tmp_path / "none", "no such folder"),
        (folder / step_name(10), f"write {folder}"),
    ):
        with pytest.raises(CheckpointError, match=advice):
            read_run(path)
