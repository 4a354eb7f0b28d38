"""One rule for every path that a user writes: python -m pytest tests/system/test_paths.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm.system.paths import expand


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SCRATCH", "/scratch/ada")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("runs/a", "runs/a"),
        ("~", "/home/ada"),
        ("~/runs/*.txt", "/home/ada/runs/*.txt"),
        ("$SCRATCH/a", "/scratch/ada/a"),
        ("${SCRATCH}2/$SCRATCH", "/scratch/ada2//scratch/ada"),
        ("a/~", "a/~"),
        ("price in $", "price in $"),
    ],
)
def test_home_and_variables_are_replaced(written: str, meant: str) -> None:
    assert expand(written) == meant


def test_a_dollar_sign_in_the_name_of_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "a$b").mkdir()
    assert expand("a$b/*.txt") == "a$b/*.txt"
    assert expand(f"{tmp_path}/a$b/new/c$d") == f"{tmp_path}/a$b/new/c$d"


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("", "the path is empty; write the path of a file or folder"),
        ("~nobody-at-all/x", "there is no home folder of ~nobody-at-all; write the whole path"),
        ("$NOT_SET/x", "the variable $NOT_SET is not set; set it, or write the whole path"),
        ("x/${NOT_SET}", "the variable $NOT_SET is not set; set it, or write the whole path"),
    ],
)
def test_a_path_that_means_nothing_is_refused(written: str, problem: str) -> None:
    with pytest.raises(ValueError, match="") as caught:
        expand(written)
    assert str(caught.value) == problem


def test_a_file_with_such_a_name_keeps_it() -> None:
    for name in ("~nobody-at-all.txt", "cost in $NOT_SET", "$SCRATCH"):
        Path(name).write_text("")
        assert expand(name) == name
