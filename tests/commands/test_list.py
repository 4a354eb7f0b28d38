"""list.py as a person types it: python -m pytest tests/commands/test_list.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lm.checkpoints import write as checkpoint

pytestmark = pytest.mark.usefixtures("starts_processes")

ROOT = Path(__file__).parents[2]


def save(
    folder: Path, step: int, loss: float | None = None, weights: int = 1000, **meta: Any
) -> Path:
    """Save a checkpoint as training writes it, with the validation result that follows."""
    content = {
        "format": 1,
        "step": step,
        "epoch": step / 400,
        "tokens": step * 768,
        "n_parameters": 834_944,
        "model": {},
        "tokenizer": {},
        "config": {},
        "parent": None,
        "saved_at": "2026-11-21T03:50:12+00:00",
    }
    path = folder / checkpoint.step_name(step)
    writers = {
        "meta.json": lambda file: checkpoint.write_json(file, content | meta),
        "model.safetensors": lambda file: file.write_bytes(bytes(weights)),
    }
    manifest = checkpoint.write_checkpoint(path, writers)
    if loss is not None:
        evaluate(folder, step, manifest["sha256"], loss)
    return path


def evaluate(folder: Path, step: int, manifest_sha256: str | None, loss: float) -> None:
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write(
            json.dumps(
                {"step": step, "manifest_sha256": manifest_sha256, "loss": loss, "perplexity": 1.0}
            )
            + "\n"
        )


def list_py(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "list.py", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def listed(*arguments: object) -> list[dict[str, Any]]:
    done = list_py(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(
        done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    return rows


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a folder with three checkpoints, of which the second is the best."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    evaluate(folder, 0, None, 5.55)
    save(
        folder,
        500,
        loss=2.25,
        parent={"path": "runs/base/step-00009000.ckpt", "step": 9000, "manifest_sha256": "ab"},
    )
    save(folder, 1000, loss=1.75, weights=34_500_000)
    save(folder, 1500, loss=1.875)
    checkpoint.point(folder, "best.ckpt", folder / "step-00001000.ckpt")
    checkpoint.point(folder, "last.ckpt", folder / "step-00001500.ckpt")
    checkpoint.point(folder, "final.ckpt", folder / "step-00001500.ckpt")
    return folder


def test_json_is_a_list_of_objects_with_raw_numbers(run: Path) -> None:
    first, second, third = listed(run)
    assert first == {
        "path": str(run / "step-00000500.ckpt"),
        "step": 500,
        "epoch": 1.25,
        "tokens": 384_000,
        "val_loss": 2.25,
        "parameters": 834_944,
        "adapters": None,
        "size": sum(
            file.stat().st_size
            for file in (run / "step-00000500.ckpt").iterdir()
            if file.name != "manifest.json"
        ),
        "date": "2026-11-21T03:50:12+00:00",
        "parent": "runs/base/step-00009000.ckpt",
        "links": [],
        "damage": None,
    }
    assert (second["val_loss"], second["links"], second["parent"]) == (1.75, ["best"], None)
    assert second["size"] > 34_500_000
    assert third["links"] == ["last", "final"]


def test_table(run: Path) -> None:
    done = list_py(run)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *lines = done.stdout.splitlines()
    assert (
        heading
        == "step  epoch  tokens  val loss  parameters     size  date (UTC)        links       "
        " parent"
    )
    assert lines == [
        (
            " 500   1.25    384k    2.2500        835k  1.28 kB  2026-11-21 03:50  -           "
            " runs/base/step-00009000.ckpt"
        ),
        "1000   2.50    768k    1.7500        835k  34.5 MB  2026-11-21 03:50  best         -",
        "1500   3.75   1.15M    1.8750        835k   1.2 kB  2026-11-21 03:50  last, final  -",
    ]


def test_of_adapters_the_weights_in_them_are_shown(run: Path) -> None:
    save(run, 2000, adapters={"n_parameters": 12_288})
    heading, *lines = list_py(run).stdout.splitlines()
    assert heading.split("  ")[4:8] == ["parameters", "in adapters", "", " size"]
    assert [line.split()[4:6] for line in (lines[0], lines[3])] == [
        ["835k", "-"],
        ["835k", "12.3k"],
    ]
    assert [row["adapters"] for row in listed(run, "--sort", "adapters")] == [
        12_288,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("adapters", [None, [], {}, {"n_parameters": -1}])
def test_damaged_adapters_are_said(tmp_path: Path, adapters: Any) -> None:
    save(tmp_path, 1, adapters=adapters)
    assert "damaged: " in list_py(tmp_path).stderr


def test_the_default_folder_is_checkpoints(run: Path) -> None:
    done = list_py(cwd=run.parent)
    assert done.returncode == 0 and "34.5 MB" in done.stdout


def test_a_result_counts_only_for_the_bytes_that_were_measured(run: Path) -> None:
    save(run, 1500, weights=1001)  # another run of the same step wrote over it
    evaluate(run, 1000, "0" * 64, 0.5)  # some other checkpoint of step 1000
    assert [row["val_loss"] for row in listed(run)] == [2.25, 1.75, None]


def test_the_latest_result_counts(run: Path) -> None:
    evaluate(run, 500, checkpoint.Checkpoint(run / "step-00000500.ckpt").sha256, 2.125)
    assert listed(run)[0]["val_loss"] == 2.125


def test_sorting(run: Path) -> None:
    save(run, 100)
    save(run, 2000, loss=float("nan"))

    def steps(key: str) -> list[int]:
        return [row["step"] for row in listed(run, "--sort", key)]

    assert steps("step") == [100, 500, 1000, 1500, 2000]
    assert steps("val_loss") == [1000, 1500, 500, 100, 2000]
    assert steps("size")[-1] == 1000
    for key in ("epoch", "tokens", "parameters", "date"):
        assert steps(key) == [100, 500, 1000, 1500, 2000]
    assert list_py(run, "--sort", "val_loss").stdout.splitlines()[1].startswith("1000")


def test_an_unknown_sort_key_is_answered_with_the_keys(run: Path) -> None:
    done = list_py(run, "--sort", "loss")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "--sort: there is no key 'loss'; write one of step, epoch, tokens, val_loss, parameters,"
        " adapters, size, date\n"
    )


def test_options_are_not_abbreviated(run: Path) -> None:
    assert list_py(run, "--js").returncode == 2


def test_what_a_checkpoint_says_cannot_command_the_terminal(tmp_path: Path) -> None:
    save(tmp_path, 10, parent={"path": "\x1b[2Jold"}, saved_at="2026\x9b1mevil")
    printed = list_py(tmp_path).stdout
    assert "\N{REPLACEMENT CHARACTER}[2Jold" in printed
    assert all(character.isprintable() or character == "\n" for character in printed)


def test_units(tmp_path: Path) -> None:
    save(tmp_path, 1, tokens=999, n_parameters=999_960)
    save(tmp_path, 2, tokens=1_000, n_parameters=124_439_808)
    save(tmp_path, 3, tokens=300_000_000_000, n_parameters=7_000_000_000)
    cells = [line.split() for line in list_py(tmp_path).stdout.splitlines()[1:]]
    assert [(row[2], row[4]) for row in cells] == [
        ("999", "1M"),
        ("1k", "124M"),
        ("300B", "7B"),
    ]


def damage_meta_missing(path: Path) -> None:
    (path / "meta.json").unlink()


def damage_meta_cut(path: Path) -> None:
    (path / "meta.json").write_text('{"format": 1, "st')


def damage_meta_value(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"tokens": None}))


def damage_meta_key(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    del meta["parent"]
    (path / "meta.json").write_text(json.dumps(meta))


def damage_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    "damage",
    [damage_meta_missing, damage_meta_cut, damage_meta_value, damage_meta_key, damage_manifest],
)
def test_a_damaged_checkpoint_is_listed_as_such_and_the_rest_is_shown(
    run: Path, damage: Any
) -> None:
    path = run / "step-00001000.ckpt"
    damage(path)
    done = list_py(run)
    assert done.returncode == 0
    assert done.stdout.splitlines()[2].split() == [
        "1000",
        "-",
        "-",
        "-",
        "-",
        "-",
        "damaged",
        "best",
        "-",
    ]
    assert len(done.stdout.splitlines()) == 4
    assert done.stderr.startswith(f"damaged: {path}") and done.stderr.count("\n") == 1
    rows = listed(run, "--sort", "val_loss")
    assert [row["step"] for row in rows] == [1500, 500, 1000]
    assert (
        rows[2]["damage"] in done.stderr
        and rows[2]["val_loss"] is None
        and rows[2]["links"] == ["best"]
    )
    assert [row["damage"] for row in rows[:2]] == [None, None]


def test_a_damaged_result_is_named_and_not_used(run: Path) -> None:
    with (run / "evaluations.jsonl").open("a") as file:
        file.write('[1]\n{"step": 1500, "manifest_sha256": "ab", "lo')
    done = list_py(run)
    assert done.returncode == 0 and "1.8750" in done.stdout
    assert done.stderr == f"{run}: evaluations.jsonl: damaged and left out: line 5, 6\n"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["a pipe", "a folder"])
def test_checkpoints_are_listed_without_results_that_cannot_be_read(run: Path, make: Any) -> None:
    file = run / "evaluations.jsonl"
    file.unlink()
    make(file)
    done = list_py(run)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 4
    assert done.stderr.startswith(f"{file} cannot be read: ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith("; the losses in it are left out\n")
    assert [row["val_loss"] for row in listed(run)] == [None, None, None]


def test_a_damaged_copy_under_a_name_has_its_step_or_none(run: Path) -> None:
    """The name of a copied best.ckpt holds no step: meta.json does, if that is whole."""
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    best = copy / "best.ckpt"
    damage_manifest(best)
    for path in (copy, best):
        [row] = [row for row in listed(path) if row["damage"]]
        assert (row["step"], row["links"]) == (1000, ["best"])
    damage_meta_cut(best)
    done = list_py(best)
    assert done.returncode == 0 and done.stdout.splitlines()[1].split()[0] == "-"
    [row] = listed(best)
    assert row["step"] is None


def test_links_that_mean_nothing_are_no_matter(run: Path) -> None:
    (run / "best.ckpt").unlink()
    (run / "best.ckpt").symlink_to("step-99999999.ckpt")
    (run / "step-00002000.ckpt").symlink_to("step-00001500.ckpt")
    (run / ".step-00003000.ckpt.tmp-17").mkdir()
    assert [(row["step"], row["links"]) for row in listed(run)] == [
        (500, []),
        (1000, []),
        (1500, ["last", "final"]),
    ]


def test_one_checkpoint_is_listed_alone(run: Path, tmp_path: Path) -> None:
    for name in ("best.ckpt", "step-00001000.ckpt"):
        (row,) = listed(run / name)
        assert (row["step"], row["links"]) == (1000, ["best"])
        assert row == next(row for row in listed(run) if row["step"] == 1000)
    shutil.copytree(run / "step-00001000.ckpt", tmp_path / "alone")
    assert [row["step"] for row in listed(tmp_path / "alone")] == [1000]
    (run / "step-00001000.ckpt" / "meta.json").unlink()
    (row,) = listed(run / "best.ckpt")
    assert "meta.json is missing" in row["damage"]


def test_a_copy_without_links_is_listed_as_the_run_itself(run: Path) -> None:
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    here, there = listed(run), listed(copy)
    assert [row["links"] for row in there] == [row["links"] for row in here]
    assert [row["val_loss"] for row in there] == [row["val_loss"] for row in here]
    shutil.rmtree(copy / "step-00001000.ckpt")  # its copy under the name is left
    assert [row["step"] for row in listed(copy)] == [row["step"] for row in here]


def test_a_missing_folder_is_exit_5(tmp_path: Path) -> None:
    done = list_py(cwd=tmp_path)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "checkpoints: no such folder; name the one that a run has written to\n"


def test_a_folder_without_checkpoints_says_so(tmp_path: Path) -> None:
    done = list_py(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"{tmp_path} holds no checkpoints\n",
        "",
    )
    assert listed(tmp_path) == []


def test_only_the_standard_library_is_imported_and_no_weights_are_read(run: Path) -> None:
    """Both make a list of 100 checkpoints quick, and need no clock to test."""
    code = f"""
import runpy, sys
opened, before = [], set(sys.modules)
def remember(event, arguments):
    if event == "open":
        opened.append(str(arguments[0]))
sys.addaudithook(remember)
sys.argv = ["list.py", {str(run)!r}]
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path("list.py", run_name="__main__")
names = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(names - sys.stdlib_module_names), file=sys.stderr)
names = [name for name in opened if name.startswith({str(run)!r})]
print(sorted(name.rsplit("/")[-1] for name in names), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported, opened = done.stderr.splitlines()
    assert imported == "['lm']"
    assert opened == str(["evaluations.jsonl", *["manifest.json"] * 3, *["meta.json"] * 3])
