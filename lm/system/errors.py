"""What a person is told when something is wrong, and the exit code that a script gets to see.

Every mistake that a user can make ends in one `UserError`: a message that names the file and the
key, what was wrong and what to write instead. `run` is the one place that prints them and leaves.

| code | meaning |
|---|---|
| 0 | done (also: the time limit was reached, or the run had already finished) |
| 1 | an internal error, or out of memory; the traceback is in a file that the message names |
| 2 | usage or configuration |
| 3 | data |
| 4 | a loss or gradient that is not finite |
| 5 | a checkpoint that cannot be read, or a disk that cannot be written |
| 6 | a check did not hold (`tools.selfcheck`, `tools.resume_proof`) |
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
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

_places: list[Path] = []
# What gloo and NCCL say when a process at the other end of a connection is gone.
LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UserError(Exception):
    """A mistake outside the program. The message is the whole answer that the user gets: one line,
    without anything that could command the terminal, whatever a file from elsewhere put into it.
    """

    exit_code = 1
    line_ends = ""

    def __init__(self, message: str):
        super().__init__(printable(message, self.line_ends))


class ConfigError(UserError):
    """A wrong key, value or flag; a line for each."""

    exit_code = 2
    line_ends = "\n"


class DataError(UserError):
    """Text that cannot be read, or that is not enough."""

    exit_code = 3


class NonFiniteError(UserError):
    """A loss or gradient that is NaN or infinite."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another kind, or a disk that refuses one."""

    exit_code = 5


class CheckFailed(UserError):
    """A command was asked whether something holds, and it does not."""

    exit_code = 6


class Stopped(BaseException):
    """A signal asked the run to stop. `exit_code` is 128 + the signal's number, as shells have it.

    Not an Exception: it may come at any moment, and whoever lives with any error must not live with
    this one.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def run(main: Callable[[], None]) -> None:
    """Run a command's `main` and leave with a documented exit code: one plain message, never a
    traceback on the screen.
    """
    threading.excepthook = _on_failed_thread
    try:
        main()
        # while a failure can still be answered: at its own exit Python would complain and return
        # 120
        sys.stdout.flush()
    except (UserError, Stopped) as error:
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        _leave("stopped by Ctrl-C", 130)
    except Exception as error:
        _leave(*_unexpected(error))
    finally:
        _let_go_of_dead_output()


def is_out_of_memory(error: Exception) -> bool:
    """Torch has a class for it on GPUs only; on a CPU it is a RuntimeError like many others."""
    return isinstance(error, MemoryError) or any(
        words in str(error).lower() for words in ("out of memory", "allocate memory")
    )


def is_lost_process(error: Exception) -> bool:
    """Whether another process of the run went away, and this one found out by the connection."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST_PROCESS)


def printable(text: str, kept: str = "") -> str:
    """Text for a person: what is not printable (line ends too) becomes U+FFFD, but for the
    characters in `kept`.
    """
    return "".join(
        character if character.isprintable() or character in kept else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def not_installed(error: ModuleNotFoundError) -> str:
    """The answer to the commonest first mistake: another Python than the one that `make setup`
    filled.
    """
    return (
        f"{sys.executable} has no {error.name}: run `make setup` once, then `source"
        " .venv/bin/activate`"
    )


def keep_tracebacks_in(folder: Path) -> None:
    """What goes wrong in this process from here on belongs to a run: tracebacks are written into
    its folder.
    """
    _places.insert(0, folder)


def write_traceback() -> Path:
    """Write the current exception's traceback to a new file: in the run's folder, else in the
    system's temporary one.
    """
    for place in _places:
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(prefix="error-", suffix=".txt", dir=place)
            break
    else:
        handle, name = tempfile.mkstemp(prefix="tiny-transformer-error-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(traceback.format_exc())
    return Path(name)


def _on_failed_thread(failure: threading.ExceptHookArgs) -> None:
    """What the disk refuses to a thread, its owner gets to hear: TensorBoard's writer hands it on
    with the next call. It is told once.
    """
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _unexpected(error: Exception) -> tuple[str, int]:
    """What to say about an exception that nobody turned into a UserError, and the exit code."""
    # else it was a pipe of our own, such as a worker's
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return "", 141
    if isinstance(error, OSError) and error.errno in DISK_REFUSALS:
        return (
            f"{error.filename or 'a file'} could not be written: {error.strerror}",
            CheckpointError.exit_code,
        )
    if is_out_of_memory(error):
        summary = "out of memory; in training, a smaller trainer.micro_batch_size needs less"
    elif is_lost_process(error):
        return (
            (
                "another process of this run has ended, and this one cannot go on alone; that one's"
                " message, or its launcher's, says why"
            ),
            1,
        )
    elif isinstance(error, ModuleNotFoundError):
        return not_installed(error), ConfigError.exit_code
    elif "DataLoader worker" in (cause := _told_by_torch(error)):
        summary = (
            f"{cause.partition('.')[0]}; most often memory did not suffice: try data.workers: 0"
        )
    else:
        summary = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
    try:
        return f"{summary} (the traceback is in {write_traceback()})", 1
    except OSError as refusal:  # no room for it: better on the screen than lost
        return (
            (
                f"{summary} (the traceback could not be saved:"
                f" {refusal.strerror})\n{traceback.format_exc()}"
            ),
            1,
        )


def _told_by_torch(error: BaseException | None) -> str:
    """The message of the first RuntimeError behind an error. Torch raises it wherever the main
    thread is when a worker dies, and whoever is interrupted there makes an error of its own of it.
    """
    told = ""
    while error is not None:
        told = str(error) if isinstance(error, RuntimeError) else told
        error = error.__cause__ or error.__context__
    return told


def _leave(message: str, code: int) -> NoReturn:
    if message:
        with contextlib.suppress(OSError):
            print(printable(message, "\n\t"), file=sys.stderr, flush=True)
    sys.exit(code)


def _reader_is_gone() -> bool:
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in outputs.poll(0))


def _let_go_of_dead_output() -> None:
    """Point a stream that nobody takes any more at nothing, so that Python's flush at the exit
    stays quiet.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
