"""Child commands: lm/system/child.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm.system.child import child, environment, failed


@pytest.mark.usefixtures("starts_processes")
def test_a_command_that_failed_gives_its_message_and_exit_code() -> None:
    code = "import sys; print('no text', file=sys.stderr); sys.exit(3)"
    with child([sys.executable, "-c", code], subprocess.DEVNULL) as process:
        _, stderr = process.communicate()
    error = failed(process, stderr, "x: the run")
    assert (str(error), error.exit_code) == ("x: the run ended with exit code 3: no text", 3)


@pytest.mark.usefixtures("starts_processes")
def test_a_child_ends_with_its_block() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with child(command, subprocess.DEVNULL) as process:
        assert process.poll() is None
    assert process.returncode is not None


def test_the_project_comes_first_in_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/a")
    assert environment(Path("/project"))["PYTHONPATH"] == f"/project{os.pathsep}/a"
    monkeypatch.delenv("PYTHONPATH")
    assert environment(Path("/project"))["PYTHONPATH"] == "/project"
