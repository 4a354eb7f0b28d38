"""Locks that the system releases when their process ends, however it ends.

`claim` keeps other runs out of a run's folder, `hold` waits for its turn, and `try_hold` returns at
once. This is the only module that calls flock. Some network file systems do not know it: there a
run of one process goes on without the lock, and says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lm.system.disk import open_to_append, read_bytes
from lm.system.environment import count_processes
from lm.system.errors import CheckpointError, ConfigError
from lm.system.refusal import remark, why

# answers of a file system that does not know locks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def claim(folder: Path) -> BinaryIO:
    """Claim a run's folder until the returned file is closed or this process ends. The folder is
    created if it does not exist.

    Raises:
        ConfigError: another process has claimed the folder.
        CheckpointError: the folder cannot be created, written or locked.
    """
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open_to_append(lock)
    except OSError as error:
        reason = why(error, lock)
        if isinstance(error, FileExistsError):
            reason = "it is a broken link" if folder.is_symlink() else "it is a file"
        elif os.path.lexists(lock) and error.errno in (errno.ELOOP, errno.EISDIR, errno.EINVAL):
            reason = f"{lock} is not a file of a run; remove it"
        raise CheckpointError(
            f"checkpoint.directory: {folder} cannot be a run's folder: {_with_help(reason)}"
        ) from error
    # A forked worker that outlives a killed run must not hold the lock for it.
    os.register_at_fork(after_in_child=file.close)
    try:
        locked = _lock(file, fcntl.LOCK_EX)
        if locked is None:
            _remark_on(folder)
        if locked is False:
            file.seek(0)
            holder = file.read(32).decode(errors="replace").strip() or "unknown"
            file.close()
            raise ConfigError(
                f"checkpoint.directory: {folder} is in use by another run (process {holder}); wait"
                " for it, stop it, or name another folder"
            )
        # The last holder may have removed the file before this process locked it. A lock on a
        # removed file keeps nobody out.
        if not _is_file_at(lock, file):
            file.close()
            return claim(folder)
        file.seek(0)
        if not re.fullmatch(rb"\d*\n?", file.read(32)):  # it may even be a hard link to a text
            file.close()
            raise CheckpointError(
                f"checkpoint.directory: {lock} is not the lock of a run: it holds other text; move"
                " it away"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint.directory: {folder} cannot be locked: {_with_help(why(error, lock))}"
        ) from error
    return file


def _with_help(reason: str) -> str:
    """Return a reason with what helps, unless it says that already."""
    return reason if ";" in reason or ":" in reason else f"{reason}; name another"


def is_claimed(folder: Path) -> bool:
    """Return whether a process has claimed the folder, without changing the folder."""
    try:
        with (folder / ".lock").open("rb") as file:
            return _lock(file, fcntl.LOCK_SH) is False  # closing the file releases the lock
    except OSError:
        return False


def was_claimed(folder: Path) -> bool:
    """Return whether a folder's lock names a process that has claimed the folder at some time."""
    with contextlib.suppress(OSError):
        return re.fullmatch(rb"\d+\n", read_bytes(folder / ".lock", most=32)) is not None
    return False


@contextlib.contextmanager
def hold(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on a file in a `with` block. If another process holds it, call `on_wait` and
    wait.

    Raises:
        CheckpointError: the file system has no locks, and the run has several processes.
    """
    with open_to_append(path) as file:
        locked = _lock(file, fcntl.LOCK_EX)
        if locked is None and count_processes() > 1:
            raise CheckpointError(
                f"data.cache_dir: {path.parent} has no locks, and several processes would build the"
                " tokens at once; run tools.prepare first, or name a folder on a local disk"
            )
        if locked is None:
            _remark_on(path.parent)
        if locked is False:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def try_hold(path: Path, shared: bool = False) -> Iterator[bool]:
    """Hold the lock on a file in a `with` block, unless another process holds it: then yield False.

    Args:
        path: the file, created if it does not exist.
        shared: holders of a shared lock do not exclude each other, only an exclusive holder.

    Raises:
        CheckpointError: the file system has no locks.
    """
    with open_to_append(path) as file:  # NFS wants the file open for reading and for writing
        locked = _lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        if locked is None:
            raise CheckpointError(
                f"data.cache_dir: {path.parent} has no locks, and a streamed text needs them; name"
                " a folder on a local disk"
            )
        yield locked


def _lock(file: BinaryIO, kind: int) -> bool | None:
    """Try to lock a file. Return False if another process holds a lock that forbids it, and None
    if the file system has no locks.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _remark_on(folder: Path) -> None:
    remark(
        f"{folder}: this file system has no locks, so nothing keeps a second run out: start one at"
        " a time"
    )


def _is_file_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
