"""Files on a disk that may be full, fail, or lose power in the middle of a write. Only the standard
library.
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
from typing import Any

from lm.system.errors import CheckpointError
from lm.system.units import in_bytes

MOST_JSON = 2**24  # bytes; what we write has some kilobytes


@contextlib.contextmanager
def refusals(path: Path, needed: int = 0) -> Iterator[None]:
    """While `path` is written: what the disk refuses becomes a CheckpointError that says how much
    room there is, and is `needed`.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save tells of a full disk by one that names its zip writer; any other is a device's,
        # and not the disk's fault.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} could not be written: {reason}{_room(path, needed)}; what was saved before is"
            " untouched"
        ) from error


def sync(path: Path) -> None:
    """Wait until the disk has it. Directories too: a file's name lives there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, text: str) -> None:
    """Write a text file whole: whoever looks, whenever the power goes, finds the old content or the
    new.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with refusals(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def append(path: Path, line: str) -> None:
    """Add a line to a text file, durably. Where a kill has cut the last one, this one is not glued
    to it.
    """
    content = line.encode() + b"\n"
    with refusals(path), path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = b"\n" + content
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fingerprint(path: Path) -> dict[str, Any]:
    """A file's size and hash: {"bytes", "sha256"}."""
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def read_start(path: Path | str, most: int) -> bytes:
    """The first bytes of what a person named, a pipe (`<(command)`) or device too; of what is
    longer, one more than `most`. Raises OSError.

    Opened without waiting: into a pipe of which nobody has the other end, nobody will write. What
    has a writer is waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most + 1)


def read_text(path: Path, most: int = MOST_JSON, errors: str = "strict") -> str:
    """A UTF-8 file of at most so many bytes, and nothing else under its name: a pipe would be
    waited for, /dev/zero never ends.

    Raises:
        OSError: it cannot be read, or is not such a file.
        UnicodeDecodeError: it is not UTF-8, unless `errors` lets that pass.
    """
    # Without O_NONBLOCK a pipe could not even be opened before someone writes into it.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most / 2**20:,.0f} MiB", str(path))
    return content.decode(errors=errors)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises CheckpointError."""
    try:
        value = json.loads(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it should hold a JSON object")
    return value


def require_room(folder: Path, size: int, situation: str) -> None:
    """Raises CheckpointError where a folder's disk has not room for another `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise CheckpointError(
            f"{folder}: {situation}: the next checkpoint takes {in_bytes(size)}, and"
            f" {in_bytes(free)} are free; make room and go on with --resume auto"
        )


def _room(path: Path, needed: int) -> str:
    wanted = f"{in_bytes(needed)} needed, " if needed else ""
    try:
        return f" ({wanted}{in_bytes(shutil.disk_usage(path.parent).free)} free)"
    except OSError:
        return ""
