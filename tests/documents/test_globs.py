"""A glob names what `glob.glob` names, and comes to an end where links lead in circles."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from lm.documents.files import find_files
from lm.documents.globs import expand


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.txt", "b/a.txt", "b/c/d.txt", "b[1]/x.txt", ".hidden/h.txt", "b/.h.txt", "e/f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        *("**/*.txt", "**", "b/**", "b/**/*.txt", "*/**/*.txt", "**/c/*", "**/**/d.txt", "*.txt"),
        *("b*/*.txt", "b**/*.txt", "nothing/**/*.txt", "**/?.txt", "[ab]*/**/*"),
    ],
)
def test_it_names_what_the_library_names(tree: Path, pattern: str) -> None:
    for whole in (pattern, str(tree / pattern)):
        expected = {path.rstrip("/") for path in glob.glob(whole, recursive=True)}  # noqa: PTH207
        found = [path.rstrip("/") for path in expand(whole)]
        files = {path for path in expected if Path(path).is_file()}
        assert files == {path for path in found if Path(path).is_file()}
        assert len(found) == len(set(found))


def test_links_in_circles_have_an_end(tree: Path) -> None:
    (tree / "b" / "self").symlink_to(".")
    (tree / "b" / "up").symlink_to("..")
    (tree / "b" / "lost").symlink_to("nowhere")
    found = find_files([str(tree / "**" / "*.txt")], "data.source.files")
    assert sorted(Path(path).resolve() for path in found) == sorted(
        path.resolve() for path in tree.rglob("[!.]*.txt") if ".hidden" not in str(path)
    )


def test_a_folder_that_only_a_link_leads_to_is_read(tree: Path) -> None:
    (tree / "data").mkdir()
    (tree / "data" / "linked").symlink_to(tree / "b", target_is_directory=True)
    assert find_files(["data/**/*.txt"], "data.source.files") == [
        "data/linked/a.txt",
        "data/linked/c/d.txt",
    ]
