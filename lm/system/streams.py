"""The standard streams of a command: closed, full, gone, or in any encoding.

Printing a character that the stream cannot show prints a replacement. A stream that was closed
before the start is the null device. A stream that refuses what is printed does this:

    stdout    ends a command whose output is its product (`OutputLost`), but never a training
    stderr    ends no command

The module imports only the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import select
import stat
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDOUT, STDERR = 1, 2

# What a write fails with after the reader, the terminal or the connection has gone.
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ESHUTDOWN, errno.ENXIO)

_outlived = False  # whether this command goes on without its stdout


class OutputLost(BaseException):
    """A refusal of stdout to take what a command prints. Its `exit_code` is 141 after the reader
    has gone, with an empty message, and else 5.

    It is not an Exception: `print` may stand inside code that survives every Exception.
    """

    def __init__(self, error: OSError, gone: bool):
        super().__init__("" if gone else f"stdout could not be written: {error.strerror}")
        self.exit_code = 141 if gone else 5


class Output(io.FileIO):
    """The descriptor of stdout or stderr. It waits for a pipe that takes nothing at the moment, and
    drops what the system refuses to write.
    """

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)
        self._reported = False

    def write(self, content: ReadableBuffer) -> int:
        """Write all of `content`. Raises OutputLost if that ends the command."""
        rest = memoryview(content).cast("B")
        size = len(rest)
        try:
            while rest:
                if (written := super().write(rest)) is None:
                    self._wait()
                else:
                    rest = rest[written:]
        except OSError as error:
            self._refuse(error)
        return size

    def _wait(self) -> None:
        """Wait until a descriptor that another program has made non-blocking takes more."""
        ready = select.poll()
        ready.register(self.fileno(), select.POLLOUT)
        ready.poll()

    def _refuse(self, error: OSError) -> None:
        if self.fileno() != STDOUT:
            return
        lost = OutputLost(error, gone=error.errno in GONE or self._is_lost_terminal(error))
        if not _outlived:
            self._reported = True  # whoever ends the command for it says so
            raise lost from None
        if str(lost) and not self._reported:
            self._reported = True
            with contextlib.suppress(OSError):
                os.write(STDERR, f"{lost}; the command goes on without it\n".encode())

    def _is_lost_terminal(self, error: OSError) -> bool:
        # A disk that fails answers EIO, too.
        return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)


def protect() -> None:
    """Make the standard streams safe. Every command begins with this."""
    global _outlived
    _outlived = False
    for descriptor in range(3):  # or the next files that are opened would take their numbers
        try:
            os.fstat(descriptor)
        except OSError:  # inheritable, or the programs that are started would lack it again
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _safe(sys.stdout, STDOUT, "replace")
    sys.stderr = _safe(sys.stderr, STDERR, "backslashreplace")


def outlive_stdout() -> None:
    """Let the command go on from here whatever becomes of its stdout."""
    global _outlived
    _outlived = True


def print_json(text: str) -> None:
    """Print JSON to stdout. A character that stdout cannot show, or that is a command to a
    terminal, becomes an escape; the value stays the same.
    """
    shows_all = True
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        shows_all = False

    def escaped(match: re.Match[str]) -> str:
        shown = shows_all and match[0].isprintable()
        return match[0] if shown else json.dumps(match[0])[1:-1]

    print(re.sub(r"[^\x00-\x7f]", escaped, text), flush=True)


def _safe(stream: TextIO | None, descriptor: int, errors: str) -> TextIO:
    """Return a stream on a descriptor like `stream`; `stream` itself if it is no such stream."""
    if stream is not None:
        try:
            elsewhere = stream.fileno() != descriptor
        except (OSError, ValueError):
            elsewhere = True
        if elsewhere:  # a test or a notebook collects what is printed
            return stream
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    raw = Output(descriptor)
    unbuffered = getattr(stream, "write_through", False)
    return io.TextIOWrapper(
        # Without a buffer, as `python -u` asks: `Output` is a raw file, and writes at once.
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors=errors,
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=unbuffered,
    )
