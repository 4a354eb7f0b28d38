"""What a person is told when something is wrong, and the exit code that a script gets to see.

Every mistake that a user can make ends in one `UserError`: a message that names the file and the key, what was wrong and what to write
instead. `run` is the one place that prints them and leaves.

| code | meaning |
|---|---|
| 0 | done (also: the time limit was reached, or the run had already finished) |
| 1 | an internal error, or out of memory; the traceback is in a file that the message names |
| 2 | usage or configuration |
| 3 | data |
| 4 | a loss or gradient that is not finite |
| 5 | a checkpoint that cannot be read, or a disk that cannot be written |
| 130, 143, 138 | stopped by Ctrl-C, SIGTERM, SIGUSR1 |
| 141 | the reader of the output went away (`| head`) |
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# What gloo and NCCL say when a process at the other end of a connection is gone.
LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UserError(Exception):
    """A mistake outside the program. The message is the whole answer that the user gets."""

    exit_code = 1


class ConfigError(UserError):
    """A wrong key, value or flag."""

    exit_code = 2


class DataError(UserError):
    """Text that cannot be read, or that is not enough."""

    exit_code = 3


class NonFiniteError(UserError):
    """A loss or gradient that is NaN or infinite."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another kind, or a disk that refuses one."""

    exit_code = 5


class Stopped(UserError):
    """A signal asked the run to stop; its work is saved. `exit_code` is 128 + the signal's number, as shells have it."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def run(main: Callable[[], None]) -> None:
    """Run a command's `main` and leave with a documented exit code: one plain message, never a traceback on the screen."""
    try:
        main()
        sys.stdout.flush()  # while a failure can still be answered: at its own exit Python would complain and return 120
    except UserError as error:
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        _leave("stopped by Ctrl-C", 130)
    except Exception as error:
        _leave(*_unexpected(error))
    finally:
        _let_go_of_dead_output()


def not_installed(error: ModuleNotFoundError) -> str:
    """The answer to the commonest first mistake: another Python than the one that `make setup` filled."""
    return f"{sys.executable} has no {error.name}: run `make setup` once, then `source .venv/bin/activate`"


def write_traceback() -> Path:
    """Write the current exception's traceback to a new file in the system's temporary folder."""
    handle, name = tempfile.mkstemp(prefix="tiny-transformer-error-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(traceback.format_exc())
    return Path(name)


def _unexpected(error: Exception) -> tuple[str, int]:
    """What to say about an exception that nobody turned into a UserError, and the exit code."""
    if isinstance(error, BrokenPipeError) and _reader_is_gone():  # else it was a pipe of our own, such as a worker's
        return "", 141
    if isinstance(error, OSError) and error.errno in DISK_REFUSALS:
        return f"{error.filename or 'a file'} could not be written: {error.strerror}", CheckpointError.exit_code
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in ("out of memory", "allocate memory")):
        summary = "out of memory; in training, a smaller trainer.micro_batch_size needs less"
    elif isinstance(error, RuntimeError) and any(words in str(error) for words in LOST_PROCESS):
        return "another process of this run has ended, and this one cannot go on alone; that one's message, or its launcher's, says why", 1
    elif isinstance(error, ModuleNotFoundError):
        return not_installed(error), ConfigError.exit_code
    else:
        summary = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
    try:
        return f"{summary} (the traceback is in {write_traceback()})", 1
    except OSError as refusal:  # no room for it: better on the screen than lost
        return f"{summary} (the traceback could not be saved: {refusal.strerror})\n{traceback.format_exc()}", 1


def _leave(message: str, code: int) -> NoReturn:
    if message:
        with contextlib.suppress(OSError):
            print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def _reader_is_gone() -> bool:
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in outputs.poll(0))


def _let_go_of_dead_output() -> None:
    """Point a stream that nobody takes any more at nothing, so that Python's flush at the exit stays quiet."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
