"""Damaged checkpoints are named and never loaded, and another run is never resumed: python -m
pytest tests/reliability/test_damage.py.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lm.checkpoints.folder import Checkpoint, newest_whole, step_directories
from lm.runs.origin import find_checkpoint
from lm.system.errors import CheckpointError
from tests.support.faults import sealed
from tests.support.forked import start
from tests.support.runs import config_file
from tests.training.test_train import assert_same_run, steps

pytestmark = pytest.mark.usefixtures("starts_processes")

Amount = Callable[[int, int], int]
Figure = Callable[[str], None]
KINDS = (
    "model.safetensors",
    "ema.safetensors",
    "train_state.pt",
    "tokenizer.json",
    "meta.json",
    "manifest.json",
)
PAGE = 4096


@pytest.fixture(scope="module")
def trained(smoke_run: Path, starts_processes: None) -> Path:
    """Return a folder with a run of 12 steps that ended; nobody changes it."""
    checkpoint = smoke_run / "run" / "final.ckpt"
    assert sorted(path.name for path in checkpoint.iterdir()) == sorted(KINDS)
    return smoke_run


class Victim:
    """A copy of a run whose newest checkpoint is damaged in many ways, and repaired after each."""

    def __init__(self, run: Path):
        self.run = run
        self.whole, self.newest = step_directories(run)[-2:]
        self.contents = {name: (self.newest / name).read_bytes() for name in KINDS}

    def damaged(self, name: str, content: bytes) -> None:
        """Check that the damage is detected, the file is named, and `auto` takes the checkpoint
        before.
        """
        assert content != self.contents[name]
        (self.newest / name).write_bytes(content)
        self.refused(name)
        (self.newest / name).write_bytes(self.contents[name])

    def refused(self, name: str) -> None:
        with pytest.raises(CheckpointError) as refusal:
            Checkpoint(self.newest).verify()
        assert str(refusal.value).startswith(str(self.newest / name)), refusal.value
        said: list[str] = []
        assert find_checkpoint(self.run, "auto", said.append) == Checkpoint(self.whole)
        assert said == [f"passed over: {refusal.value}"]
        assert refusal.value.exit_code == 5
        with pytest.raises(CheckpointError):
            find_checkpoint(self.run, str(self.newest), said.append)

    def mend(self) -> None:
        shutil.rmtree(self.newest)
        self.newest.mkdir()
        for name, content in self.contents.items():
            (self.newest / name).write_bytes(content)
        assert newest_whole(self.run) == (Checkpoint(self.newest), [])


@pytest.fixture
def victim(trained: Path, tmp_path: Path) -> Iterator[Victim]:
    shutil.copytree(trained / "run", tmp_path / "run", symlinks=True)
    result = Victim(tmp_path / "run")
    yield result
    result.mend()


@pytest.mark.parametrize("name", KINDS)
def test_flipped_bits(victim: Victim, name: str, amount: Amount, figure: Figure) -> None:
    """A flipped bit anywhere in a file is detected."""
    rng, count, original = random.Random(name), amount(20, 300), victim.contents[name]
    for _ in range(count):
        content, place = bytearray(original), rng.randrange(8 * len(original))
        content[place // 8] ^= 1 << place % 8
        victim.damaged(name, bytes(content))
    figure(f"{count} of {count} flipped bits detected, the file named, the checkpoint before taken")


@pytest.mark.parametrize("name", KINDS)
def test_zeroed_pages(victim: Victim, name: str, amount: Amount, figure: Figure) -> None:
    """A zeroed page is detected. In a small file the zeros begin at a random place. Pages that were
    zero before are skipped.
    """
    rng, count, original, zero_before = (
        random.Random(name),
        amount(20, 300),
        victim.contents[name],
        0,
    )
    done = 0
    while done < count:
        begin = (
            PAGE * rng.randrange(len(original) // PAGE)
            if len(original) > 4 * PAGE
            else rng.randrange(len(original))
        )
        page = original[begin : begin + PAGE]
        if page == bytes(len(page)):
            zero_before += 1
            assert zero_before < 10 * count
            continue
        victim.damaged(name, original[:begin] + bytes(len(page)) + original[begin + PAGE :])
        done += 1
    figure(f"{count} of {count} zeroed 4 KiB pages detected ({zero_before} more were zero before)")


def test_truncations(victim: Victim, amount: Amount, figure: Figure) -> None:
    """Every truncation is detected, also an empty file and a missing last byte."""
    rng, count = random.Random(4), amount(30, 300)
    for number in range(count):
        name = KINDS[number % len(KINDS)]
        original = victim.contents[name]
        length = (
            (0, len(original) - 1)[number // len(KINDS)]
            if number < 2 * len(KINDS)
            else rng.randrange(len(original))
        )
        victim.damaged(name, original[:length])
    figure(f"{count} of {count} truncations detected, the file named, the checkpoint before taken")


def missing(victim: Victim) -> Iterator[str]:
    for name in KINDS:
        (victim.newest / name).unlink()
        yield name


def extra(victim: Victim) -> Iterator[str]:
    for name in ("notes.txt", ".hidden", "model.safetensors.bak", "zz"):
        (victim.newest / name).write_bytes(b"")
        yield name
    (victim.newest / "folder").mkdir()
    yield "folder"


def swapped(victim: Victim) -> Iterator[str]:
    """Replace a file by another one of the checkpoint, by the same file of another one, or by a
    folder. Yield the name that must be reported.
    """
    for one, other in (
        ("model.safetensors", "ema.safetensors"),
        ("meta.json", "tokenizer.json"),
        ("train_state.pt", "model.safetensors"),
    ):
        (victim.newest / one).write_bytes(victim.contents[other])
        (victim.newest / other).write_bytes(victim.contents[one])
        yield min(one, other)
    for name in ("model.safetensors", "ema.safetensors", "train_state.pt", "meta.json"):
        shutil.copy(victim.whole / name, victim.newest / name)
        yield name
    shutil.copy(victim.whole / "manifest.json", victim.newest / "manifest.json")
    yield "ema.safetensors"  # the first by name of the files that differ from it
    for name in KINDS[:-1]:
        (victim.newest / name).unlink()
        (victim.newest / name).mkdir()
        yield name


def edited(victim: Victim) -> Iterator[str]:
    """Edit the manifest by hand. Its own hash is wrong, or it is right and the hashes of the files
    are wrong. Yield the name that must be reported.
    """
    manifest = json.loads(victim.contents["manifest.json"])
    for change in ({"sha256": "0" * 64}, {"files": {}}, {"files": None}, {"sha256": None}):
        (victim.newest / "manifest.json").write_text(json.dumps(manifest | change))
        yield "manifest.json"
    for name in manifest["files"]:
        for entry in ({"bytes": 1}, {"sha256": "0" * 64}):
            files = manifest["files"] | {name: manifest["files"][name] | entry}
            (victim.newest / "manifest.json").write_text(json.dumps(manifest | {"files": files}))
            yield "manifest.json"
        _write_manifest(
            victim, manifest["files"] | {name: manifest["files"][name] | {"sha256": "0" * 64}}
        )
        yield name
        _write_manifest(
            victim, {other: entry for other, entry in manifest["files"].items() if other != name}
        )
        yield name
    for text in ("", "{", "[]", "null", "[" * 100_000, '{"files": []}', "\x00" * 10):
        (victim.newest / "manifest.json").write_text(text)
        yield "manifest.json"


def _write_manifest(victim: Victim, files: dict[str, Any]) -> None:
    from lm.checkpoints.folder import hash_of_table

    (victim.newest / "manifest.json").write_text(
        json.dumps({"files": files, "sha256": hash_of_table(files)})
    )


@pytest.mark.parametrize("damage", [missing, extra, swapped, edited])
def test_files_that_are_not_what_they_were(
    victim: Victim, damage: Callable[[Victim], Iterator[str]], figure: Figure
) -> None:
    """Each damage is detected, and the message names the file of the newest checkpoint."""
    count = 0
    for name in damage(victim):
        victim.refused(name)
        victim.mend()
        count += 1
    assert count >= 5
    figure(
        f"{count} of {count} checkpoints with {damage.__name__} files detected, the file named, the"
        " checkpoint before taken"
    )


def test_a_meta_json_that_is_sealed_but_wrong(victim: Victim) -> None:
    """The manifest fits but meta.json is wrong. `auto` skips such a checkpoint, too."""
    meta = json.loads(victim.contents["meta.json"])
    for change in ({"format": 2}, {"step": 11}, {"step": -1}, {"config": 3}, {"model": None}):
        sealed(victim.newest, meta__json=json.dumps(meta | change).encode())
        said: list[str] = []
        assert find_checkpoint(victim.run, "auto", said.append) == Checkpoint(victim.whole)
        assert len(said) == 1 and str(victim.newest / "meta.json") in said[0]


def test_all_damaged(victim: Victim) -> None:
    for path in step_directories(victim.run):
        (path / "meta.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"its 6 checkpoints are damaged; train again without --resume"
    ) as refusal:
        find_checkpoint(victim.run, "auto", lambda _: None)
    assert refusal.value.exit_code == 5
    for path in step_directories(victim.run)[:-1]:
        shutil.rmtree(path)


# Through the command


def copied(trained: Path, folder: Path) -> Path:
    """Copy the run into a folder of its own, with the same text and token cache, and write its
    configuration there.
    """
    shutil.copytree(trained, folder, symlinks=True)
    config_file(folder)
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_command_passes_over_what_is_damaged(
    trained: Path, tmp_path: Path, amount: Amount, figure: Figure
) -> None:
    kinds = KINDS[:: amount(3, 1)]
    for name in kinds:
        folder = copied(trained, tmp_path / name)
        newest = folder / "run" / "step-00000012.ckpt"
        flip(newest / name)
        explicit = start(folder, "--resume", newest)
        assert explicit.wait() == 5
        assert explicit.err.count("\n") == 1 and str(newest / name) in explicit.err
        assert steps(folder / "run") == [3, 4, 6, 8, 9, 12], "nothing was touched"
        process = start(folder, "--resume", "auto")
        assert process.wait() == 0 and process.err == ""
        assert f"passed over: {newest / name}" in process.out
        assert_same_run(trained / "run", folder / "run")
        assert steps(folder / "run" / "after-step-00000009-1") == [12]
    figure(
        f"{len(kinds)} of {len(kinds)} kinds of file, through the command: an explicit path exits"
        " 5, auto goes on from the one before"
    )


def test_the_command_with_nothing_whole(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "copy")
    for path in step_directories(folder / "run"):
        flip(path / "model.safetensors")
    process = start(folder, "--resume", "auto")
    assert process.wait() == 5
    assert process.err.count("\n") == 1 and "its 6 checkpoints are damaged" in process.err
    assert process.out.count("passed over: ") == 6
    assert len(step_directories(folder / "run")) == 6


OTHER_RUNS = [
    (["model.n_layers=3"], ["model.n_layers"]),
    (["model.d_model=64"], ["model.d_model"]),
    (["model.dropout=0"], ["model.dropout"]),
    (["model.context_length=8"], ["model.context_length"]),
    (["tokenizer.name=gpt2"], ["tokenizer.name"]),
    (["trainer.seed=2"], ["trainer.seed"]),
    (["trainer.batch_size=16"], ["trainer.batch_size"]),
    (["trainer.precision=bf16"], ["trainer.precision"]),
    (["data.val_fraction=0.2"], ["data.val_fraction"]),
    (["data.sequence_length=8"], ["data.sequence_length"]),
    (["data.document_mask=true"], ["data.document_mask"]),
    (
        ["data.split=tail", "model.n_heads=4", "trainer.seed=3"],
        ["data.split", "model.n_heads", "trainer.seed"],
    ),
]


def test_another_run_is_not_resumed(trained: Path, tmp_path: Path, figure: Figure) -> None:
    """A resume with other settings exits with 2 and prints a line for each key and advice. Nothing
    in the folder changes.
    """
    folder = copied(trained, tmp_path / "copy")
    before = {
        path: path.stat().st_mtime_ns
        for path in (folder / "run").rglob("*")
        if path.name != ".lock" and not path.is_dir()
    }
    for overrides, keys in OTHER_RUNS:
        process = start(folder, "--resume", "auto", *(f"--{override}" for override in overrides))
        assert process.wait() == 2, process.err
        *lines, advice = process.err.splitlines()
        assert sorted(line.partition(": the run to resume has ")[0] for line in lines) == sorted(
            keys
        ), process.err
        assert advice.startswith("write what it has to resume it, or --init-from")
    with (folder / "corpus.txt").open("a") as file:
        file.write("\n\nOne more paragraph.\n")
    process = start(folder, "--resume", "auto", "--trainer.max_steps=15")
    assert process.wait() == 2
    assert process.err.count("\n") == 1 and process.err.startswith(
        "data.source: the text is not the one that "
    )
    assert before == {
        path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path in before
    }
    count = len(OTHER_RUNS) + 1
    figure(
        f"{count} of {count} changes of model, data, tokenizer, seed, batch, precision and text"
        " refused: exit 2, a line for each key"
    )


def test_a_second_process_in_a_live_run(tmp_path: Path) -> None:
    config_file(
        tmp_path,
        trainer={"max_steps": 100_000, "batch_size": 8, "validate_every": 100_000, "device": "cpu"},
    )
    first = start(tmp_path)
    deadline = time.monotonic() + 60
    while not step_directories(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "config.yaml", tmp_path / "second")
    for arguments in (), ("--resume", "auto"):
        second = start(tmp_path / "second", *arguments)
        assert second.wait() == 2
        assert (
            second.err.count("\n") == 1
            and f"is in use by another run (process {first.pid})" in second.err
        )
    before = steps(tmp_path / "run")[-1]
    while steps(tmp_path / "run")[-1] == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert steps(tmp_path / "run")[-1] > before, "the first goes on"
    assert first.kill() == -9
    assert all(Checkpoint(path).manifest for path in step_directories(tmp_path / "run"))
    third = start(tmp_path / "second", "--resume", "auto", "--trainer.max_minutes=1e-9")
    assert third.wait() == 0, third.err
