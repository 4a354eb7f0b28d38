"""A command inside this process, as a person types it: its exit code, its lines, and what it left
on the disk.
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

# seconds after which a command counts as hanging; what is refused is refused in far less than one
PATIENCE = 60


class Hangs(BaseException):
    """A command waits for something that never comes. Not an Exception: no `except` of the command
    may swallow it.
    """


@dataclass(frozen=True)
class Answer:
    """What a person and a script get to see."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Of stderr, where refusals are."""
        return self.err.splitlines()


def answer(command: str, *arguments: str | Path) -> Answer:
    """`python COMMAND.py ARGUMENTS...`, without the seconds that torch takes to be imported."""
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
    """Raise Hangs in the block after so many seconds."""

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
    """Everything below a folder but locks: kind, rights, last change, content. Two equal ones:
    nothing was written in between.
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
