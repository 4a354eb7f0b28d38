"""A source's tokens are found by what its text says, and without its text if they are prepared."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lm.commands import load_config
from lm.documents import reader as documents
from lm.system.errors import DataError
from lm.tokenizer.tokenizer import ByteTokenizer
from lm.tokens import hashing, texts
from lm.tokens.corpus import Corpus, open_corpora
from tests.support.runs import config_file

BYTE = ByteTokenizer()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    data = {"source": {"format": "txt", "files": "corpus.txt"}, "cache_dir": "cache"}
    return config_file(tmp_path, data=data)


def open_source(config: Path, **changes: Any) -> tuple[Corpus, list[str]]:
    said: list[str] = []
    overrides = [f"--data.{key}={value}" for key, value in changes.items()]
    corpora = open_corpora(load_config(str(config), overrides).config, BYTE, said.append)
    return corpora[0], [*said, *corpora[0].facts]


def is_read(facts: list[str]) -> bool:
    assert any("read from" in fact or "written to" in fact for fact in facts)
    return any("read from" in fact for fact in facts)


def age(path: Path) -> None:
    """Make a file look as if it was not changed for a while."""
    os.utime(path, ns=(10**18, 10**18))


# --- known by its content


def test_other_text_of_the_same_size_and_date_is_other_text(config: Path, tmp_path: Path) -> None:
    text = tmp_path / "corpus.txt"
    age(text)
    first = open_source(config)[0]
    text.write_text(text.read_text().swapcase())
    age(text)
    second, facts = open_source(config)
    assert not is_read(facts)
    assert (second.folder, second.train.sha256) != (first.folder, first.train.sha256)


def test_copied_moved_and_dated_anew_it_is_the_same_text(config: Path, tmp_path: Path) -> None:
    first = open_source(config)[0]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "corpus.txt").rename(tmp_path / "elsewhere" / "other.txt")
    second, facts = open_source(config, **{"source.files": "elsewhere/other.txt"})
    assert is_read(facts)
    assert second.folder == first.folder


def test_a_text_is_hashed_once_and_again_when_it_changes(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def noting(what: str, files: list[Path]) -> list[str]:
        hashed.extend(file.resolve() for file in files)
        return hashing.hash_files(what, files)

    monkeypatch.setattr(texts, "hash_files", noting)
    monkeypatch.setattr(texts, "SETTLED", -1.0)
    text = tmp_path / "corpus.txt"
    for _ in range(3):
        open_source(config)
    assert hashed == [text]
    shutil.copy(text, tmp_path / "copy")
    (tmp_path / "copy").replace(text)  # the same content in another inode
    assert is_read(open_source(config)[1])
    assert hashed == [text, text]


def test_a_file_that_was_written_just_now_is_not_believed_to_stay(
    config: Path, tmp_path: Path
) -> None:
    """Two writes in one tick of the file system's clock leave the same times."""
    open_source(config)
    known = tmp_path / "cache" / texts.FILE
    assert not known.exists()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "[" * 10**6, '{"/a": [1, 2, 3, 4]}', '{"/a": [1, 2, 3, 4, "x"]}', '{"/a": "b"}'],
)
def test_hashes_that_were_kept_and_are_none_are_computed_anew(
    config: Path, tmp_path: Path, content: str
) -> None:
    first = open_source(config)[0]
    (tmp_path / "cache" / texts.FILE).write_text(content)
    assert open_source(config)[0].folder == first.folder


def test_a_text_that_changes_after_it_was_hashed_is_not_stored_under_that_hash(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "corpus.txt"

    def changing(what: str, files: list[Path]) -> list[str]:
        result = hashing.hash_files(what, files)
        monkeypatch.setattr(texts, "hash_files", hashing.hash_files)
        text.write_text(text.read_text().swapcase())
        return result

    monkeypatch.setattr(texts, "hash_files", changing)
    with pytest.raises(DataError, match=r"data\.source: its files changed while they were read"):
        open_source(config)


# --- without its text


def test_prepared_tokens_are_enough(config: Path, tmp_path: Path) -> None:
    first = open_source(config)[0]
    (tmp_path / "corpus.txt").unlink()
    again, facts = open_source(config)
    assert again.train.sha256 == first.train.sha256
    assert facts[0].startswith("data.source.files: corpus.txt does not exist; ")
    assert "the tokens that were prepared on 2" in facts[0]


@pytest.mark.parametrize(
    "change", [{"val_fraction": 0.2}, {"split": "tail"}, {"source.unit": "line"}]
)
def test_tokens_of_other_settings_are_not_taken(
    config: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    open_source(config)
    (tmp_path / "corpus.txt").unlink()
    with pytest.raises(DataError, match=r"corpus\.txt does not exist"):
        open_source(config, **change)


def test_a_project_that_was_moved_finds_its_tokens(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_source(config)[0]
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "cache").rename(moved / "cache")
    monkeypatch.chdir(moved)
    assert open_source(config)[0].train.sha256 == first.train.sha256


def test_another_project_does_not_take_them_for_its_own(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = str(tmp_path / "cache")
    open_source(config, cache_dir=shared)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(DataError, match=r"corpus\.txt does not exist"):
        open_source(config, cache_dir=shared)


def test_damaged_tokens_whose_text_is_gone_are_refused_and_kept(
    config: Path, tmp_path: Path
) -> None:
    folder = open_source(config)[0].folder
    (tmp_path / "corpus.txt").unlink()
    shard = folder / "train-00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"\0")
    with pytest.raises(DataError) as error:
        open_source(config)
    assert f"its tokens in {folder} are damaged too (train-00000.bin h" in str(error.value)
    assert str(error.value).endswith("bring the text back")
    assert shard.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cache": 5}', '{"cache": "../../x"}'])
def test_a_note_that_is_none_is_no_note(config: Path, tmp_path: Path, content: str) -> None:
    open_source(config)
    (tmp_path / "corpus.txt").unlink()
    [note] = (tmp_path / "cache").glob("*.source")
    note.write_text(content)
    with pytest.raises(DataError, match=r"corpus\.txt does not exist"):
        open_source(config)


@pytest.mark.usefixtures("takes_seconds")
def test_a_dataset_of_the_hub_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    asked: list[str] = []
    rows = Dataset.from_dict({"text": [f"{i} a text" for i in range(60)]})

    def load(source: Any) -> Dataset:
        asked.append(source.dataset)
        return rows

    monkeypatch.setattr(documents, "load_dataset", load)
    monkeypatch.setattr("lm.documents.hub.load_dataset", load)
    source = {"format": "hub", "dataset": "someone/stories"}
    config = config_file(tmp_path, data={"source": source, "cache_dir": str(tmp_path / "cache")})
    first = open_source(config)[0]
    assert set(asked) == {"someone/stories"}
    asked.clear()
    again, facts = open_source(config)
    assert (asked, again.folder) == ([], first.folder)
    assert any(f"read from {first.folder}, as the dataset was on 2" in fact for fact in facts)
    (first.folder / "train-00000.bin").write_bytes(b"")
    assert not is_read(open_source(config)[1][1:])
    assert asked


def test_what_is_known_is_json_of_one_line_for_each_file(config: Path, tmp_path: Path) -> None:
    open_source(config)
    [note] = (tmp_path / "cache").glob("*.source")
    assert json.loads(note.read_text()).keys() == {"cache"}
