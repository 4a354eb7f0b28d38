"""What a tokenizer loses of a text is measured, said, and never makes bits per byte look good."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from lm.documents.reader import Reader
from lm.documents.templates import LEARNED
from lm.tokenizer.tokenizer import ByteTokenizer, FastTokenizer
from lm.tokenizer.tokenizer import Tokenizer as OurTokenizer
from lm.tokens.corpus import open_corpora
from lm.tokens.round_trip import MOST_LOST, compare, difference, is_lost, losses, lost_share
from lm.tokens.store import Counts
from lm.tokens.summary import bytes_per_token, text_bytes
from lm.tokens.tokenise import Tokenise, Tokens
from tests.support.runs import config_file

LETTERS = "abcdefghijklmnopqrstuvwxyz "


def characters(unknown: str | None, lower: bool = False) -> OurTokenizer:
    """Return a tokenizer of small letters; it drops others, or they become a token."""
    vocab = {character: i for i, character in enumerate(["<eos>", "<unk>", *LETTERS])}
    backend = Tokenizer(models.BPE(vocab, [], unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    if lower:
        backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens(["<eos>", "<unk>"])
    return FastTokenizer(backend.to_str(), "letters", 0, 0)


def obvious(one: bytes, other: bytes) -> int:
    """Return the same as `difference`, by the table of every textbook."""
    row = [0] * (len(other) + 1)
    for a in one:
        before = row
        row = [0]
        for i, b in enumerate(other):
            row.append(before[i] + 1 if a == b else max(row[-1], before[i + 1]))
    return max(len(one), len(other)) - row[-1]


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_the_difference_of_any_two_texts(one: bytes, other: bytes) -> None:
    assert difference(one, other) == obvious(one, other)


@given(st.text("abc", max_size=30), st.text("abc", max_size=30))
def test_the_difference_of_texts_that_have_much_in_common(one: str, other: str) -> None:
    assert difference(one.encode(), other.encode()) == obvious(one.encode(), other.encode())


@pytest.mark.parametrize(
    ("tokenizer", "text", "lost"),
    [
        (characters(None), "all of it comes back", 0),
        (characters(None), "two ÄÖ", 4),
        (characters("<unk>"), "two ÄÖ", 4),
        (characters(None), "Capital Letters", 2),
        (characters(None, lower=True), "Capital Letters", 2),
        (characters(None), "今天", 6),
        (ByteTokenizer(), "two ÄÖ 今天", 0),
    ],
)
def test_what_does_not_come_back_is_counted_in_bytes(
    tokenizer: OurTokenizer, text: str, lost: int
) -> None:
    compared, found = compare(tokenizer, ["some text", text])
    assert found.tolist() == [0, lost]
    assert compared.tolist() == (
        [0, 0] if tokenizer.lossless else [len("some text"), len(text.encode())]
    )
    assert is_lost(tokenizer, text) == bool(lost)


def test_much_text_is_measured_by_a_sample_from_everywhere() -> None:
    texts = ["words " * 200 + "Ü" * 60] * 300 + ["words " * 200] * 300
    compared, lost = compare(characters(None), texts)
    assert 20_000 < compared.sum() < 60_000
    assert (compared[:300] > 0).any() and (compared[300:] > 0).any()
    assert 0.02 < lost.sum() / compared.sum() < 0.10
    compared, _ = compare(characters(None), ["words " * 100_000])
    assert 20_000 < compared.sum() < 60_000, "of a document that is longer than all others"


def test_the_share_is_that_of_tokens_or_of_bytes() -> None:
    assert lost_share([]) == lost_share([Counts()]) == 0
    assert lost_share([Counts(text_tokens=100, unknown_tokens=30)]) == 0.3
    assert lost_share([Counts(text_tokens=9, compared_bytes=100, lost_bytes=4)] * 2) == 0.04


def test_a_pieces_documents_keep_their_own_figures(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    from lm.commands import load_config

    reader = Reader(load_config(str(config)).config.data.source)  # type: ignore[arg-type]
    tokens = Tokenise(reader, characters(None)).encode(["a b", "Äa", "Ö"], Counter())
    assert tokens.lost_bytes.tolist() == [0, 2, 2]
    chosen = tokens.select(np.array([False, True, False]))
    assert (chosen.lost_bytes.tolist(), chosen.compared_bytes.tolist()) == ([2], [3])


def opened(tmp_path: Path, texts: list[str], tokenizer: OurTokenizer) -> tuple[list[Counts], str]:
    from lm.commands import load_config

    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    source = {"format": "jsonl", "files": str(tmp_path / "texts.jsonl")}
    config = load_config(str(config_file(tmp_path, data={"source": source}))).config
    [corpus] = open_corpora(config, tokenizer, lambda line: None)
    return list(corpus.stores), "; ".join(corpus.facts)


def test_it_is_said_and_kept_and_bits_per_byte_are_withheld(tmp_path: Path) -> None:
    texts = [f"{LETTERS[i % 26]} some text" for i in range(90)]
    stores, facts = opened(tmp_path, [*texts, *(["ÄÖÜ"] * 10), *["今天"] * 5], characters(None))
    # 10 x 6 bytes and 5 x 6 bytes of 90 x 11 bytes and these
    assert lost_share(stores) == 90 / (90 * 11 + 90)
    assert "8.33% of the text is lost by the tokenizer, so bits per byte are not shown" in facts
    assert "15 x document that became no token" in facts
    assert not text_bytes(characters(None), stores).any()  # type: ignore[arg-type]
    assert bytes_per_token(stores) > 1  # type: ignore[arg-type]


def test_unknown_words_are_counted_all(tmp_path: Path) -> None:
    texts = [f"{LETTERS[i % 26]} some text" for i in range(90)]
    stores, facts = opened(tmp_path, [*texts, "ÄÖÜ"], characters("<unk>"))
    assert sum(store.unknown_tokens for store in stores) == 3
    assert "3 x unknown token" in facts


def test_a_text_that_comes_back_has_bits_per_byte_and_no_words(tmp_path: Path) -> None:
    texts = [f"{LETTERS[i % 26]} some text" for i in range(90)]
    stores, facts = opened(tmp_path, texts, characters(None))
    assert losses(stores) == []
    assert "lost" not in facts
    assert text_bytes(characters(None), stores)[2] == 1  # type: ignore[arg-type]


def test_a_little_is_said_and_harms_nothing(tmp_path: Path) -> None:
    texts = [f"{LETTERS[i % 26]} {'text ' * 70}" for i in range(90)]
    stores, facts = opened(tmp_path, [*texts, "Ä"], characters(None))
    assert 0 < lost_share(stores) < MOST_LOST
    assert "of the text is lost by the tokenizer; 1 x document that became no token" in facts


def test_unknown_text_in_prompts_does_not_count():
    lengths = np.array([4])
    tokens = Tokens(
        np.array([9, 7, 1, 7, 7]),
        lengths,
        lengths.astype(np.uint64),
        *[lengths] * 5,
        None,
        Counter(),
    )
    assert tokens.count_unknown(7) == 3 and tokens.count_unknown(None) == 0
    learned = np.array([0, 0, 0, LEARNED, LEARNED], np.uint8)
    assert tokens._replace(flags=learned).count_unknown(7) == 2
    one_id_for_both = tokens._replace(ids=np.array([7, 7, 1, 7, 7]))
    assert one_id_for_both.count_unknown(7) == 3
