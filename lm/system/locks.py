"""One process at a time in a run's folder: a lock that ends with the process, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from lm.system.errors import CheckpointError, ConfigError


def claim(path: Path) -> BinaryIO:
    """Claim a folder, which is made if need be, for as long as the returned file is open, at most
    as long as this process lives.

    Raises:
        ConfigError: another process has claimed it.
        CheckpointError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("a+b")
    except OSError as error:
        reason = error.strerror
        if isinstance(error, FileExistsError):
            reason = "it is a broken link" if path.is_symlink() else "it is a file"
        raise CheckpointError(
            f"checkpoint.directory: {path} cannot be a run's folder: {reason}; name another"
        ) from error
    # A worker process that outlives a killed run must not hold the lock for it.
    os.register_at_fork(after_in_child=file.close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # who held it took it away: this one guards nothing any more
        if not _is_file_at(path / ".lock", file):
            file.close()
            return claim(path)
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
    except BlockingIOError:
        file.seek(0)
        holder = file.read(32).decode(errors="replace").strip() or "unknown"
        raise ConfigError(
            f"checkpoint.directory: {path} is in use by another run (process {holder}); wait for"
            " it, stop it, or name another folder"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"checkpoint.directory: {path} cannot be locked: {error.strerror}; name another"
        ) from error
    return file


def is_claimed(path: Path) -> bool:
    """Whether a process holds a folder's claim at this moment; False too where there is nothing to
    ask. The folder is not changed.
    """
    try:
        with (path / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of when the file is closed
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_file_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
