"""Every command that takes a checkpoint refuses hostile and broken ones by name, and executes
nothing of them.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.answers import Answer, answer, picture
from tests.reliability.hostile_checkpoints import (
    CANARY,
    CASES,
    READS,
    STEP,
    Case,
    built_up,
    made_directory,
    ran_code,
    seal,
)
from tests.support.faults import ROOT
from tests.support.runs import config_file, train

ENTRIES = ("resume", "auto", "init", "infer", "eval", "list")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, trains: None) -> Path:
    """Return the folder of a run of 6 steps, with its text, its token cache and its checkpoints of
    steps 3 and 6.
    """
    folder = tmp_path_factory.mktemp("finished")
    budget = {"max_steps": 6, "validate_every": 3, "threads": 1}
    train(config_file(folder, trainer=budget, logging={"sample_tokens": 2}))
    return folder


@pytest.fixture
def broken(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Case], Path]:
    """Return a function that copies the run with step 3 as its only checkpoint, changed by a case.
    A canary would appear in the current folder.
    """

    def make(case: Case) -> Path:
        run = tmp_path / "run"
        shutil.copytree(finished / "run", run, symlinks=True)
        for entry in run.iterdir():
            if entry.name.endswith(".ckpt") and entry.name != STEP:
                entry.unlink() if entry.is_symlink() else shutil.rmtree(entry)
        monkeypatch.chdir(tmp_path)
        case.change(run / STEP)
        if case.sealed:
            seal(run / STEP)
        return run

    return make


def arguments(entry: str, run: Path, finished: Path) -> list[str | Path]:
    """Return the command line with which a command reads the checkpoint."""
    config = ["--config", finished / "config.yaml"]
    return {
        "resume": ["train", *config, "--checkpoint.directory", run, "--resume", run / STEP],
        "auto": ["train", *config, "--checkpoint.directory", run, "--resume", "auto"],
        "init": [
            "train",
            *config,
            "--checkpoint.directory",
            run.with_name("new"),
            "--init-from",
            run / STEP,
        ],
        "infer": [
            "infer",
            "--ckpt",
            run / STEP,
            "--prompt",
            "a",
            "--max-new-tokens",
            "2",
            "--device",
            "cpu",
        ],
        "eval": ["eval_val", *config, "--ckpt", run / STEP, "--device", "cpu"],
        "list": ["list", run],
    }[entry]


def ask(entry: str, run: Path, finished: Path) -> Answer:
    command, *rest = arguments(entry, run, finished)
    return answer(str(command), *rest)


def assert_readable(text: str) -> None:
    """Check that the text holds no control characters of a terminal."""
    assert all(character.isprintable() or character in "\n" for character in text), repr(text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_by_name_and_nothing_is_executed_or_written(
    case: Case, broken: Callable[[Case], Path], finished: Path, amount: Callable[[int, int], int]
) -> None:
    run = broken(case)
    before = picture(run.parent), picture(finished)
    turn = CASES.index(case)
    asked = [entry for entry in ENTRIES if entry in case.refused_by]
    # by default each case is given to two commands, in turn
    for entry in (asked + asked)[turn % max(1, len(asked)) :][: amount(2, len(asked))]:
        got = ask(entry, run, finished)
        assert (entry, got.code) == (entry, 5), got
        assert len(got.lines) == 1 and (
            case.named in got.lines[0] or (entry == "auto" and case.named in got.out)
        ), (entry, got)
        assert str(run) in got.lines[0]
        assert "Traceback" not in got.err
        assert_readable(got.err + got.out)
        assert (picture(run.parent), picture(finished)) == before, (entry, got)
    listing = ask("list", run, finished)
    assert listing.code == 0 and "step" in listing.out
    assert ("damaged: " in listing.err) is case.listed_as_damaged, listing
    assert_readable(listing.out + listing.err)
    assert (picture(run.parent), picture(finished)) == before
    # these commands do not read the broken part, so they must succeed
    unaware = sorted(READS - case.refused_by)
    for entry in unaware if amount(0, 1) else sorted({"infer"} & set(unaware)):
        assert ask(entry, run, finished).code == 0, entry
    assert not Path(CANARY).exists() and not Path("escaped.txt").exists()


def test_hostile_results_beside_the_checkpoints(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """list.py and every resume skip damaged lines of evaluations.jsonl. A resume refuses a pipe in
    its place, and list.py shows what the checkpoints say.
    """
    monkeypatch.chdir(tmp_path)
    good = (finished / "run" / "evaluations.jsonl").read_text()
    lines = [
        '{"step": 1e999, "loss": 1, "manifest_sha256": "x"}',
        '{"step": 3, "loss": 1' + "0" * 400 + "}",
        "[" * 100_000,
        "null",
        "[]",
        "\x1b[2J",
    ]
    shutil.copytree(finished / "run", "run", symlinks=True)
    Path("run/evaluations.jsonl").write_text("\n".join([*lines, good]))
    got = answer("list", "run")
    assert got.code == 0, got
    assert got.err == (
        "run: evaluations.jsonl: damaged and left out: line 1, 2, 3, 4, 5 and 1 more\n"
    )
    assert_readable(got.err + got.out)
    resumed = answer(
        "train",
        "--config",
        finished / "config.yaml",
        "--checkpoint.directory",
        "run",
        "--resume",
        "auto",
    )
    assert resumed.code == 0 and "has finished its 6 steps" in resumed.out, resumed
    Path("run/evaluations.jsonl").unlink()
    os.mkfifo("run/evaluations.jsonl")
    resumed = answer(
        "train",
        "--config",
        finished / "config.yaml",
        "--checkpoint.directory",
        "run",
        "--resume",
        "auto",
    )
    assert (
        resumed.code == 5
        and "evaluations.jsonl cannot be read" in resumed.err
        and len(resumed.lines) == 1
    ), resumed
    got = answer("list", "run")
    assert got.code == 0 and got.err == (
        "run/evaluations.jsonl cannot be read: not a regular file; the losses in it are left out\n"
    )


PATHS = {
    "nothing": ("nowhere.ckpt", "nowhere.ckpt: no such checkpoint"),
    "an address": ("https://example.org/step-00000003.ckpt", "no such checkpoint"),
    "a device": ("/dev/zero", "/dev/zero: not a checkpoint"),
    "a pipe": ("pipe", "pipe: not a checkpoint"),
    "a link to itself": ("loop", "loop: no such checkpoint"),
    "a folder of something else": ("empty", "empty: not a checkpoint"),
    "a name of 300 characters": ("x" * 300, "File name too long"),
    "a name that commands the terminal": ("\x1b[2Jx", "no such checkpoint"),
    "a pickle": ("old.ckpt", "old.ckpt: not a checkpoint"),
    "a file of a checkpoint": (
        "run/step-00000003.ckpt/meta.json",
        "this is one file of a checkpoint; write run/step-00000003.ckpt",
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_is_no_checkpoint(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "run", "run", symlinks=True)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("empty").mkdir()
    Path("old.ckpt").write_bytes(pickle.dumps(ran_code()))
    path, said = PATHS[name]
    before = picture(tmp_path)
    config = ["--config", str(finished / "config.yaml")]
    for command, *rest in (
        ["train", *config, "--resume", path, "--checkpoint.directory", "new/run"],
        ["train", *config, "--init-from", path, "--checkpoint.directory", "new/run"],
        ["infer", "--ckpt", path, "--prompt", "a"],
        ["eval_val", *config, "--ckpt", path],
    ):
        got = answer(command, *rest)
        assert (command, got.code) == (command, 5), got
        assert len(got.lines) == 1 and said in got.lines[0], (command, got)
        assert_readable(got.err)
        assert picture(tmp_path) == before, command
    assert not Path(CANARY).exists()


BY_THEMSELVES = [
    ("train_state.pt: torch's zip with code in it", "resume"),
    ("train_state.pt: a zip bomb", "resume"),
    ("weights: torch's zip with code in it", "infer"),
    ("weights: a header of 100 MB that is not there", "infer"),
    ("meta.json: a billion layers", "infer"),
    ("tokenizer.json: nested 100,000 deep", "eval"),
    ("folder: a link to /dev/zero in place of meta.json", "list"),
]


@pytest.mark.usefixtures("starts_processes")
def test_as_a_process_with_little_memory_and_a_torch_that_is_told_to_unpickle(
    broken: Callable[[Case], Path], finished: Path, amount: Callable[[int, int], int]
) -> None:
    """Commands need little memory to refuse. They refuse even if TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD
    turns off torch's default protection.
    """
    # kilobytes; importing torch and lightning takes most of it
    script = 'ulimit -v 6000000 && exec "$@"'
    for name, entry in BY_THEMSELVES[:: amount(3, 1)]:
        [case] = [case for case in CASES if case.name == name]
        run = broken(case)
        command, *rest = arguments(entry, run, finished)
        words = [
            "bash",
            "-c",
            script,
            "-",
            sys.executable,
            str(ROOT / f"{command}.py"),
            *map(str, rest),
        ]
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        )
        assert done.returncode == (0 if entry == "list" else 5), done
        assert len(done.stderr.splitlines()) == 1 and case.named in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not Path(CANARY).exists()
        shutil.rmtree(run)


def test_the_corpus_is_as_large_as_it_says(
    amount: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    most = amount(2, len(READS))
    refusals = sum(min(most, len(case.refused_by)) for case in CASES) + 4 * len(PATHS)
    figure(
        f"{len(CASES)} checkpoints and {len(PATHS)} paths, {refusals} pairs of one with a command:"
        " exit code 5, named, nothing executed"
    )
    assert len(CASES) + len(PATHS) >= 150


def test_the_canary_can_sing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary appears when a hostile object is unpickled."""
    monkeypatch.chdir(tmp_path)
    for hostile in (made_directory(), ran_code()):
        pickle.loads(pickle.dumps(hostile))
        assert Path(CANARY).exists()
        Path(CANARY).rmdir() if Path(CANARY).is_dir() else Path(CANARY).unlink()
    pickle.loads(pickle.dumps(built_up()))
    assert Path(CANARY).exists()
