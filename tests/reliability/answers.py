"""Run a command inside this process as a person types it. Record its exit code, its output and its
changes on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import signal
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest

from lm.system import errors

# A command that takes longer than these seconds hangs. A refusal takes far less than one.
PATIENCE = 60


class Hangs(BaseException):
    """A command waits for something that never comes. It is no Exception, so that no `except` of
    the command swallows it.
    """


@dataclass(frozen=True)
class Answer:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Return the lines of stderr, where refusals are printed."""
        return self.err.splitlines()


def answer(command: str, *arguments: str | Path) -> Answer:
    """Run `python COMMAND.py ARGUMENTS...` here, without the seconds that importing torch takes."""
    out, err = io.StringIO(), io.StringIO()
    module, code = importlib.import_module(command), 0
    with pytest.MonkeyPatch.context() as patch, within(PATIENCE):
        patch.setattr(sys, "argv", [f"{command}.py", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                errors.run(module.main)
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else int(left.code is not None)
    return Answer(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise Hangs if the block takes longer than so many seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hangs(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def picture(folder: Path) -> dict[str, str]:
    """Return kind, rights, last change and content of everything below a folder except locks. If
    two pictures are equal, nothing was written in between.
    """
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.name != ".lock"):
        status = path.lstat()
        what = f"{stat.filemode(status.st_mode)} {status.st_mtime_ns}"
        if path.is_symlink():
            what += f" -> {path.readlink()}"
        elif stat.S_ISREG(status.st_mode):
            what += (
                " " + hashlib.sha256(path.read_bytes()).hexdigest()
                if status.st_size < 2**24
                else f" {status.st_size}"
            )
        found[str(path.relative_to(folder))] = what
    return found
