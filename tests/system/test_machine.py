"""Test the record of the code's commit and of the hardware."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lm.system import machine


def git(folder: Path, *arguments: str) -> str:
    identity = {
        f"GIT_{who}_{what}": "x@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    return subprocess.run(
        ["git", "-C", folder, *arguments],
        env=os.environ | identity,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.mark.usefixtures("starts_processes")
def test_the_code_is_named_by_its_commit_and_whether_it_was_changed(tmp_path):
    assert machine.code(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert machine.code(tmp_path) is None  # no commit yet
    (tmp_path / "model.py").write_text("a = 1\n")
    git(tmp_path, "add", "model.py")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("git does not know it\n")
    assert machine.code(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "model.py").write_text("a = 2\n")
    assert machine.code(tmp_path) == {"commit": commit, "changed": True}


@pytest.mark.usefixtures("starts_processes")
def test_code_within_the_checkout_of_another_project_is_not_its(tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    (tmp_path / "site-packages").mkdir()
    assert machine.code(tmp_path / "site-packages") is None


@pytest.mark.usefixtures("starts_processes")
def test_a_hook_of_another_checkout_does_not_answer(tmp_path, monkeypatch):
    """The commit is right although git sets GIT_DIR in a hook, which overrides -C."""
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        git(tmp_path / name, "init", "-q")
        git(tmp_path / name, "commit", "-q", "--allow-empty", "-m", name)
    commit = git(tmp_path / "mine", "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))
    assert machine.code(tmp_path / "mine") == {"commit": commit, "changed": False}


@pytest.mark.usefixtures("starts_processes")
def test_without_git_nothing_is_recorded(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    monkeypatch.setenv("PATH", "")
    assert machine.code(tmp_path) is None


@pytest.mark.usefixtures("starts_processes")
def test_the_machine_has_parts(monkeypatch, tmp_path):
    hardware = machine.hardware("cpu")
    assert hardware["cores"] >= 1 and hardware["gpu"] is None and hardware["system"]
    (tmp_path / "cpuinfo").write_text(
        "processor : 0\nmodel name\t: Some CPU @ 2 GHz\nprocessor : 1\nmodel name\t: Other\n"
    )
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.hardware("cpu")["processor"] == "Some CPU @ 2 GHz"
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    assert machine.hardware("cpu")["processor"] != "Some CPU @ 2 GHz"
