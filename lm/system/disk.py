"""Reading and writing of files on a disk that may be full, fail, or lose power during a write.

The module imports only the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lm.system.errors import CheckpointError, first_line
from lm.system.mark import temporary
from lm.system.refusal import UNKNOWN_CALL, inodes_left, remark, why
from lm.system.regular import open_regular
from lm.system.units import in_bytes

MOST_JSON = 2**24  # bytes; our own files have some kilobytes


@contextlib.contextmanager
def refusals(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a disk's refusal to write `path`, inside a `with` block, into a CheckpointError.

    The message contains the free space and, if it is given, the `needed` space in bytes.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk by a RuntimeError that names its zip writer. Other
        # RuntimeErrors come from a device, not from the disk.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        reason = why(error, path) if isinstance(error, OSError) else first_line(error)
        raise CheckpointError(
            f"{path} could not be written: {reason}{_room(error, path, needed)}; what was saved"
            " before is untouched"
        ) from error


def sync(path: Path) -> None:
    """Wait until the disk has stored a file, or a directory: it holds the names of its files."""
    with _tolerating_unknown(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new, empty file. After the `with` block it replaces `path` atomically:
    after a crash there is either the old file or the new one.

    A device or a pipe is yielded itself, and is written as it is. A link is refused, unless it
    leads to one of those, as /dev/stdout does.

    Raises:
        OSError: the disk refused, or `path` is a folder, a link, or a pipe that nobody reads.
    """
    kind = path.lstat().st_mode if os.path.lexists(path) else stat.S_IFREG
    if stat.S_ISLNK(kind):
        kind = path.stat().st_mode if path.exists() else kind
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind) or stat.S_ISLNK(kind):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if stat.S_ISDIR(kind):
        raise OSError(errno.EISDIR, "it is a folder; name a file", str(path))
    if not stat.S_ISREG(kind):
        # held open: without O_NONBLOCK, opening a pipe that nobody reads would wait for ever
        held = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield path
        finally:
            os.close(held)
        return
    new = temporary(path)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield new
        sync(new)
        new.replace(path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # a disk that cannot be written refuses this too
            new.unlink(missing_ok=True)


def replace(path: Path, text: str) -> None:
    """Write a text file atomically, as `replacing` does. Raises CheckpointError."""
    with refusals(path), replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def open_to_append(path: Path) -> BinaryIO:
    """Open a regular file for reading and appending. It is created if it does not exist.

    Raises:
        OSError: it cannot be written, is a link, or is not a regular file.
    """
    return open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, "a+b")


def append(path: Path, line: str) -> None:
    """Append a line to a text file and wait until it is stored. If a crash has cut the last line,
    the new one still begins on a line of its own.
    """
    content = line.encode() + b"\n"
    with refusals(path), open_to_append(path) as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = b"\n" + content
        file.write(content)
        file.flush()
        with _tolerating_unknown(path):
            os.fsync(file.fileno())


def fingerprint(path: Path) -> dict[str, Any]:
    """Return a file's size and hash: {"bytes", "sha256"}."""
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def fingerprint_of(content: bytes) -> dict[str, Any]:
    """Return the size and hash that a file with this content has."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read_start(path: Path | str, most: int) -> bytes:
    """Return the content of a file, pipe (`<(command)`) or device, but at most `most` + 1 bytes.
    Raises OSError.

    The path is opened without waiting, because a pipe may have no writer. If it has one, reading
    waits for it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most + 1)


def read_bytes(path: Path, most: int = MOST_JSON) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        OSError: the file cannot be read, is too large, or is not a regular file.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most / 2**20:,.0f} MiB", str(path))
    return content


def read_text(path: Path, most: int = MOST_JSON, errors: str = "strict") -> str:
    """Return the content of a regular UTF-8 file of at most `most` bytes.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: the file is not UTF-8, unless `errors` allows that.
    """
    return read_bytes(path, most).decode(errors=errors)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds. Raises CheckpointError."""
    return read_json_bytes(path)[0]


def read_json_bytes(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the JSON object that a file holds, and the file's bytes. Raises CheckpointError."""
    try:
        content = read_bytes(path)
        value = json.loads(content.decode())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it should hold a JSON object")
    return value, content


@contextlib.contextmanager
def _tolerating_unknown(path: Path) -> Iterator[None]:
    """Go on where a file system does not know fsync: it loses only what a power cut can take."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNKNOWN_CALL:
            raise
        folder = path if path.is_dir() else path.parent
        remark(
            f"{folder}: this file system cannot be told to store a file now (fsync:"
            f" {error.strerror}): a power cut may take the newest checkpoint"
        )


def _room(error: Exception, path: Path, needed: int) -> str:
    """Return the needed and the free space, in parentheses, if space is what was missing."""
    if isinstance(error, OSError) and (
        error.errno not in (errno.ENOSPC, errno.EFBIG)
        or not inodes_left(path)
        or path.is_char_device()  # /dev/full
    ):
        return ""
    wanted = f"{in_bytes(needed)} needed, " if needed else ""
    try:
        return f" ({wanted}{in_bytes(shutil.disk_usage(path.parent).free)} free)"
    except OSError:
        return ""
