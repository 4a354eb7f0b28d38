"""A test that starts a process, trains a run or computes for seconds is slow.

A test asks for that with a fixture, `starts_processes` or `trains`, and so gets the marker `slow`.
Without the fixture, starting a process or training fails, so that nobody can forget it. A test that
computes for seconds uses `takes_seconds`. `make check` runs the quick tests.
"""

from __future__ import annotations

import functools
import sys
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest

FIXTURES = {"starts_processes", "trains", "takes_seconds"}
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
# Programs that answer within milliseconds; the code under test asks them about the machine.
QUICK_PROGRAMS = {"git"}
_test: dict[str, pytest.Item | None] = {"quick": None}  # the quick test that is running


def mark(items: list[pytest.Item]) -> None:
    """Mark the tests that use one of the fixtures, directly or through other fixtures."""
    for item in items:
        if FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


def watch(item: pytest.Item | None) -> None:
    """Enforce the rule in the set-up, the call and the end of this test."""
    quick = item is not None and item.get_closest_marker("slow") is None
    _test["quick"] = item if quick else None
    trainer = sys.modules.get("lightning.pytorch.trainer.trainer")
    if trainer and not hasattr(trainer.Trainer.fit, "__wrapped__"):
        trainer.Trainer.fit = _guarded(trainer.Trainer.fit, "trains")


def refuse(fixture: str) -> None:
    """Fail if the test that is running does not use the fixture."""
    if item := _test["quick"]:
        pytest.fail(
            f'{item.name} needs `@pytest.mark.usefixtures("{fixture}")`, which marks it slow'
        )


def _guarded(function: Any, fixture: str) -> Any:
    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        refuse(fixture)
        return function(*arguments, **named)

    return guarded


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in STARTS and _test["quick"]:
        program = arguments[0] if arguments else ""
        name = Path(program).name if isinstance(program, str | bytes | Path) else ""
        if event != "subprocess.Popen" or name not in QUICK_PROGRAMS:
            refuse("starts_processes")


def install() -> None:
    """Watch all ways in which Python starts a process."""
    sys.addaudithook(_audit)
    # the one way that has no audit event: multiprocessing's "spawn" and "forkserver"
    util.spawnv_passfds = _guarded(util.spawnv_passfds, "starts_processes")  # type: ignore[attr-defined]
