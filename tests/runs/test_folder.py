"""A run's folder belongs to one run at a time and loses nothing: python -m pytest
tests/runs/test_folder.py.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from lm.checkpoints.folder import Checkpoint, open_checkpoint, pointed, step_directories, step_of
from lm.checkpoints.write import point
from lm.runs.folder import RunFolder
from lm.runs.metrics import MetricsLog, read
from lm.runs.results import RecordedValidation, read_validations, validations_without_progress
from lm.system import disk
from lm.system.errors import CheckpointError, ConfigError
from lm.system.locks import is_claimed
from lm.system.mark import mark_of
from tests.support.faults import ROOT, kill_everywhere, not_root, save
from tests.support.processes import other_process


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in step_directories(folder)]


def evaluated(step: int, loss: float, path: Path | None = None) -> RecordedValidation:
    manifest = Checkpoint(path).sha256 if path is not None else None
    return RecordedValidation(
        step,
        manifest,
        loss,
        perplexity=1.0,
        bits_per_byte=1.0,
        tokens=10,
        seconds=0.5,
        sample="é\u2028",
    )


def trained(folder: Path, losses: dict[int, float]) -> Path:
    """Return a folder in which a run saved and validated at some steps, and ended."""
    run = RunFolder(folder)
    for step, loss in losses.items():
        path = save(folder, step, f"weights of step {step}".encode()) if step else None
        run.record(evaluated(step, loss, path))
        if path is not None:
            point(folder, "last.ckpt", path)
    point(folder, "final.ckpt", step_directories(folder)[-1])
    log = MetricsLog(folder / "metrics.csv", resume_step=None)
    for step in losses:
        log.append(step, "train", loss=1.0)
    run.close()
    return folder


def losses(folder: Path) -> dict[int, float]:
    return {line.step: line.loss for line in read_validations(folder)[0]}


def rows(folder: Path) -> list[dict[str, Any]]:
    return read(folder / "metrics.csv") if (folder / "metrics.csv").exists() else []


def links(folder: Path) -> dict[str, str]:
    return {
        entry.name.removesuffix(".ckpt"): str(entry.readlink())
        for entry in folder.iterdir()
        if entry.is_symlink()
    }


@pytest.fixture
def unprivileged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the current folder, which is empty, to a user who is not root."""
    monkeypatch.chdir(tmp_path)
    with not_root(tmp_path):
        yield Path()


# The lock


def holder(
    folder: Path, then: str = "sys.stdin.read()"
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Start another process that holds the folder's lock."""
    return other_process(
        "import os, sys, time; from lm.runs.folder import RunFolder;"
        f" run = RunFolder({str(folder)!r}); print('ready', flush=True); {then}"
    )


@pytest.mark.usefixtures("starts_processes")
def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = "is in use by another run (process {}); wait for it, stop it, or name another folder"
    with holder(folder) as first:
        code = (
            "from lm.system import errors; from lm.runs.folder import RunFolder;"
            f" errors.run(lambda: RunFolder({str(folder)!r}) and None)"
        )
        second = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert second.returncode == 2
        assert second.stderr == f"checkpoint.directory: {folder} {said.format(first.pid)}\n"
        RunFolder(tmp_path / "another").close()
        with pytest.raises(ConfigError):
            RunFolder(folder)
    first_here = RunFolder(folder)
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        RunFolder(folder)
    first_here.close()
    RunFolder(folder).close()


@pytest.mark.usefixtures("starts_processes")
def test_kill_9_frees_the_folder_although_a_worker_lives_on(tmp_path: Path) -> None:
    fork = "pid = os.fork(); os.write(1, b'%d\\n' % pid); time.sleep(60)"
    with holder(tmp_path, fork) as first:
        assert first.stdout is not None
        # both processes run: the worker prints 0
        worker = max(int(first.stdout.readline()) for _ in range(2))
        first.send_signal(signal.SIGKILL)
        first.wait()
        os.kill(worker, 0)  # the worker still runs
        RunFolder(tmp_path).close()
        os.kill(worker, signal.SIGKILL)


@pytest.mark.usefixtures("starts_processes")
def test_a_worker_that_ends_does_not_free_the_folder(tmp_path: Path) -> None:
    with holder(
        tmp_path,
        "pid = os.fork() or os._exit(0); os.waitpid(pid, 0); print('ended', flush=True);"
        " sys.stdin.read()",
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "ended\n"
        with pytest.raises(ConfigError, match=f"process {first.pid}"):
            RunFolder(tmp_path)


@pytest.mark.usefixtures("starts_processes")
def test_leftovers_of_a_killed_writer_go_only_under_the_lock(tmp_path: Path) -> None:
    RunFolder(tmp_path).close()
    mark = mark_of(tmp_path)
    (tmp_path / f".step-00000002.ckpt.tmp-{mark}-17").mkdir()
    with holder(tmp_path):
        left = tmp_path / f".step-00000003.ckpt.tmp-{mark}-17"
        left.mkdir()
        with pytest.raises(ConfigError):
            RunFolder(tmp_path)
        assert [*tmp_path.glob(".*tmp*")] == [left]
    RunFolder(tmp_path).close()
    assert not [*tmp_path.glob(".*tmp*")]


def refusal(folder: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        RunFolder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_that_cannot_be_used_are_told_in_a_line(unprivileged: Path) -> None:
    Path("file").write_text("")
    Path("shut").mkdir(mode=0o555)
    Path("odd/.lock").mkdir(parents=True)
    Path("link").symlink_to("nowhere")
    start, end = "checkpoint.directory: {} cannot be a run's folder: ", "; name another"
    assert refusal("file") == start.format("file") + "it is a file" + end
    assert refusal("file/run") == start.format("file/run") + (
        "Not a directory; a part of the path is a file: remove it, or name another folder"
    )
    for folder in ("shut", "shut/run"):
        assert refusal(folder) == start.format(folder) + (
            "Permission denied; change its permissions (`ls -ld` shows them), or name another"
            " folder"
        )
    odd = "odd/.lock is not a file of a run; remove it"
    assert refusal("odd") == start.format("odd") + odd
    long = "x" * 300
    assert refusal(long) == start.format(long) + "File name too long; write a shorter name"
    assert refusal("link").startswith(start.format("link"))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_and_it_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", no_locks)
    for _ in range(2):
        RunFolder(tmp_path).close()
    line = "this file system has no locks, so nothing keeps a second run out: start one at a time"
    assert capsys.readouterr().err == f"{tmp_path}: {line}\n", "once"
    assert not is_claimed(tmp_path)


# A new run


def test_a_new_run_moves_the_old_one_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = []
    for _ in range(3):
        run = RunFolder(folder)
        said.append(run.start_fresh())
        assert {entry.name for entry in folder.iterdir()} == {".lock", ".run-id"}, (
            "an empty folder, and it is locked"
        )
        with pytest.raises(ConfigError):
            RunFolder(folder)
        run.close()
        trained(folder, {0: 5.0, 500: 2.0, 1000: 1.0})
    assert said[0] is None
    assert (
        said[1] == f"{folder} held another run (2 checkpoints, the last at step 1,000); it is now"
        f" {folder}-1 "
        f"(continue it with --resume auto --checkpoint.directory {folder}-1)"
    )
    assert said[2] is not None and f"it is now {folder}-2" in said[2]
    for old in (tmp_path / "run-1", tmp_path / "run-2"):
        assert steps(old) == [500, 1000] and losses(old) == {0: 5.0, 500: 2.0, 1000: 1.0}
        assert links(old) == {
            "best": "step-00001000.ckpt",
            "last": "step-00001000.ckpt",
            "final": "step-00001000.ckpt",
        }
        Checkpoint(old / "final.ckpt").verify()
        RunFolder(old).close()  # nobody holds its lock


def test_the_number_is_the_first_that_is_free(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", {1: 1.0})
    (tmp_path / "run-1").write_text("a file")
    (tmp_path / "run-2").symlink_to("nowhere")
    (tmp_path / "run-3").mkdir()
    RunFolder(folder).start_fresh()
    assert steps(tmp_path / "run-4") == [1]
    assert (tmp_path / "run-1").read_text() == "a file" and not [*(tmp_path / "run-3").iterdir()]


@pytest.mark.parametrize("name", ["metrics.csv", "evaluations.jsonl"])
def test_a_run_without_checkpoints_is_moved_too(tmp_path: Path, name: str) -> None:
    folder = begun(tmp_path / "run", rows=1)
    for other in {"metrics.csv", "evaluations.jsonl"} - {name}:
        (folder / other).unlink()
    (folder / "notes.txt").unlink()
    for unmarked in (".run-id", ".lock"):  # copied without them, or of an earlier version
        (folder / unmarked).unlink()
    assert (
        RunFolder(folder).start_fresh()
        == f"{folder} held another run, without checkpoints; it is now {folder}-1"
    )
    assert (tmp_path / "run-1" / name).exists()


# Other people's files


def everything(folder: Path) -> dict[str, bytes | str | None]:
    """Return what is in a folder: the content of files, the targets of links."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "metrics.csv",
        "config.yaml",
        "evaluations.jsonl",
        "best.ckpt",
        "epoch=3.ckpt",
        ".step-00000001.ckpt.tmp-17",
        "step-00000010.ckpt/",
        "after-step-00000010-1/",
        ".run-id/",
    ],
)
def test_a_folder_of_other_files_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    file = folder / name / "mine" if name.endswith("/") else folder / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(ConfigError) as caught:
        RunFolder(folder)
    assert str(caught.value) == (
        f"checkpoint.directory: {folder} holds files that are not a run's ({name.strip('/')}); name"
        f" a new folder, or allow this one by an empty file {folder}/.run-id"
    )
    assert everything(tmp_path) == before


def test_an_empty_mark_allows_a_run_which_keeps_to_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".step-00000009.ckpt.tmp-17").mkdir()
    (tmp_path / ".run-id").touch()
    for name in ("config.yaml", "report.md", "answers.json", "report.html"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match=f"{name} is not a run's, and a run would write"):
            RunFolder(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "best.ckpt").write_bytes(b"mine")
    run = RunFolder(tmp_path)
    with pytest.raises(ConfigError, match=r"best\.ckpt was not made by a run, and this run needs"):
        run.start_fresh()
    (tmp_path / "best.ckpt").unlink()
    assert run.start_fresh() is None
    save(tmp_path, 1)
    with pytest.raises(ConfigError, match="holds a run, and files that are not a run's, so"):
        run.start_fresh()
    run.close()
    RunFolder(tmp_path).close()
    assert (tmp_path / "notes.txt").exists() and (tmp_path / ".step-00000009.ckpt.tmp-17").exists()


@pytest.mark.parametrize("name", [".lock", "metrics.csv", "evaluations.jsonl", "config.yaml"])
def test_a_run_writes_through_no_link(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside.txt"
    folder = trained(tmp_path / "run", {1: 1.0})
    (folder / "config.yaml").write_text("a: 2")
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    before = outside.read_text()
    with pytest.raises(CheckpointError, match=rf"{name.replace('.', '[.]')} (is not|could not)"):
        run = RunFolder(folder)
        disk.replace(folder / "config.yaml", "a: 1")
        run.record(evaluated(2, 1.0))
        log = MetricsLog(folder / "metrics.csv", resume_step=1)
        log.append(1, "train", loss=1.0)
    assert outside.read_text() == before and (folder / name).is_symlink()


def test_a_hard_link_under_the_name_of_the_lock_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("mine")
    folder = trained(tmp_path / "run", {1: 1.0})
    (folder / ".lock").unlink()
    (folder / ".lock").hardlink_to(tmp_path / "text")
    assert "is not the lock of a run: it holds other text" in refusal(folder)
    assert (tmp_path / "text").read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_a_strange_thing_under_the_name_of_a_later_step_is_told_before_anything_moves(
    tmp_path: Path, kind: str
) -> None:
    folder = trained(tmp_path / "run", {1: 1.0, 2: 2.0})
    strange = folder / "step-00000003.ckpt"
    if kind == "folder":
        strange.mkdir()
        (strange / "notes.txt").write_text("mine")
    elif kind == "file":
        strange.write_text("mine")
    else:
        strange.symlink_to("nowhere")
    run = RunFolder(folder)
    before = everything(folder)
    with pytest.raises(ConfigError, match=r"step-00000003\.ckpt was not made by a run"):
        run.rewind(1)
    assert everything(folder) == before


def test_a_later_checkpoint_on_another_disk_moves_as_a_link(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", {1: 2.0, 2: 1.0})
    (folder / "step-00000002.ckpt").rename(tmp_path / "elsewhere")
    (folder / "step-00000002.ckpt").symlink_to("../elsewhere")
    RunFolder(folder).rewind(1)
    assert Checkpoint(folder / "after-step-00000001-1" / "step-00000002.ckpt").files
    assert steps(folder) == [1] and (tmp_path / "elsewhere" / "meta.json").exists()


def test_a_copy_without_links_goes_on_rewinds_and_ranks_its_own(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained(tmp_path / "run", {1: 1.0, 2: 2.0, 3: 3.0}), copy)
    run = RunFolder(copy)
    assert links(copy) == links(tmp_path / "run")
    run.rewind(2)
    run.point_to_best()
    assert links(copy) == {"best": "step-00000001.ckpt", "last": "step-00000002.ckpt"}
    assert steps(copy) == [1, 2] and steps(copy / "after-step-00000002-1") == [3]
    assert mark_of(copy / "after-step-00000002-1") == mark_of(copy) == mark_of(tmp_path / "run")


def begun(folder: Path, rows: int, results: tuple[int, ...] = (0,)) -> Path:
    """Return the folder of a start that logged so many steps and wrote no checkpoint."""
    run = RunFolder(folder)
    (folder / "config.yaml").write_text("a: 1\n")
    log = MetricsLog(folder / "metrics.csv", resume_step=None)
    for step in range(1, rows + 1):
        log.append(step, "train", loss=1.0)
    for step in results:
        run.record(evaluated(step, 5.0))
    left = ("incidents.jsonl", "notes.txt", "error-x.txt")
    for name in left:
        (folder / name).write_text("kept")
    run.close()
    return folder


def test_a_start_without_a_checkpoint_begins_again_in_its_place(tmp_path: Path) -> None:
    """Repeated starts move nothing, and remove only what will be written again."""
    folder = tmp_path / "run"
    for rows in (0, 1, 10):
        run = RunFolder(begun(folder, rows))
        said = f"{folder} holds a start of this run that came to no checkpoint: its logs begin anew"
        assert run.begin_again("a: 1\n", first_save=10) == said
        assert sorted(entry.name for entry in folder.iterdir()) == [
            ".lock",
            ".run-id",
            "config.yaml",
            "error-x.txt",
            "incidents.jsonl",
            "notes.txt",
        ]
        assert run.start_fresh() is None
        run.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "why",
    [
        "another configuration",
        "no configuration",
        "later rows",
        "a later result",
        "a checkpoint",
        "a link",
        "not our log",
    ],
)
def test_what_may_be_worth_keeping_is_not_begun_again(tmp_path: Path, why: str) -> None:
    folder = begun(
        tmp_path / "run",
        11 if why == "later rows" else 10,
        (0, 5) if why == "a later result" else (0,),
    )
    if why == "a checkpoint":
        save(folder, 5)
    elif why == "a link":
        (folder / "last.ckpt").symlink_to("step-00000005.ckpt")
    elif why == "not our log":
        (folder / "metrics.csv").write_text("mine\n1\n")
    elif why == "no configuration":
        (folder / "config.yaml").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    run = RunFolder(folder)
    assert (
        run.begin_again("a: 2\n" if why == "another configuration" else "a: 1\n", first_save=10)
        is None
    )
    run.close()
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after | {".lock": b""} == before | {".lock": b""}


def test_the_paths_that_are_said_are_as_the_user_wrote_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Path("runs/small"), {1: 1.0})
    said = RunFolder("runs/small").start_fresh()
    assert said is not None and said.endswith(
        "it is now runs/small-1 (continue it with --resume auto --checkpoint.directory"
        " runs/small-1)"
    )


def test_behind_a_link_the_folder_is_moved_not_the_link(tmp_path: Path) -> None:
    disk = tmp_path / "big disk" / "run"
    trained(disk, {1: 1.0})
    (tmp_path / "run").symlink_to("big disk/run")
    said = RunFolder(tmp_path / "run").start_fresh()
    assert said is not None and f"it is now {disk}-1" in said
    assert (
        (tmp_path / "run").is_symlink()
        and (disk / ".lock").exists()
        and steps(tmp_path / "big disk" / "run-1") == [1]
    )


def test_a_folder_that_cannot_be_moved_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder such as a mount point stays as it is, and the message asks for a new one."""
    folder = trained(tmp_path / "run", {1: 1.0})

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    run = RunFolder(folder)
    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(CheckpointError) as caught:
        run.start_fresh()
    assert (
        str(caught.value)
        == f"{folder} holds another run and cannot be moved to {folder}-1 (Device or resource"
        " busy); set checkpoint.directory to a new folder"
    )
    assert steps(folder) == [1] and losses(folder) == {1: 1.0}


def test_a_folder_that_holds_more_than_the_run_is_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(tmp_path / "runs", {1: 1.0})
    trained(folder / "other", {1: 1.0})
    with pytest.raises(
        ConfigError,
        match=(
            r"checkpoint\.directory: .*/runs holds a run, and the folders of other runs"
            r" \(other\), so"
        ),
    ):
        RunFolder(folder).start_fresh()
    alone = trained(tmp_path / "alone", {1: 1.0})
    (alone / "below").mkdir()
    for here, name in ((alone, "."), (alone / "below", "..")):
        monkeypatch.chdir(here)
        run = RunFolder(name)
        with pytest.raises(
            ConfigError,
            match=(
                "holds a run, and the directory in which this command runs, so it is not moved"
                " aside"
            ),
        ):
            run.start_fresh()
        run.close()
    assert steps(folder) == steps(alone) == [1]


@pytest.mark.parametrize("names", [["thesis.tex"], ["notes.md", "src/", "thesis.tex"]])
def test_a_run_among_a_users_files_is_not_moved(tmp_path: Path, names: list[str]) -> None:
    folder = trained(tmp_path / "run", {1: 1.0})
    for name in (
        "after-step-00000001-1/",
        "nonfinite-step-00000002/",
        "events.out.tfevents.17.host.1.0",
        "error-ab.txt",
        "report.html",
        "ranking.csv",
        ".curves.png.tmp-17",
        *names,
    ):
        (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("mine")
    run = RunFolder(folder)
    with pytest.raises(ConfigError) as caught:
        run.start_fresh()
    shown, them = (names[0], "it") if len(names) == 1 else ("notes.md and 2 more", "them")
    assert str(caught.value) == (
        f"checkpoint.directory: {folder} holds a run, and what no run writes ({shown}), so it is"
        f" not moved aside; move {them} away, or name a new checkpoint.directory"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for name in names:
        shutil.move(folder / name, tmp_path)
    assert "it is now" in (run.start_fresh() or "")


def test_names_that_an_archive_made_empty_are_made_again(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", {0: 5.0, 1: 1.0, 2: 2.0})
    names = links(folder)
    for name in (*names, "ranked-best"):
        (folder / f"{name}.ckpt").unlink(missing_ok=True)
        (folder / f"{name}.ckpt").mkdir()
    assert open_checkpoint(folder).step == 2, "the folder can be read as it is"
    run = RunFolder(folder)
    assert names["best"] == "step-00000001.ckpt" and links(folder) == names
    assert not (folder / "ranked-best.ckpt").exists()
    assert run.rewind(2) is None
    run.close()


def test_only_an_empty_directory_in_a_runs_folder_is_a_lost_name(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", {1: 1.0})
    (folder / "best.ckpt").unlink()
    (folder / "best.ckpt").mkdir()
    (folder / "best.ckpt" / "mine").touch()
    new = tmp_path / "new"
    RunFolder(new)._lock.close()  # marked, but without a run
    (new / "best.ckpt").mkdir()
    for place, step in ((folder, 1), (new, 0)):
        run = RunFolder(place)
        with pytest.raises(ConfigError, match=r"best\.ckpt was not made by a run, and this run"):
            run.rewind(step)
        run.close()
        assert (place / "best.ckpt").is_dir()


class FreshStart:
    """The actions of a new run in the folder of an old one, for `kill_everywhere`."""

    @staticmethod
    def prepare(run: Path) -> None:
        trained(run, {0: 3.0, 1: 2.0, 2: 1.0})

    @staticmethod
    def act(run: Path) -> None:
        RunFolder(run).start_fresh()

    @staticmethod
    def check(run: Path) -> None:
        [whole] = [folder for folder in run.parent.iterdir() if steps(folder)]
        assert whole.name in ("run", "run-1") and steps(whole) == [1, 2]
        for path in step_directories(whole):
            Checkpoint(path).verify()
        assert links(whole) == {
            "best": "step-00000002.ckpt",
            "last": "step-00000002.ckpt",
            "final": "step-00000002.ckpt",
        }
        assert losses(whole) == {0: 3.0, 1: 2.0, 2: 1.0}


class Rewound:
    """The actions of a run that goes on from an older step, for `kill_everywhere`."""

    @staticmethod
    def prepare(run: Path) -> None:
        trained(run, {0: 4.0, 1: 3.0, 2: 2.0, 3: 1.0})

    @staticmethod
    def act(run: Path) -> None:
        RunFolder(run).rewind(1)

    @staticmethod
    def check(run: Path) -> None:
        everything = [run, *run.glob("after-step-*")]
        assert sorted(step for folder in everything for step in steps(folder)) == [
            1,
            2,
            3,
        ], "each once, somewhere"
        assert steps(run) == [1, 2, 3][: len(steps(run))], (
            "the newest go first: what is left is nearest to what was asked"
        )
        assert {step: loss for folder in everything for step, loss in losses(folder).items()} == {
            0: 4.0,
            1: 3.0,
            2: 2.0,
            3: 1.0,
        }
        for folder in everything:
            for path in step_directories(folder):
                Checkpoint(path).verify()
        assert {row["step"] for row in read(run / "metrics.csv")} == {
            0,
            1,
            2,
            3,
        }, "taken out when the log is opened, not before"
        if steps(run) == [1] or len(losses(run)) == 2:
            assert {row["step"] for folder in everything[1:] for row in rows(folder)} == {
                2,
                3,
            }, "put aside before anything else"
        after = RunFolder(run)
        after.rewind(1)
        after.close()
        assert steps(run) == [1] and losses(run) == {0: 4.0, 1: 3.0}
        assert links(run) == {"best": "step-00000001.ckpt", "last": "step-00000001.ckpt"}
        assert not [*run.rglob(".*tmp*")]


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(("scenario", "least"), [(FreshStart, 4), (Rewound, 20)])
def test_killed_before_any_disk_operation_nothing_is_lost(
    tmp_path: Path, scenario: type, least: int
) -> None:
    assert kill_everywhere(f"tests.runs.test_folder:{scenario.__name__}", tmp_path) >= least


# Going on from an older step


def test_rewinding_moves_the_later_ones_aside_and_mends_the_links(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", {0: 5.0, 100: 4.0, 200: 3.0, 300: 1.0, 400: 2.0})
    assert links(folder) == {
        "best": "step-00000300.ckpt",
        "last": "step-00000400.ckpt",
        "final": "step-00000400.ckpt",
    }
    run = RunFolder(folder)
    aside = folder / "after-step-00000200-1"
    assert run.rewind(200) == f"2 later checkpoints and 2 later results moved to {aside}"
    assert (steps(folder), steps(aside)) == ([100, 200], [300, 400])
    assert losses(folder) == {0: 5.0, 100: 4.0, 200: 3.0}
    assert losses(aside) == {300: 1.0, 400: 2.0}
    assert [row["step"] for row in read(aside / "metrics.csv")] == [300, 400]
    assert links(folder) == {"best": "step-00000200.ckpt", "last": "step-00000200.ckpt"}
    assert run.rewind(200) is None and run.rewind(10**9) is None
    run.record(evaluated(300, 1.5, save(folder, 300, b"again")))
    assert (
        run.rewind(200)
        == f"1 later checkpoint and 1 later result moved to {folder / 'after-step-00000200-2'}"
    )
    assert steps(aside) == [300, 400]


def test_where_nothing_is_later_only_the_end_is_no_end_any_more(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", {100: 1.0, 200: 2.0})
    lines = (folder / "evaluations.jsonl").read_bytes()
    assert RunFolder(folder).rewind(200) is None
    assert links(folder) == {"best": "step-00000100.ckpt", "last": "step-00000200.ckpt"}
    assert (folder / "evaluations.jsonl").read_bytes() == lines


def test_links_that_a_kill_left_behind_are_mended(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", {100: 1.0, 200: 2.0})
    point(folder, "best.ckpt", folder / "step-00000999.ckpt")
    point(folder, "last.ckpt", folder / "step-00000100.ckpt")
    RunFolder(folder).rewind(200)
    assert links(folder) == {"best": "step-00000100.ckpt", "last": "step-00000200.ckpt"}


def test_a_damaged_later_checkpoint_is_kept_aside_as_well(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", {100: 2.0, 200: 1.0})
    (folder / "step-00000200.ckpt" / "manifest.json").unlink()
    RunFolder(folder).rewind(100)
    assert steps(folder) == [100] and steps(folder / "after-step-00000100-1") == [200]
    assert links(folder)["best"] == "step-00000100.ckpt"


# Results


def test_best_follows_the_lowest_loss_of_the_checkpoints_that_exist(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    best = []
    for step, loss in (
        (0, 0.0),
        (1, 3.0),
        (2, 2.0),
        (3, math.nan),
        (4, 2.0),
        (5, 2.5),
        (6, math.inf),
        (7, 1.0),
    ):
        run.record(
            evaluated(step, loss, save(tmp_path, step, str(step).encode()) if step else None)
        )
        target = pointed(tmp_path, "best.ckpt")
        best.append(step_of(target) if target else None)
    assert best == [
        None,
        1,
        2,
        2,
        2,
        2,
        2,
        7,
    ], "NaN is never best, of equals the first, step 0 has no checkpoint"
    (tmp_path / "step-00000007.ckpt" / "manifest.json").write_text("{}")
    run.point_to_best()
    assert links(tmp_path)["best"] == "step-00000002.ckpt"
    run.record(evaluated(8, -1.0))
    run.record(RecordedValidation(2, "0" * 64, -1.0, 1.0, 1.0, 1, 1.0))
    assert links(tmp_path)["best"] == "step-00000002.ckpt", (
        "a loss counts for the bytes that were measured"
    )


def test_nan_alone_is_not_best_either(tmp_path: Path) -> None:
    RunFolder(tmp_path).record(evaluated(1, math.nan, save(tmp_path, 1)))
    assert links(tmp_path) == {}


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    written = [evaluated(0, 1 / 3), evaluated(1, math.nan), evaluated(2, 0.1)]
    for line in written:
        run.record(line)
    assert repr(run.evaluations()) == repr(written)  # NaN is not equal to itself
    assert "NaN" not in (tmp_path / "evaluations.jsonl").read_text(), "JSON has none"
    assert (tmp_path / "evaluations.jsonl").read_bytes().count(b"\n") == 3


def test_a_line_that_was_cut_anywhere_costs_only_itself(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first, second, third = evaluated(1, 1.0), evaluated(2, 2.0), evaluated(3, 3.0)
    run.record(first)
    start = (tmp_path / "evaluations.jsonl").stat().st_size
    run.record(second)
    whole = (tmp_path / "evaluations.jsonl").read_bytes()
    for length in range(start, len(whole) + 1):
        (tmp_path / "evaluations.jsonl").write_bytes(whole[:length])
        run.record(third)
        assert run.evaluations() in ([first, third], [first, second, third])
        assert (run.evaluations()[1] == second) is (length >= len(whole) - 1)
    assert (tmp_path / "evaluations.jsonl").read_bytes().count(b"\n") == 3, (
        "no empty line where nothing was cut"
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        '{"step": 1}',
        "\xff",
        "[" * 100_000,
        json.dumps({**vars(evaluated(1, 1.0)), "more": 1}),
    ]
    + [
        json.dumps(vars(evaluated(1, 1.0)) | change)
        for change in ({"step": "1"}, {"loss": "low"}, {"step": None})
    ],
)
def test_a_damaged_line_was_never_a_result(tmp_path: Path, line: str) -> None:
    run = RunFolder(tmp_path)
    run.record(evaluated(1, 1.0))
    with (tmp_path / "evaluations.jsonl").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    run.record(evaluated(2, 2.0))
    assert losses(tmp_path) == {1: 1.0, 2: 2.0}


def test_a_result_that_cannot_be_read_or_written_is_told(unprivileged: Path) -> None:
    run = RunFolder("run")
    run.record(evaluated(1, 1.0))
    Path("run/evaluations.jsonl").chmod(0)
    with pytest.raises(
        CheckpointError, match=r"run/evaluations\.jsonl could not be written: Permission denied;"
    ):
        run.record(evaluated(2, 1.0))
    with pytest.raises(
        CheckpointError, match=r"run/evaluations\.jsonl cannot be read: Permission denied"
    ):
        run.evaluations()


def test_progress_is_counted_from_the_lowest_loss() -> None:
    def since_best(*values: float) -> int:
        return validations_without_progress(
            [evaluated(step, loss) for step, loss in enumerate(values)]
        )

    assert since_best() == 0
    assert since_best(5.0) == 0
    assert since_best(5.0, 4.0, 3.0) == 0
    assert since_best(5.0, 4.0, 4.5, 4.1) == 2
    assert since_best(5.0, 4.0, 4.0, 4.0) == 2, "an equal loss is no progress"
    assert since_best(5.0, math.nan, math.nan) == 2
    assert since_best(math.nan, 5.0, 6.0) == 1
    assert since_best(math.nan, math.nan) == 1


# Whole text files


def test_a_text_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.txt"
    disk.replace(path, "é old")
    disk.replace(path, "é new")
    assert path.read_bytes() == "é new".encode()

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(
                CheckpointError, match=r"x\.txt could not be written: Input/output error"
            ):
                disk.replace(path, "newer")
        assert [entry.name for entry in tmp_path.iterdir()] == [
            "x.txt"
        ] and path.read_text() == "é new"
    with pytest.raises(CheckpointError, match="could not be written: No such file or directory;"):
        disk.replace(tmp_path / "nowhere" / "x.txt", "")


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / ".lock").exists()
    run.close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    RunFolder(tmp_path / "there").close()
    assert {path.name for path in (tmp_path / "there").iterdir()} == {".lock", ".run-id"}, (
        "what was there stays"
    )
    run = RunFolder(tmp_path / "used")
    (tmp_path / "used" / "config.yaml").write_text("")
    run.close()
    assert (tmp_path / "used" / "config.yaml").exists()


def test_a_lock_whose_file_was_taken_away_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder may remove the file after it is opened and before it is locked. The lock is then
    taken again.
    """
    import fcntl

    real, calls = fcntl.flock, []

    def late(file: Any, operation: int) -> None:
        if not calls:
            (tmp_path / "run" / ".lock").unlink()
        calls.append(operation)
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    run = RunFolder(tmp_path / "run")
    assert len(calls) == 2
    with pytest.raises(ConfigError, match="is in use by another run"):
        RunFolder(tmp_path / "run")
    run.close()
