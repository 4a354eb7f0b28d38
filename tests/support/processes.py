"""Start a second Python process next to the test's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.runs import ROOT


@contextmanager
def other_process(code: str) -> Iterator[subprocess.Popen[str]]:
    """Run code that prints the line "ready", and wait for it. The process is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()
