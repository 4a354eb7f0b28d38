"""Regular expressions of case files, in bounded time.

A pattern with repeats inside of repeats may search for years. Python's `re` looks at signals while
it searches, so an alarm ends it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

REGEX_SECONDS = 5.0  # of a search, and of all patterns of a file while it is read


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError if a `with` block takes longer. Only the main thread gets alarms; in
    others there is no limit.
    """

    def on_alarm(*_: object) -> None:
        raise TimeoutError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
