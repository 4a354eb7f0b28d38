"""Locks that the system releases when their process ends, however it ends.

`claim` keeps other runs out of a run's folder, `hold` waits for its turn, and `try_hold` returns at
once. This is the only module that calls flock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lm.system.errors import CheckpointError, ConfigError


def claim(folder: Path) -> BinaryIO:
    """Claim a run's folder until the returned file is closed or this process ends. The folder is
    created if it does not exist.

    Raises:
        ConfigError: another process has claimed the folder.
        CheckpointError: the folder cannot be created, written or locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+b")
    except OSError as error:
        reason = error.strerror
        if isinstance(error, FileExistsError):
            reason = "it is a broken link" if folder.is_symlink() else "it is a file"
        raise CheckpointError(
            f"checkpoint.directory: {folder} cannot be a run's folder: {reason}; name another"
        ) from error
    # A forked worker that outlives a killed run must not hold the lock for it.
    os.register_at_fork(after_in_child=file.close)
    try:
        if not _lock(file, fcntl.LOCK_EX):
            file.seek(0)
            holder = file.read(32).decode(errors="replace").strip() or "unknown"
            file.close()
            raise ConfigError(
                f"checkpoint.directory: {folder} is in use by another run (process {holder}); wait"
                " for it, stop it, or name another folder"
            )
        # The last holder may have removed the file before this process locked it. A lock on a
        # removed file keeps nobody out.
        if not _is_file_at(folder / ".lock", file):
            file.close()
            return claim(folder)
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint.directory: {folder} cannot be locked: {error.strerror}; name another"
        ) from error
    return file


def is_claimed(folder: Path) -> bool:
    """Return whether a process has claimed the folder, without changing the folder."""
    try:
        with (folder / ".lock").open("rb") as file:
            return not _lock(file, fcntl.LOCK_SH)  # closing the file releases the lock
    except OSError:
        return False


@contextlib.contextmanager
def hold(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on a file in a `with` block. If another process holds it, call `on_wait` and
    wait.
    """
    with path.open("wb") as file:
        if not _lock(file, fcntl.LOCK_EX):
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def try_hold(path: Path, shared: bool = False) -> Iterator[bool]:
    """Hold the lock on a file in a `with` block, unless another process holds it: then yield False.

    Args:
        path: the file, created if it does not exist.
        shared: holders of a shared lock do not exclude each other, only an exclusive holder.
    """
    with path.open("a+b") as file:  # NFS wants the file open for reading and for writing
        yield _lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def _lock(file: BinaryIO, kind: int) -> bool:
    """Try to lock a file. Return False if another process holds a lock that forbids it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_file_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
