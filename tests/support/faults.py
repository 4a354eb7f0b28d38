"""Make checkpoints without torch, act as a user who is not root, and kill -9 a function between any
two of its disk operations.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm.checkpoints.folder import Checkpoint, step_name
from lm.checkpoints.write import write_checkpoint, write_json

ROOT = Path(__file__).parents[2]
DISK_EVENTS = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)
_clock = {"until": -1}  # the number of disk operations until the kill


def save(folder: Path, step: int, weights: bytes = b"weights", **meta: Any) -> Path:
    """Write a checkpoint as training does, with `weights` for tensors, and return its folder."""
    content = {
        "format": 1,
        "step": step,
        "model": {},
        "tokenizer": {"name": "byte"},
        "config": {},
        "seconds": 1.5,
    } | meta
    path = folder / step_name(step)
    write_checkpoint(
        path,
        {
            "model.safetensors": lambda file: _in_two_halves(file, weights),
            "train_state.pt": lambda file: _in_two_halves(file, weights[::-1]),
            "tokenizer.json": lambda file: _in_two_halves(file, b"{}"),
            "meta.json": lambda file: write_json(file, content),
        },
    )
    return path


def sealed(path: Path, **files: bytes) -> Path:
    """Put other content into a checkpoint and update the manifest, as an attacker could."""
    contents = {name: (path / name).read_bytes() for name in Checkpoint(path).files}
    contents |= {name.replace("__", "."): content for name, content in files.items()}
    shutil.rmtree(path)
    write_checkpoint(
        path,
        {
            name: lambda file, content=content: file.write_bytes(content)
            for name, content in contents.items()
        },
    )  # type: ignore[misc]
    return path


@contextmanager
def not_root(folder: Path) -> Iterator[None]:
    """Act as a user who is not root, because no folder is read-only for root. `folder` stays open
    to this user.
    """
    user = os.geteuid()
    folder.chmod(0o777)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def kill_everywhere(module: str, folder: Path) -> int:
    """Kill the module's `act(folder)` with kill -9 before each of its disk operations.
    `check(folder)` must hold each time. Return the number of kills.

    `prepare(folder)` comes first, each time in a new folder. Another process does all of this,
    because it forks and this process may have threads.
    """
    code = f"from tests.support import faults; faults.drive({module!r}, {str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def drive(module_and_scenario: str, folder: str) -> None:
    """Do the work of `kill_everywhere` in the other process."""
    module, scenario = module_and_scenario.split(":")
    actions = getattr(importlib.import_module(module), scenario)
    kills = 0
    while True:
        here = Path(folder) / f"{kills}" / "run"
        here.mkdir(parents=True)
        actions.prepare(here)
        child = os.fork()
        if child == 0:
            _live_until(kills, here.parent)
            actions.act(here)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"exit status {status}"
        try:
            actions.check(here)
        except BaseException:
            print(f"after {kills} disk operations", file=sys.stderr)
            raise
        if status == 0:
            break
        kills += 1
        shutil.rmtree(here.parent)
    print(kills)


def tick() -> None:
    """Count a disk operation, and kill this process before the chosen one."""
    if _clock["until"] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    _clock["until"] -= 1


def _live_until(operations: int, folder: Path) -> None:
    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in DISK_EVENTS and any(
            str(argument).startswith(str(folder)) for argument in arguments
        ):
            tick()

    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        tick()
        fsync(descriptor)

    os.fsync = watched_fsync
    sys.addaudithook(watch)
    _clock["until"] = operations


def _in_two_halves(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content[: len(content) // 2])
        stream.flush()
        tick()
        stream.write(content[len(content) // 2 :])
