"""Checkpoints survive disks that are full, fail, or lose power, tested with real system calls:
python -m pytest tests/reliability/test_disk.py (as root).
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lm.checkpoints.folder import Checkpoint, newest_whole, step_directories, step_name, step_of
from lm.checkpoints.weights import write_state, write_weights
from lm.checkpoints.write import point, retain, write_checkpoint, write_json
from lm.runs.folder import RunFolder
from lm.system import errors
from tests.support.forked import Forked, finish, gate, kill_at, start, unfinished
from tests.support.runs import config_file, large_state
from tests.training.test_train import assert_same_run

pytestmark = pytest.mark.usefixtures("starts_processes")

Amount = Callable[[int, int], int]
Figure = Callable[[str], None]
CHANGES = (
    "mkdir,openat,write,writev,pwrite64,ftruncate,fallocate,fsync,fdatasync,rename,renameat,renameat2,"
    "symlink,symlinkat,unlink,unlinkat,rmdir,chmod,fchmod,fchmodat"
)
CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*?)(?: <unfinished \.\.\.>|\) += (.*))?$")


def require(tool: str) -> str:
    found = shutil.which(tool)
    assert found, f"{tool} is not installed: these tests cannot be made without it"
    assert os.geteuid() == 0, f"{tool}, as these tests use it, is for root"
    return found


# A writer under strace


def write_two(folder: Path, ready: Any, attached: Any) -> None:
    """Write checkpoints 2 and 3 after 1, which is deleted; then write 3 again."""
    (folder.parent / "elsewhere").mkdir(exist_ok=True)
    # the first write opens more files, which would be counted
    write_one(folder.parent / "elsewhere", 1, 0.0)
    ready.set()
    attached.wait()

    def act() -> None:
        for step, value in ((2, 2.0), (3, 3.0), (3, 3.5)):
            write_one(folder, step, value)

    errors.run(act)
    os._exit(0)


def write_one(folder: Path, step: int, value: float) -> None:
    tensors = {"a": torch.full((50, 70), value), "b": torch.full((3,), value)}
    meta = {"format": 1, "step": step, "model": {}, "tokenizer": {}, "config": {}}
    writers = {
        "model.safetensors": lambda path: write_weights(path, tensors),
        "train_state.pt": lambda path: write_state(path, {"step": step, "optimizer": tensors}),
        "tokenizer.json": lambda path: path.write_text("{}"),
        "meta.json": lambda path: write_json(path, meta),
    }
    write_checkpoint(folder / step_name(step), writers)
    point(folder, "last.ckpt", folder / step_name(step))
    retain(folder, keep=2)


def assert_readable(path: Path, values: tuple[float, ...]) -> None:
    """Check that every tensor is there, and that one of these values fills all of them."""
    weights = load_file(path / "model.safetensors")
    state = torch.load(path / "train_state.pt", weights_only=True)["optimizer"]
    found = {
        float(value)
        for tensors in (weights, state)
        for tensor in tensors.values()
        for value in tensor.unique()
    }
    assert len(found) == 1 and found < {*values}
    assert weights["a"].shape == state["a"].shape == (50, 70)


def traced(process: Forked, opened: Any, log: Path, *options: str) -> tuple[int, list[str]]:
    """Attach strace to a process that waits for `opened`. Return its exit code and its system
    calls; `options` are strace's.
    """
    command = [
        require("strace"),
        "-f",
        "-qq",
        "-y",
        "-s",
        "0",
        "-o",
        str(log),
        *options,
        "-p",
        str(process.pid),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        while "TracerPid:\t0" in Path(f"/proc/{process.pid}/status").read_text():
            assert strace.poll() is None, strace.stderr.read() if strace.stderr else ""
            time.sleep(0.001)
        opened.set()
        code = process.wait()
    return code, log.read_text().splitlines()


class Writer:
    """A folder with checkpoint 1, and `write_two` in it under strace."""

    def __init__(self, tmp_path: Path):
        self.folder = tmp_path / "run"
        self.log = tmp_path / "strace.log"
        self.output = tmp_path / "log"

    def run(self, *options: str) -> tuple[int, list[str], str]:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        write_one(self.folder, 1, 1.0)
        RunFolder(self.folder).close()  # its mark is in temporary names
        ready, opened = gate(), gate()
        process = Forked(self.output, write_two, self.folder, ready, opened)
        assert ready.wait(60)
        code, lines = traced(process, opened, self.log, *options)
        return code, lines, process.err

    def calls(self) -> list[tuple[str, int, str]]:
        """Return every system call that changes something: its name, its number among those of that
        name, and its arguments.
        """
        code, lines, _ = self.run("-e", f"trace={CHANGES}")
        assert code == 0
        seen: Counter[str] = Counter()
        found = []
        for line in lines:
            match = CALL.match(line)
            assert match, line
            seen[match[1]] += 1
            found.append((match[1], seen[match[1]], match[2]))
        assert {"mkdir", "openat", "write", "fsync", "rename", "symlink"} <= {*seen}
        assert all(str(self.folder) in call or "O_RDONLY" in call for _, _, call in found), (
            "nothing else, so that each run of it has the same ones"
        )
        return found

    def swept(self) -> Path:
        """Return the newest checkpoint after the next session has opened the folder. Check that all
        checkpoints are whole and nothing else is there.
        """
        for path in step_directories(self.folder):
            Checkpoint(path).verify()
        RunFolder(self.folder).close()
        assert not [path.name for path in self.folder.iterdir() if ".tmp" in path.name]
        newest, problems = newest_whole(self.folder)
        assert newest is not None and problems == []
        assert_readable(newest.path, (1.0, 2.0, 3.0, 3.5))
        return newest.path


def sample(things: list[Any], number: int) -> list[Any]:
    return things if number >= len(things) else sorted(random.Random(0).sample(things, number))


def test_killed_before_every_system_call(tmp_path: Path, amount: Amount, figure: Figure) -> None:
    """A kill by strace at the k-th call of any name leaves the old or the new checkpoint."""
    writer = Writer(tmp_path)
    calls = [(name, number) for name, number, _ in writer.calls()]
    chosen = sample(calls, amount(15, len(calls)))
    for name, number in chosen:
        code, lines, _ = writer.run(
            "-e", f"trace={CHANGES}", "-e", f"inject={name}:signal=KILL:when={number}"
        )
        assert code == -9 and "killed by SIGKILL" in lines[-1], (
            f"{name} number {number} was not reached"
        )
        made = [
            int(step)
            for step in re.findall(
                r'rename\("[^"]*\.tmp-[0-9a-f-]+", "[^"]*step-(\d+)\.ckpt"\) = 0', "\n".join(lines)
            )
        ]
        assert step_of(writer.swept()) == max([1, *made]), f"before {name} number {number}"
    assert len(chosen) == len(calls) or not amount(0, 1)
    names = Counter(name for name, _ in chosen)
    shown = ", ".join(f"{count} {name}" for name, count in names.most_common())
    figure(
        f"{len(chosen)} of {len(chosen)} kills, each before a system call of three saves ({shown}):"
        " the old or the new one"
    )


def test_failing_calls(tmp_path: Path, amount: Amount, figure: Figure) -> None:
    """EIO, ENOSPC or EROFS at any call that changes something ends with exit code 5 and one line.
    The checkpoints stay whole.
    """
    writer = Writer(tmp_path)
    touching = [
        (name, number)
        for name, number, arguments in writer.calls()
        if f"{writer.folder}/" in arguments or name == "fsync"
    ]
    kinds = (
        "write",
        "writev",
        "pwrite64",
        "ftruncate",
        "fallocate",
        "fsync",
        "rename",
        "renameat",
        "mkdir",
        "symlink",
    )
    faults = [
        (name, number, error)
        for name, number in touching
        if name in kinds
        for error in ("EIO", "ENOSPC", "EROFS")
    ]
    chosen = sample(faults, amount(15, len(faults)))
    refused = 0
    for name, number, error in chosen:
        code, lines, told = writer.run(
            "-e", f"trace={CHANGES}", "-e", f"inject={name}:error={error}:when={number}"
        )
        assert any("(INJECTED)" in line for line in lines), (
            f"{name} number {number} was not reached"
        )
        newest = writer.swept()
        if code == 0:  # the writer tried again and succeeded
            assert step_of(newest) == 3
            assert_readable(newest, (3.0, 3.5))
        else:
            refused += 1
            assert code == 5, told
            assert told.count("\n") == 1 and str(writer.folder) in told, told
            assert os.strerror(getattr(errno, error)) in told, told
            assert error != "ENOSPC" or "B free)" in told, told
    assert refused >= 0.8 * len(chosen)
    figure(
        f"{refused} of {len(chosen)} EIO, ENOSPC and EROFS: exit 5 and a line that names the file;"
        " checkpoints whole in all of them"
    )


# A training run under strace


def test_order_of_writes(tmp_path: Path, figure: Figure) -> None:
    """Each checkpoint of train.py is written, flushed, its folder flushed, renamed, and the parent
    flushed, in this order.
    """
    config_file(tmp_path)
    finish(tmp_path)
    shutil.rmtree(tmp_path / "run")
    opened = gate()
    process = start(tmp_path, gate=opened)
    code, lines = traced(process, opened, tmp_path / "strace.log", "-e", f"trace={CHANGES}")
    assert code == 0, process.err
    run = tmp_path / "run"
    orders = [order_of(lines, path) for path in step_directories(run)]
    assert len(orders) == 6
    for path, events in zip(step_directories(run), orders, strict=True):
        files = sorted(entry.name for entry in path.iterdir())
        assert (
            len(files) == 6
            and sorted({name for event, name in events if event == "write" and name}) == files
        )
        last_write = {name: index for index, (event, name) in enumerate(events) if event == "write"}
        synced = {name: index for index, (event, name) in enumerate(events) if event == "fsync"}
        assert all(last_write[name] < synced[name] for name in files), (
            "each file is flushed after its last write"
        )
        order = [
            max(synced[name] for name in files),
            synced["."],
            events.index(("rename", "")),
            synced[".."],
        ]
        assert order == sorted(order), "then its folder, then the rename, then the parent"
    count = sum(len([*path.iterdir()]) for path in step_directories(run))
    figure(
        f"{len(orders)} of {len(orders)} checkpoints ({count} files): written, flushed, folder"
        " flushed, renamed, parent flushed"
    )


def order_of(lines: list[str], path: Path) -> list[tuple[str, str]]:
    """Return the events of a checkpoint up to the flush after its rename: ("write", file),
    ("fsync", file), ("fsync", "." or ".."), ("rename", "").
    """
    temporary = re.compile(
        rf"{re.escape(str(path.parent))}/\.{re.escape(path.name)}\.tmp-[0-9a-f-]+"
    )
    events: list[tuple[str, str]] = []
    file = re.compile(rf"{temporary.pattern}/([^\">]+)")
    for line in lines:
        match = CALL.match(line)
        if match is None or match[3] is None or match[3].startswith("-1"):
            continue
        name, arguments = match[1], match[2]
        inside = temporary.search(arguments)
        if name in ("write", "writev", "pwrite64", "ftruncate") and inside:
            events.append(("write", arguments[inside.end() :].partition(">")[0].removeprefix("/")))
        elif name == "fsync" and inside:
            events.append(
                ("fsync", arguments[inside.end() :].partition(">")[0].removeprefix("/") or ".")
            )
        elif (
            name in ("rename", "renameat") and inside and len(names := file.findall(arguments)) == 2
        ):  # safetensors gives a file its name last
            events = [(event, names[1] if of == names[0] else of) for event, of in events]
        elif name == "rename" and inside:
            events.append(("rename", ""))
        elif name == "fsync" and f"<{path.parent}>" in arguments and ("rename", "") in events:
            return [*events, ("fsync", "..")]
    return events


# Small disks


@contextmanager
def disk(path: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a file system in memory with room for so many kilobytes."""
    path.mkdir(exist_ok=True)
    subprocess.run(
        [require("mount"), "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)],
        check=True,
    )
    try:
        yield path
    finally:
        subprocess.run([require("umount"), str(path)], check=True)


def test_kills_where_the_run_is_on_another_file_system_than_tmpdir(
    tmp_path: Path, amount: Amount, figure: Figure
) -> None:
    """Kills during a write to another file system leave no corrupt checkpoint and no file in
    $TMPDIR.
    """
    wanted = amount(3, 25)
    large_state(tmp_path, steps=4 * wanted, run=tmp_path / "disk" / "run")
    rng, in_write = random.Random(3), 0
    with disk(tmp_path / "disk", 200_000) as mounted:
        run = mounted / "run"
        assert mounted.stat().st_dev != tmp_path.stat().st_dev
        kills = 0
        while in_write < wanted:
            assert kill_at(
                start(tmp_path, "--resume", "auto"), run, rng, in_write=True, longest=0
            ), "finished: too few steps"
            kills += 1
            in_write += bool(unfinished(run))
            assert newest_whole(run)[1] == []
            assert [*(tmp_path / "tmp").iterdir()] == []
        finish(tmp_path, "--resume", "auto")
        for path in step_directories(run):
            Checkpoint(path).verify()
        assert not unfinished(run) and [*(tmp_path / "tmp").iterdir()] == []
    figure(
        f"{in_write} of {in_write} kills within a write to another file system ({kills} in all): 0"
        " corrupt, 0 stray files in $TMPDIR"
    )


@pytest.fixture
def straight(tmp_path: Path, starts_processes: None) -> Path:
    """Return the folder of a run that never met a fault. The other runs use its token cache."""
    folder = tmp_path / "straight"
    folder.mkdir()
    config_file(
        folder,
        checkpoint={"directory": str(folder / "run"), "save_every": 3, "keep": 2},
        logging=LOGGING,
    )
    finish(folder)
    return folder


LOGGING = {"every": 1, "sample_tokens": 8, "tensorboard": True}


def beside(straight: Path, folder: Path, run: Path) -> None:
    """Write a configuration of the same run into another folder."""
    folder.mkdir(exist_ok=True)
    data = {"cache_dir": str(straight / "cache")}
    config_file(
        folder, checkpoint={"directory": str(run), "save_every": 3, "keep": 2}, logging=LOGGING
    )
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        text.replace(f"cache_dir: {folder / 'cache'}", f"cache_dir: {data['cache_dir']}")
    )


def assert_told(process: Forked, run: Path, reason: str) -> None:
    assert process.wait() == 5, (process.out[-500:], process.err)
    assert process.err.count("\n") == 1 and reason in process.err and str(run) in process.err, (
        process.err
    )
    assert re.search(r"\(([\d.]+ [kMGT]?B needed, )?[\d.]+ [kMGT]?B free\)", process.err), (
        process.err
    )


def size_of(checkpoint: Path) -> int:
    return sum(file.stat().st_size for file in checkpoint.iterdir())


def test_a_full_disk_at_many_sizes(
    straight: Path, tmp_path: Path, amount: Amount, figure: Figure
) -> None:
    """A full disk ends the run with exit code 5 and one line, and all checkpoints are whole. With
    more room the same command reaches the same weights.
    """
    sizes, with_previous = amount(4, 20), 0
    need = 3 * size_of(straight / "run" / "final.ckpt") // 1024
    folder = tmp_path / "small"
    run = folder / "disk" / "run"
    beside(straight, folder, run)
    for number in range(1, sizes + 1):
        with disk(folder / "disk", max(12, need * number // (sizes + 1))) as mounted:
            assert_told(
                start(folder, "--resume", "auto", foreseeing=False), run, "No space left on device"
            )
            assert newest_whole(run)[1] == []
            with_previous += bool(step_directories(run))
            assert not [path.name for path in run.rglob("*") if ".tmp" in path.name]
            subprocess.run([require("mount"), "-o", "remount,size=64m", str(mounted)], check=True)
            finish(folder, "--resume", "auto")
            assert_same_run(straight / "run", run)
            assert [*(folder / "tmp").iterdir()] == []
            assert not [*run.parent.glob("run-*")], (
                "a start that came to no checkpoint leaves nothing behind"
            )
    assert with_previous >= sizes // 4
    figure(
        f"{sizes} of {sizes} sizes of a full disk ({with_previous} with a checkpoint before): exit"
        " 5, one line; with room the same run"
    )


def test_a_full_disk_that_is_foreseen(
    straight: Path, tmp_path: Path, amount: Amount, figure: Figure
) -> None:
    """If nothing else fills the disk, the run is refused before its first step, or saves and stops
    before a checkpoint lacks room.
    """
    sizes, stopped = amount(4, 20), 0
    one = size_of(straight / "run" / "final.ckpt") // 1024
    folder = tmp_path / "small"
    run = folder / "disk" / "run"
    beside(straight, folder, run)
    for number in range(1, sizes + 1):
        with disk(folder / "disk", one + 2 * one * number // sizes) as mounted:
            process = start(folder, "--resume", "auto")
            assert process.wait() == 5
            assert process.err.count("\n") == 1
            refused = re.match(
                rf"checkpoint.directory: {run} has .* free, and a checkpoint of this run takes",
                process.err,
            )
            saved = re.match(
                rf"{run}: saved at step (\d+), and stopped before the disk is full: the next"
                r" checkpoint takes",
                process.err,
            )
            assert refused or saved, process.err
            if saved:
                stopped += 1
                assert newest_whole(run)[0].step == int(saved[1])
            assert not [path.name for path in run.rglob("*") if ".tmp" in path.name]
            subprocess.run([require("mount"), "-o", "remount,size=64m", str(mounted)], check=True)
            finish(folder, "--resume", "auto")
            assert_same_run(straight / "run", run)
    assert 0 < stopped < sizes
    figure(
        f"{sizes} of {sizes} sizes of a disk too small: {sizes - stopped} refused before the first"
        f" step, {stopped} stopped and saved"
    )


def test_files_that_may_not_grow(
    straight: Path, tmp_path: Path, amount: Amount, figure: Figure
) -> None:
    """A limit on file sizes ends the run with exit code 5 and one line. This needs no mount."""
    largest = max(file.stat().st_size for file in (straight / "run" / "final.ckpt").iterdir())
    limits = [8192 + (largest - 8192) * number // 10 for number in range(10)][:: amount(5, 1)]
    folder = tmp_path / "limited"
    beside(straight, folder, folder / "run")
    for limit in limits:
        assert_told(
            start(folder, "--resume", "auto", largest_file=limit), folder / "run", "File too large"
        )
        assert newest_whole(folder / "run") == (None, [])
        assert not unfinished(folder / "run")
    finish(folder, "--resume", "auto")
    assert_same_run(straight / "run", folder / "run")
    assert not [*folder.glob("run-*")], "a start that came to no checkpoint leaves nothing behind"
    figure(f"{len(limits)} of {len(limits)} limits on a file's size: exit 5 and one line")


def test_a_disk_that_turns_read_only(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frozen"
    run = folder / "disk" / "run"
    beside(straight, folder, run)
    with disk(folder / "disk", 64_000) as mounted:
        process = start(folder, "--resume", "auto", "--trainer.max_minutes=1e-9")
        assert process.wait() == 0
        subprocess.run([require("mount"), "-o", "remount,ro", str(mounted)], check=True)
        refused = start(folder, "--resume", "auto")
        assert refused.wait() == 5
        assert (
            refused.err.count("\n") == 1
            and str(run) in refused.err
            and "Read-only file system" in refused.err
        )
        subprocess.run([require("mount"), "-o", "remount,rw", str(mounted)], check=True)
        finish(folder, "--resume", "auto")
        assert_same_run(straight / "run", run)


@pytest.mark.parametrize("kilobytes", [4, 8, 12])
def test_no_room_for_the_token_cache(tmp_path: Path, kilobytes: int) -> None:
    config_file(tmp_path, data={"cache_dir": str(tmp_path / "disk" / "cache")})
    with disk(tmp_path / "disk", kilobytes):
        process = start(tmp_path)
        assert process.wait() == 5
        said = (
            f"data.cache_dir: {tmp_path / 'disk' / 'cache'} cannot be written: No space left on"
            " device; free some space there, or name another folder\n"
        )
        assert process.err == said


def test_a_read_only_disk_for_the_token_cache(tmp_path: Path) -> None:
    cache = tmp_path / "disk" / "cache"
    config_file(tmp_path, data={"cache_dir": str(cache)})
    with disk(tmp_path / "disk", 1000) as mounted:
        subprocess.run([require("mount"), "-o", "remount,ro", str(mounted)], check=True)
        process = start(tmp_path)
        assert process.wait() == 5
        assert process.err == (
            f"data.cache_dir: {cache} cannot be written: Read-only file system; mount it for"
            " writing (after a disk error, dmesg says why it is read-only), or name another"
            " folder\n"
        )


@pytest.mark.parametrize("kilobytes", [32, 36, 40])
def test_the_logs_alone_fill_the_disk(straight: Path, tmp_path: Path, kilobytes: int) -> None:
    """A disk that the logs fill ends the run with one line. TensorBoard's writing thread prints no
    traceback.
    """
    folder = tmp_path / "logs"
    beside(straight, folder, folder / "disk" / "run")
    with disk(folder / "disk", kilobytes):
        process = start(
            folder,
            "--trainer.max_steps=2000",
            "--checkpoint.save_every=2000",
            "--trainer.validate_every=1900",
            foreseeing=False,
        )
        assert process.wait() == 5
        assert (
            process.err.count("\n") == 1
            and str(folder / "disk" / "run") in process.err
            and "No space left on device" in process.err
        )
