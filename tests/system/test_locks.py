"""Test `hold`, `try_hold` and `is_claimed`; tests/runs/test_folder.py tests `claim`."""

from __future__ import annotations

import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lm.system import locks
from lm.system.errors import CheckpointError
from lm.system.locks import claim, hold, is_claimed, try_hold
from tests.support.processes import other_process
from tests.support.runs import ROOT


def holder(lock: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """Start another process that has entered a lock, given as an expression, until it is killed."""
    return other_process(
        "import sys; from pathlib import Path; from lm.system.locks import *\n"
        f"with {lock}: print('ready', flush=True); sys.stdin.read()"
    )


@pytest.mark.usefixtures("starts_processes")
def test_hold_waits_and_reports_it_once(tmp_path: Path) -> None:
    path, waits = tmp_path / "lock", []
    with hold(path, lambda: pytest.fail("nobody holds it")):
        pass
    with holder(f"hold(Path({str(path)!r}), print)") as process:

        def end_it() -> None:
            waits.append(time.monotonic())
            process.kill()

        with hold(path, end_it):
            assert process.wait() == -9
    assert len(waits) == 1


def test_without_locks_only_one_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_lock", lambda *_: None)
    with hold(tmp_path / "lock", lambda: pytest.fail("nobody holds it")):
        pass
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(CheckpointError, match=r"has no locks, and .* run tools\.prepare first"),
        hold(tmp_path / "lock", lambda: None),
    ):
        pass


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("theirs", "ours", "free"),
    [(False, False, False), (False, True, False), (True, False, False), (True, True, True)],
)
def test_only_shared_locks_go_together(
    tmp_path: Path, theirs: bool, ours: bool, free: bool
) -> None:
    path = tmp_path / "lock"
    with holder(f"try_hold(Path({str(path)!r}), shared={theirs})") as process:
        with try_hold(path, shared=ours) as got:
            assert got is free
        process.kill()
        process.wait()
        with try_hold(path, shared=ours) as got:
            assert got


def test_asking_for_a_claim_changes_nothing(tmp_path: Path) -> None:
    assert not is_claimed(tmp_path) and not [*tmp_path.iterdir()]
    with claim(tmp_path):
        assert is_claimed(tmp_path)
    assert not is_claimed(tmp_path)


def test_no_other_module_locks() -> None:
    users = [
        path.relative_to(ROOT).as_posix()
        for path in [*ROOT.glob("*.py"), *ROOT.glob("lm/**/*.py"), *ROOT.glob("tools/*.py")]
        if "fcntl" in path.read_text(encoding="utf-8")
    ]
    assert users == ["lm/system/locks.py"]
