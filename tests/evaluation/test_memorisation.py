"""The search for a model's output in its training text: compared with a search everywhere, and run
on the shards of small runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import PackedDataModule
from lm.commands import load_config
from lm.config.schema.config import Config
from lm.evaluation import memorisation
from lm.evaluation.memorisation import PIECE, Continuations, Memorised, Ngrams, memorised
from lm.evaluation.training_text import TrainingText, training_text
from lm.tokenizer.tokenizer import load_tokenizer
from lm.tokens.corpus import Corpus, open_corpora
from lm.tokens.manifest import Manifest
from lm.tokens.store import SplitWriter, TokenStore
from tests.support.runs import config_file, write_trained

BYTE = load_tokenizer("byte")
EOS = BYTE.eos_id
Texts = Sequence[Sequence[int]]
few = st.lists(st.lists(st.sampled_from([97, 98, 99]), max_size=12), max_size=6)


def searched(text: TrainingText, continuations: Texts, piece: int = PIECE) -> Memorised:
    """Search a group of continuations among others that must not matter; return its figures."""
    first, found, last = memorised(text, [[], continuations, [*continuations, [97, 98]]], piece)
    assert (first.longest_run, first.novel_share) == (
        0,
        None,
    ) and last.longest_run >= found.longest_run
    return found


def stored(
    folder: Path, name: str, documents: Texts, shard_tokens: int = 5, bytes_per_token: float = 1.0
) -> TokenStore:
    """Store documents in shards, as a run does."""
    place = folder / name
    place.mkdir()
    writer = SplitWriter(place, "train", EOS, np.dtype(np.uint16), shard_tokens)
    ids = np.array([token for document in documents for token in (EOS, *document)], np.uint16)
    hashes = np.zeros(len(documents), np.uint64)
    writer.add(
        ids,
        np.array([len(document) for document in documents], np.int64),
        hashes,
        round(bytes_per_token * sum(map(len, documents))),
    )
    return TokenStore(place, "train", Manifest(dtype="uint16", splits={"train": writer.close()}))


def naive(streams: Texts, continuations: Texts, n: int) -> tuple[int, list[list[int]], int, int]:
    """Compare everything with everything; return the longest run, all runs of that length, and the
    numbers of n-grams and of novel ones.
    """

    def runs(ids: Sequence[int], length: int) -> list[tuple[int, ...]]:
        return [tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)]

    longest, all_of_them = 0, list[list[int]]()
    for length in range(1, max(map(len, continuations), default=0) + 1):
        known = {run for ids in streams for run in runs(ids, length)}
        if hits := [
            list(run) for ids in continuations for run in runs(ids, length) if run in known
        ]:
            longest, all_of_them = length, hits
    known = {run for ids in streams for run in runs(ids, n)}
    ngrams = [run for ids in continuations for run in runs(ids, n)]
    return longest, all_of_them, len(ngrams), sum(run not in known for run in ngrams)


class InMemory:
    """The part of a token store that the search needs."""

    def __init__(self, documents: Texts):
        self.ids = np.array(
            [EOS, *(token for document in documents for token in (*document, EOS))], np.uint16
        )
        self.tokens, self.text_tokens, self.text_bytes = len(self.ids), 0, 0

    def read(self, start: int, length: int) -> Any:
        return self.ids[start : start + length]


def checked(sources: Sequence[Texts], continuations: Texts, n: int, piece: int) -> None:
    stores = [InMemory(documents) for documents in sources]
    stores[0].text_bytes, stores[0].text_tokens = memorisation.NGRAM_BYTES, n
    found = searched(TrainingText(BYTE, tuple(stores)), continuations, piece)  # type: ignore[arg-type]
    longest, all_of_them, ngrams, novel = naive(
        [store.ids.tolist() for store in stores], continuations, n
    )
    assert found.n == n
    assert found.longest_run == longest
    assert found.longest_text in [BYTE.decode(run) for run in all_of_them] or (
        longest == 0 and found.longest_text == ""
    )
    assert Ngrams(Continuations(continuations), n).count == ngrams
    assert found.novel_share == (novel / ngrams if ngrams else None)


@pytest.mark.usefixtures("takes_seconds")
@given(st.lists(few, min_size=1, max_size=2), few, st.integers(1, 6), st.integers(1, 9))
def test_what_is_found_is_what_looking_everywhere_finds(
    sources: list[Texts], continuations: Texts, n: int, piece: int
) -> None:
    checked(sources, continuations, n, piece)


@pytest.mark.usefixtures("takes_seconds")
@given(st.lists(few, min_size=1, max_size=2), few, st.integers(1, 6), st.sampled_from([0, 3]))
def test_nothing_rests_on_hashes(
    sources: list[Texts], continuations: Texts, n: int, kinds: int
) -> None:
    """Equal hashes for all runs, or only three different ones, make the search slower and not
    wrong.
    """
    with pytest.MonkeyPatch.context() as patch:
        right = memorisation.window_hashes
        patch.setattr(
            memorisation,
            "window_hashes",
            lambda ids, n: right(ids, n) % np.uint32(kinds) if kinds else right(ids, n) * 0,
        )
        checked(sources, continuations, n, 7)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 20))
def test_hashes_are_of_whole_windows_and_of_nothing_else(tokens: list[int], n: int) -> None:
    ids = np.array(tokens, np.uint32)
    windows = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    if not windows:
        return
    hashes = memorisation.window_hashes(ids, n).tolist()
    assert len(hashes) == len(windows)
    for (a, b), (x, y) in zip(
        itertools.combinations(windows, 2), itertools.combinations(hashes, 2), strict=True
    ):
        assert (a == b) == (x == y)


def test_runs_over_the_borders_of_shards_pieces_and_documents(tmp_path: Path) -> None:
    documents = [list(b"abcdefgh"), list(b"ijklmnop"), list(b"qrstuvwx")]
    text = TrainingText(
        BYTE,
        (
            stored(tmp_path, "one", documents, bytes_per_token=7.0),
            stored(tmp_path, "two", [list(b"yz")]),
        ),
    )
    assert sum(store.tokens for store in text.stores) == 28 + 4
    for piece in (1, 2, 3, 28, 100):
        inside = searched(text, [list(b"xx--klmnop--")], piece)
        assert (inside.longest_run, inside.longest_text) == (6, "klmnop")
        assert searched(text, [list(b"klmnop")], piece).longest_run == 6
        across = searched(text, [list(b"mnopqrs")], piece)
        assert (across.longest_run, across.longest_text) == (
            4,
            "mnop",
        ), "the end of one document and the beginning of the next"
        with_end = searched(text, [[*b"mnop", EOS, *b"qrs"]], piece)
        assert (with_end.longest_run, with_end.longest_text) == (
            8,
            "mnopqrs",
        ), "the model wrote the end, too"
        assert searched(text, [[*b"x", EOS, EOS, *b"yz"]], piece).longest_run == 3, (
            "of two sources none begins where the other ends"
        )


def test_continuations_are_not_put_together() -> None:
    text = TrainingText(BYTE, (InMemory([list(b"abcdef")]),))  # type: ignore[arg-type]
    assert searched(text, [list(b"abc"), list(b"def")]).longest_run == 3


def test_ngrams_have_as_much_text_whatever_the_tokenizer(tmp_path: Path) -> None:
    for bytes_per_token, n in ((1.0, 28), (3.7, 8), (4.5, 6), (100.0, 1)):
        store = stored(tmp_path, f"{n}", [[97] * 1000], bytes_per_token=bytes_per_token)
        assert searched(TrainingText(BYTE, (store,)), []).n == n


def test_nothing_written() -> None:
    text = TrainingText(BYTE, (InMemory([list(b"abc")]),), ("a part",))  # type: ignore[arg-type]
    for nothing in ([], [[]], [[], []]):
        found = searched(text, nothing)
        assert (
            found.longest_run,
            found.longest_text,
            found.novel_share,
            found.missing,
        ) == (0, "", None, ("a part",))


def opened(path: Path) -> tuple[Config, list[Corpus]]:
    """Load a configuration and make its caches; return both."""
    config = load_config(path).config
    return config, open_corpora(config, BYTE, lambda _: None)


def prefixes(text: TrainingText | str) -> list[str]:
    assert isinstance(text, TrainingText), text
    return [store._prefix for store in text.stores]


def test_the_training_split_of_a_run_is_found(tmp_path: Path) -> None:
    config, [corpus] = opened(config_file(tmp_path))
    found = training_text(config, BYTE)
    assert prefixes(found) == [str(corpus.folder / "train")]
    assert isinstance(found, TrainingText) and found.missing == ()
    assert [store.tokens for store in found.stores] == [
        corpus.train.tokens
    ] and found.bytes_per_token == 1.0  # type: ignore[union-attr]
    held_out = corpus.val.read(int(corpus.val.document_starts[0]) + 1, 40).tolist()
    assert searched(found, [held_out]).longest_run < 40
    assert searched(found, [corpus.train.read(1, 40).tolist()]).longest_run == 40  # type: ignore[union-attr]


def test_nothing_is_prepared(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path)).config
    assert "data.source: its tokens are not in " in str(training_text(config, BYTE))
    assert not (tmp_path / "cache").exists()


def test_text_that_has_changed_or_gone_is_said(tmp_path: Path) -> None:
    config, _ = opened(config_file(tmp_path))
    (tmp_path / "corpus.txt").write_text("another text", encoding="utf-8")
    assert "its files have changed, or the cache was cleared" in str(training_text(config, BYTE))
    (tmp_path / "corpus.txt").unlink()
    assert "corpus.txt does not exist" in str(training_text(config, BYTE))


def test_of_a_mixture_what_is_here_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("some more text\n\nand some more\n\nof it", encoding="utf-8")
    files = [
        {"format": "txt", "files": str(tmp_path / name)} for name in ("corpus.txt", "more.txt")
    ]
    parts = [{"weight": 1, "source": source} for source in files]
    config, corpora = opened(
        config_file(tmp_path, data={"source": {"format": "mixture", "parts": parts}})
    )
    assert prefixes(training_text(config, BYTE)) == [
        str(corpus.folder / "train") for corpus in corpora
    ]
    (tmp_path / "more.txt").unlink()
    found = training_text(config, BYTE)
    assert prefixes(found) == [str(corpora[0].folder / "train")]
    assert isinstance(found, TrainingText) and [line.split(":")[0] for line in found.missing] == [
        "data.source.parts[1].source.files"
    ]
    assert searched(found, []).missing == found.missing


def test_a_stream_is_not_kept(tmp_path: Path) -> None:
    source = {"format": "hub", "dataset": "some/stories", "streaming": True}
    config = load_config(
        config_file(
            tmp_path, data={"source": source}, trainer={"max_steps": 12, "validation_rows": 4}
        )
    ).config
    assert (
        training_text(config, BYTE)
        == "data.source: some/stories was streamed, and its text was not kept"
    )


def test_the_only_source_of_a_run_is_known_by_the_hash_of_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the source may have changed or gone. The hub is not asked."""
    monkeypatch.setattr("lm.documents.reader.load_dataset", lambda _: pytest.fail("asked"))
    config, [corpus] = opened(config_file(tmp_path))
    data_sha256 = PackedDataModule(config, BYTE, lambda _: None).sha256
    (tmp_path / "other.txt").write_text(
        "\n\n".join(f"another text {i}" for i in range(20)), encoding="utf-8"
    )
    other = {"format": "txt", "files": str(tmp_path / "other.txt")}
    opened(
        config_file(
            tmp_path,
            data={"source": other, "cache_dir": str(tmp_path / "cache"), "val_fraction": 0.3},
        )
    )
    (tmp_path / "corpus.txt").unlink()
    assert prefixes(training_text(config, BYTE, data_sha256)) == [str(corpus.folder / "train")]
    hub = {
        "source": {"format": "hub", "dataset": "some/stories"},
        "cache_dir": str(tmp_path / "cache"),
    }
    config = load_config(config_file(tmp_path, data=hub)).config
    assert prefixes(training_text(config, BYTE, data_sha256)) == [str(corpus.folder / "train")]
    assert "only the hub knows which tokens are those of " in str(
        training_text(config, BYTE, "0" * 64)
    )


def test_what_the_base_was_trained_on_counts_too(tmp_path: Path) -> None:
    from lm.config.schema.model import ModelConfig
    from model import Decoder

    (tmp_path / "base").mkdir()
    config, [before] = opened(config_file(tmp_path / "base"))
    shape = ModelConfig(
        vocab_size=BYTE.vocab_size, context_length=16, n_layers=1, d_model=8, n_heads=2
    )
    base = write_trained(tmp_path, Decoder(shape), BYTE, config.model_dump())
    (tmp_path / "chat.jsonl").write_text(
        '{"prompt": "a", "completion": "b"}\n' * 9, encoding="utf-8"
    )
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text(
        f"data:\n  source: {{format: chat, files: {tmp_path / 'chat.jsonl'}, template: alpaca}}\n"
        f"  document_mask: true\n  val_fraction: 0.5\n  cache_dir: {tmp_path / 'cache'}\n"
        f"trainer: {{max_steps: 200}}\nfinetune: {{base: {base}}}\n",
        encoding="utf-8",
    )
    config = load_config(tuned).config
    found = training_text(config, BYTE)
    assert prefixes(found) == [str(before.folder / "train")]
    assert (
        isinstance(found, TrainingText)
        and len(found.missing) == 1
        and found.missing[0].startswith("data.source: its tokens are not in")
    )
    (tmp_path / "base" / "corpus.txt").unlink()
    assert "; of finetune.base: data.source.files: " in str(training_text(config, BYTE))
