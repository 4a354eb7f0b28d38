"""Other commands of this project, run as child processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.system.errors import UserError


@contextlib.contextmanager
def child(
    command: Sequence[str], stdout: Any, variables: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run another command of this project, and end it with the `with` block. Its stderr is a pipe.
    Its environment is `variables`, by default that of this process.

    Without this, a signal to the parent alone would leave the command running.
    """
    process = subprocess.Popen(  # noqa: S603 (our own command)
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=variables
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate()


def environment(root: Path) -> dict[str, str]:
    """Return the environment in which `python -m` finds the project at `root` from any folder."""
    paths = filter(None, [str(root), os.environ.get("PYTHONPATH")])
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def failed(process: subprocess.Popen[str], stderr: str, subject: str = "the run") -> UserError:
    """Return the error for a command that has failed, with its own message and exit code."""
    code = process.returncode
    return UserError(f"{subject} ended with exit code {code}: {stderr.strip()}", code)
