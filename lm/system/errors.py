"""The messages and exit codes of failed commands.

Every mistake that a user can make raises a `UserError`. Its message names the file and the key, the
problem, and the value to write instead. Only `run` prints these messages and ends the process.

| code | meaning |
|---|---|
| 0 | done (also: the time limit was reached, or the run had already finished) |
| 1 | an internal error, or out of memory; the traceback is in a file that the message names |
| 2 | usage or configuration |
| 3 | data |
| 4 | a loss or gradient that is not finite |
| 5 | a checkpoint that cannot be read, or a disk that cannot be written |
| 6 | a check did not hold (`tools.selfcheck`, `tools.resume_proof`, `--check`) |
| 130, 143, 138, 129 | stopped by Ctrl-C, SIGTERM, SIGUSR1, SIGHUP |
| 141 | the reader of the output went away (`| head`); a training goes on |
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lm.system import environment, lazy_torchmetrics, streams
from lm.system.refusal import why

# Refusals of a disk or a system, never mistakes of this program: the first answer only writing.
REFUSED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
REFUSED_USES = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE)
# Some failures are plain RuntimeErrors, and only their wording identifies them. Torch has an
# exception class for memory on GPUs only; gloo and NCCL have none for a lost peer.
OUT_OF_MEMORY = ("out of memory", "allocate memory")
LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
DEAD_WORKER = "DataLoader worker"
TAKEN_PORT = "EADDRINUSE"

MOST_OF_A_LINE = 10_000  # characters; a path in a damaged file may have millions

_places: list[Path] = []  # folders for tracebacks, the newest first


class UserError(Exception):
    """A mistake outside the program. The command prints only the message.

    The message is one line of printable characters. Names and texts from other people's files
    therefore cannot send commands to the terminal.

    Attributes:
        exit_code: the exit code of the command. Each class has its own; a child process that failed
            brings another.
        line_ends: unprintable characters that the message may contain.
    """

    exit_code = 1
    line_ends = ""

    def __init__(self, message: str, exit_code: int | None = None):
        text = printable(message, self.line_ends)
        if not self.line_ends and len(text) > MOST_OF_A_LINE:
            text = f"{text[: MOST_OF_A_LINE // 2]} ... {text[-MOST_OF_A_LINE // 2 :]}"
        super().__init__(text)
        if exit_code is not None:
            self.exit_code = exit_code


class ConfigError(UserError):
    """Wrong keys, values or flags, with one line for each."""

    exit_code = 2
    line_ends = "\n"


class DataError(UserError):
    """Unreadable or insufficient text."""

    exit_code = 3


class NonFiniteError(UserError):
    """A loss or gradient that is NaN or infinite."""

    exit_code = 4


class CheckpointError(UserError):
    """A missing, damaged or unsuitable checkpoint, or a disk that cannot be written."""

    exit_code = 5


class CheckFailed(UserError):
    """A check that did not hold."""

    exit_code = 6


class Stopped(BaseException):
    """A signal that asked the run to stop. Its `exit_code` is 128 + the signal's number, as in
    shells.

    It is not an Exception: it may arrive at any moment, and code that survives every Exception must
    not survive this one.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def run(main: Callable[[], None]) -> None:
    """Run a command's `main` and exit with a documented code. A failure prints one plain message
    and no traceback.
    """
    streams.protect()
    environment.settle()
    lazy_torchmetrics.defer()
    threading.excepthook = _on_failed_thread
    try:
        _require_current_folder()
        main()
        # Flush while a failure can still be handled. Python's own flush at exit would print a
        # warning and exit with 120.
        sys.stdout.flush()
    except (UserError, Stopped, streams.OutputLost) as error:
        _leave(error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        _leave(error, "stopped by Ctrl-C", 130)
    except Exception as error:
        _leave(error, *_explain(error))
    finally:
        streams.outlive_stdout()  # Python flushes it once more
        # Libraries need up to a second to close. Ctrl-C would print a traceback there.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that the memory of a CPU or GPU did not suffice."""
    return isinstance(error, MemoryError) or any(
        words in str(error).lower() for words in OUT_OF_MEMORY
    )


def is_lost_process(error: Exception) -> bool:
    """Return whether an error means that the connection to another process of the run broke."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST_PROCESS)


def printable(text: str, kept: str = "") -> str:
    """Return text with U+FFFD in place of unprintable characters, including line ends. Characters
    in `kept` stay.
    """
    return "".join(
        character if character.isprintable() or character in kept else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message without its full stop; its class if it is empty.

    A library may explain for a page what one of our messages says in a line.
    """
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def not_installed(error: ModuleNotFoundError) -> str:
    """Return the message for a missing package. The usual cause is another Python than the one that
    `make setup` installed into.
    """
    return (
        f"{sys.executable} has no {error.name}: run `make setup` once, then `source"
        " .venv/bin/activate`"
    )


def keep_tracebacks_in(folder: Path) -> None:
    """Write later tracebacks of this process into a run's folder."""
    _places.insert(0, folder)


def write_traceback() -> Path:
    """Write the current exception's traceback to a new file, in the run's folder or else in the
    system's temporary one, and return its path.
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


def _require_current_folder() -> None:
    """Raise ConfigError if the current folder was deleted: relative paths then mean nothing, and
    libraries fail, some while they are loaded.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError(
            "the current folder is gone: cd to an existing folder and try again"
        ) from None


def _on_failed_thread(failure: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread that failed, unless the disk refused a write: TensorBoard's
    writer raises that error again in the thread that calls it next.
    """
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _explain(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code for an exception that is not a UserError."""
    if isinstance(error, OSError) and error.errno in (*REFUSED_WRITES, *REFUSED_USES):
        file = error.filename or "a file"
        use = "written" if error.errno in REFUSED_WRITES else "used"
        return f"{file} could not be {use}: {why(error, file)}", CheckpointError.exit_code
    if is_out_of_memory(error):
        return _with_traceback(
            "out of memory; in training, a smaller trainer.micro_batch_size needs less"
        )
    if is_lost_process(error):
        return (
            "another process of this run has ended, and this one cannot go on alone; that one's"
            " message, or its launcher's, says why"
        ), 1
    if TAKEN_PORT in str(error):
        port = os.environ.get("MASTER_PORT", "of this run")
        return (
            f"the port {port} between the processes is taken by another program; start again, or"
            " start with torchrun --master-port and a free one"
        ), ConfigError.exit_code
    if isinstance(error, ModuleNotFoundError):
        return not_installed(error), ConfigError.exit_code
    if DEAD_WORKER in (message := _first_runtime_error(error)):
        return _with_traceback(
            f"{message.partition('.')[0]}; most often memory did not suffice: try data.workers: 0"
        )
    return _with_traceback(f"internal error: {type(error).__name__}: {error}".splitlines()[0])


def _with_traceback(summary: str) -> tuple[str, int]:
    """Save the traceback. Return the summary with the place of the traceback, and exit code 1."""
    try:
        return f"{summary} (the traceback is in {write_traceback()})", 1
    except OSError as refusal:
        # The disk has no room. A traceback on the screen is better than none.
        reason = f"the traceback could not be saved: {refusal.strerror}"
        return f"{summary} ({reason})\n{traceback.format_exc()}", 1


def _first_runtime_error(error: BaseException | None) -> str:
    """Return the message of the first RuntimeError in an exception's chain of causes.

    When a worker dies, torch raises a RuntimeError wherever the main thread is at that moment. The
    code that it interrupts may turn it into an error of its own.
    """
    message = ""
    while error is not None:
        message = str(error) if isinstance(error, RuntimeError) else message
        error = error.__cause__ or error.__context__
    return message


def _leave(error: BaseException, message: str, code: int) -> NoReturn:
    """Print a message and the error's notes to stderr, if there are any, and exit."""
    if line := "; ".join(filter(None, [message, *getattr(error, "__notes__", [])])):
        print(printable(line, "\n\t"), file=sys.stderr, flush=True)
    sys.exit(code)
