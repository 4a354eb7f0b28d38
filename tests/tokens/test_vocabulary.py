"""A vocabulary is learnt from what a run trains on, once, and is the checkpoint's from then on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.checkpoints.folder import Checkpoint
from lm.commands import load_config
from lm.config.schema.config import Config
from lm.documents import hub
from lm.documents.reader import hash_of_text
from lm.system.errors import ConfigError, DataError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens import vocabulary
from lm.tokens.sources import documents_by_split, readers
from lm.tokens.vocabulary import learn_from, make_tokenizer
from tests.support.runs import ROOT, config_file, train

WORD = "zyzzyva"  # occurs in the texts only where a test puts it


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the size of each vocabulary that is learnt in the test, rather than found."""
    sizes: list[int] = []
    learn = vocabulary.learn

    def counted(texts: Iterator[str], size: int, specials: list[str]) -> tuple[str, int]:
        sizes.append(size)
        return learn(texts, size, specials)

    monkeypatch.setattr(vocabulary, "learn", counted)
    return sizes


def configured(folder: Path, size: int = 300, **data: Any) -> Config:
    """Return a configuration that learns a vocabulary; `data` changes keys of that section."""
    section = {"source": {"format": "txt", "files": str(folder / "corpus.txt")}} | data
    path = config_file(folder, data=section, tokenizer={"name": "bpe", "vocab_size": size})
    if "validation" in data:  # of its own, so none is held out
        path.write_text(path.read_text().replace("  val_fraction: 0.3\n", ""))
    return load_config(path).config


def made(config: Config) -> tuple[Tokenizer, list[str]]:
    said: list[str] = []
    return make_tokenizer(config, said.append), said


def tokens(tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.decode([number]) for number in range(tokenizer.vocab_size)}


def write(config: Config, side: str, folder: Path, also: str = "") -> None:
    """Add WORD, many times, to documents of one side of the split and to no others."""
    [(reader, split)] = readers(config.data)
    texts = [text for name, text in documents_by_split(reader, split) if name == side]
    assert texts
    found = 0
    for number in range(1000):
        text = f"{WORD} {WORD} {WORD} {number}{also}"
        hashed = np.array([hash_of_text(text)], np.uint64)
        if bool(split.held_out(hashed)[0]) == (side == "val"):
            with (folder / "corpus.txt").open("a") as file:
                file.write(f"\n\n{text}\n")
            found += 1
    assert found > 100


# --- from what it is learnt


def test_no_word_of_held_out_documents_becomes_a_token(tmp_path: Path) -> None:
    for side, there in (("val", False), ("train", True)):
        folder = tmp_path / side
        folder.mkdir()
        config = configured(folder)
        write(config, side, folder)
        assert (f" {WORD}" in tokens(made(config)[0])) == there, side


def test_nothing_behind_the_border_of_a_tail_split_is_seen(tmp_path: Path) -> None:
    config = configured(tmp_path, split="tail", val_fraction=0.2)
    with (tmp_path / "corpus.txt").open("a") as file:
        file.write("\n\n" + f"{WORD} " * 20)
    assert f" {WORD}" not in tokens(made(config)[0])
    whole = configured(tmp_path, split="tail", val_fraction=0.001)
    with (tmp_path / "corpus.txt").open("a") as file:
        file.write("\n\n" + f"{WORD} " * 200)
    assert f" {WORD}" in tokens(made(whole)[0])


def test_a_validation_file_is_not_learnt_from(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(f"{WORD} " * 200)
    validation = {"format": "txt", "files": str(tmp_path / "other.txt")}
    config = configured(tmp_path, validation=validation)
    assert f" {WORD}" not in tokens(made(config)[0])
    assert " token" in tokens(made(config)[0])


def test_conversations_without_test_and_validation_ones(tmp_path: Path) -> None:
    """What is said is learnt, not the JSON around it; the template's special tokens are there."""
    rows = [
        {"prompt": f"say {number}", "completion": "word after word after word"}
        for number in range(200)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"format": "chat", "files": str(tmp_path / "chat.jsonl"), "template": "chatml"}
    config = configured(tmp_path, source=source, document_mask=True, test_fraction=0.2)
    tokenizer, _ = made(config)
    assert {"<|im_start|>", "<|im_end|>"} <= tokenizer.specials.keys()
    assert " word" in tokens(tokenizer)
    assert not any("content" in token or "role" in token for token in tokens(tokenizer))
    [(reader, split)] = readers(config.data)
    sides = [side for side, _ in documents_by_split(reader, split)]
    bytes_of = len("say 100\nword after word after word\n\n\n\n")
    learnt = learn_from(config.data, 300, []).text_bytes
    assert 0.8 < learnt / (sides.count("train") * bytes_of) < 1.2
    assert min(map(sides.count, ("train", "val", "test"))) > 10


def test_sources_count_by_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, word in (("a", "alpha"), ("b", "beta")):
        text = "\n\n".join(f"{word} {number}" for number in range(3000))
        (tmp_path / f"{name}.txt").write_text(text)
    parts = [
        {"source": {"format": "txt", "files": str(tmp_path / f"{name}.txt")}, "weight": weight}
        for name, weight in (("a", 3), ("b", 1))
    ]
    source = {"format": "mixture", "parts": parts}
    config = configured(tmp_path, source=source)
    seen: list[str] = []

    def learn(texts: Iterator[str], *_: Any) -> tuple[str, int]:
        seen.extend(texts)
        return "{}", 1

    monkeypatch.setattr(vocabulary, "learn", learn)
    learn_from(config.data, 300, [], budget=4000)
    sizes = {word: sum(len(text) for text in seen if word in text) for word in ("alpha", "beta")}
    assert sizes == {"alpha": pytest.approx(3000, abs=20), "beta": pytest.approx(1000, abs=20)}


def test_a_stream_is_learnt_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learnt: list[int]
) -> None:
    from lm.documents import formats

    rows = [(number, f"row {number} of a stream that goes on") for number in range(5000)]
    monkeypatch.setitem(formats.FORMATS, "hub", lambda *_: iter(rows))
    revisions = ["a" * 40]
    monkeypatch.setattr(hub, "newest_revision", lambda source: revisions[-1])
    monkeypatch.setattr(vocabulary, "STREAM_BUDGET", 10_000)
    source = {"format": "hub", "dataset": "a/b", "streaming": True, "window_tokens": 10**6}
    path = config_file(
        tmp_path,
        data={"source": source},
        tokenizer={"name": "bpe", "vocab_size": 300},
        trainer={"max_steps": 12, "batch_size": 8, "validation_rows": 8},
    )
    config = load_config(path).config
    first, said = made(config)
    assert any("from 10,000 bytes" in line for line in said)
    assert made(config)[0].sha256 == first.sha256 and len(learnt) == 1
    revisions.append("b" * 40)  # the dataset has moved on, and this is another run's text
    made(config)
    assert len(learnt) == 2


# --- kept, and found again


def test_it_is_learnt_once_and_found_by_its_content(tmp_path: Path, learnt: list[int]) -> None:
    config = configured(tmp_path)
    first, said = made(config)
    assert learnt == [300] and first.name == "bpe" and first.vocab_size <= 300
    assert said[0] == "learning a vocabulary of 300 tokens from the training text"
    second, said = made(config)
    assert learnt == [300] and second.sha256 == first.sha256
    assert not any("learning" in line for line in said)
    moved = tmp_path / "moved.txt"
    (tmp_path / "corpus.txt").rename(moved)
    config = configured(tmp_path, source={"format": "txt", "files": str(moved)})
    assert made(config)[0].sha256 == first.sha256 and learnt == [300]


@pytest.mark.parametrize(
    "change",
    [
        {"size": 290},
        {"val_fraction": 0.1},
        {"source": {"format": "txt", "files": "corpus.txt", "filter": {"min_length": 60}}},
        {"source": {"format": "txt", "files": "corpus.txt", "unit": "line"}},
        {"text": "and more text"},
    ],
)
def test_what_it_depends_on_makes_another(
    tmp_path: Path,
    learnt: list[int],
    change: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"format": "txt", "files": "corpus.txt"}
    made(configured(tmp_path, source=source))
    changed = {"source": source} | change
    text = changed.pop("text", "")
    config = configured(tmp_path, **changed)
    with (tmp_path / "corpus.txt").open("a") as file:
        file.write(text)
    made(config)
    assert len(learnt) == 2


@pytest.mark.parametrize(
    "damage", [lambda kept: kept[:-40], lambda kept: kept.replace("e", "a", 1), lambda kept: "[]"]
)
def test_a_damaged_one_is_learnt_again(tmp_path: Path, learnt: list[int], damage: Any) -> None:
    config = configured(tmp_path)
    first, _ = made(config)
    [file] = (tmp_path / "cache").glob("*.tokenizer.json")
    content = json.loads(file.read_text())
    content["tokenizer"] = damage(content["tokenizer"])
    file.write_text(json.dumps(content))
    assert made(config)[0].sha256 == first.sha256
    assert len(learnt) == 2


def test_without_its_text_it_is_the_one_that_was_learnt(tmp_path: Path) -> None:
    config = configured(tmp_path)
    first, _ = made(config)
    (tmp_path / "corpus.txt").unlink()
    second, said = made(config)
    assert second.sha256 == first.sha256
    assert len(said) == 1 and said[0].endswith("the vocabulary that was learnt from it is used")
    for file in (tmp_path / "cache").glob("*.tokenizer.json"):
        file.unlink()
    with pytest.raises(DataError, match=r"corpus\.txt"):
        made(config)


@pytest.mark.usefixtures("starts_processes")
def test_processes_and_threads_learn_the_same(tmp_path: Path) -> None:
    configured(tmp_path)
    code = (
        "import sys; from lm.commands import load_config;"
        "from lm.tokens.vocabulary import learn_from;"
        "print(learn_from(load_config(sys.argv[1]).config.data, 300, []).definition)"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "config.yaml")],
            cwd=ROOT,
            env={**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"},
            capture_output=True,
            check=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(results) == 1 and len(results.pop()) > 1000


# --- its size


def test_a_size_beyond_the_text_gives_the_largest_that_it_supports(tmp_path: Path) -> None:
    tokenizer, said = made(configured(tmp_path, size=50_000))
    assert 280 < tokenizer.vocab_size < 1000
    assert said[-1] == (
        f"tokenizer.vocab_size: {tokenizer.vocab_size:,} instead of 50,000, the largest that this"
        " text supports: no pair of its tokens occurs twice"
    )
    assert made(configured(tmp_path, size=tokenizer.vocab_size))[0].vocab_size == (
        tokenizer.vocab_size
    )


def test_special_tokens_count_within_the_size(tmp_path: Path) -> None:
    names = ["<|im_start|>", "<|user|>", "<|eos|>"]
    path = config_file(
        tmp_path, tokenizer={"name": "bpe", "vocab_size": 280, "special_tokens": names}
    )
    tokenizer, _ = made(load_config(path).config)
    assert tokenizer.vocab_size == 280
    assert tokenizer.specials.keys() == {*names, "<|pad|>", "<|bos|>", "<|sep|>"}
    few = load_config(path, ["--tokenizer.vocab_size=262"]).config
    with pytest.raises(ConfigError, match=r"^tokenizer.vocab_size: 262 .*; write 263 or more$"):
        made(few)


# --- in a run


@pytest.mark.usefixtures("trains")
def test_the_checkpoint_s_vocabulary_wins(tmp_path: Path, learnt: list[int]) -> None:
    """A run goes on with its own vocabulary, without its text and its cache of vocabularies."""
    from lm import load

    learn = ("--tokenizer.name=bpe", "--tokenizer.vocab_size=300")
    config = config_file(tmp_path)
    train(config, *learn, "--trainer.max_minutes=1e-9")
    _, first, _ = load(tmp_path / "run" / "last.ckpt")
    for file in (tmp_path / "cache").glob("*.tokenizer.json"):
        file.unlink()
    train(config, resume="auto")  # the file is silent about the tokenizer
    decoder, last, meta = load(tmp_path / "run" / "final.ckpt")
    assert learnt == [300]
    assert last.sha256 == first.sha256 and decoder.config.vocab_size == last.vocab_size
    assert meta["config"]["tokenizer"]["vocab_size"] == 300
    child = tmp_path / "child"
    weights = str(tmp_path / "run" / "final.ckpt")
    run = ("--checkpoint.directory", str(child))
    train(config, *run, "--trainer.max_minutes=1e-9", init_from=weights)
    train(config, *run, resume="auto")
    assert load(child / "final.ckpt")[1].sha256 == first.sha256 and learnt == [300]
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size: the run to resume has 300"):
        train(config, *run, "--tokenizer.name=bpe", "--tokenizer.vocab_size=290", resume="auto")


@pytest.mark.usefixtures("trains")
def test_a_new_run_cannot_ask_for_another_vocabulary_than_its_first_weights(
    tmp_path: Path, learnt: list[int]
) -> None:
    """Otherwise its records would name a vocabulary that it does not have."""
    short, special = "--trainer.max_minutes=1e-9", "--tokenizer.special_tokens=[<|a|>]"
    learn = ("--tokenizer.name=bpe", "--tokenizer.vocab_size=300")
    (tmp_path / "byte").mkdir()
    bytes_config = config_file(tmp_path / "byte")
    train(bytes_config, short)
    of_bytes = str(tmp_path / "byte" / "run" / "last.ckpt")
    config = config_file(tmp_path)
    train(config, *learn, special, short)
    learnt.clear()
    child = ("--checkpoint.directory", str(tmp_path / "child"), short)
    weights = str(tmp_path / "run" / "last.ckpt")
    for parent, flags, message in (
        (of_bytes, learn, "name: bpe would learn a vocabulary, but .* has the tokenizer byte; rem"),
        (weights, ("--tokenizer.name=bpe", "--tokenizer.vocab_size=290"), "vocab_size: 290, but .*"
         " was learnt with 300; remove the section tokenizer"),
        (weights, (*learn, "--tokenizer.special_tokens=[]"), "special_tokens: none, but the .* was"
         r" learnt with <\|a\|>; remove the section tokenizer"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"^tokenizer\.{message}") as caught:
            train(config, *child, *flags, init_from=parent)
        assert "\n" not in str(caught.value)
    train(config, *child, *learn, init_from=weights)  # special_tokens: not written, so the parent's
    assert learnt == []


@pytest.mark.usefixtures("trains")
def test_both_sizes_name_a_vocabulary_that_the_text_made_smaller(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    flags = ("--trainer.max_minutes=1e-9", "--tokenizer.name=bpe")
    train(config, *flags, "--tokenizer.vocab_size=9000")
    weights = str(tmp_path / "run" / "last.ckpt")
    size = Checkpoint(Path(weights)).meta["tokenizer"]["vocab_size"]
    assert size < 9000
    for number in (9000, size):
        child = ("--checkpoint.directory", str(tmp_path / str(number)))
        train(config, *flags, *child, f"--tokenizer.vocab_size={number}", init_from=weights)


def test_whoever_is_interrupted_leaves_no_thread_that_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread that asks for the interpreter while Python ends aborts the process."""
    threads_before = set(threading.enumerate())
    reading = threading.Event()

    def endless() -> Iterator[str]:
        while True:
            reading.set()
            yield "text "

    def interrupted(_: Any) -> Any:
        assert reading.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(vocabulary.Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vocabulary._in_a_thread(lambda texts: ("", sum(map(len, texts))), endless())
    assert set(threading.enumerate()) == threads_before
