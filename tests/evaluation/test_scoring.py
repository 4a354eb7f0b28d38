"""Scores of given tokens: compared with a decoder that reads each token alone, at every batch size,
border and length.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from lm.config.schema.model import ModelConfig
from lm.evaluation.scoring import continued, score, split, windows
from lm.tokenizer.tokenizer import Tokenizer, from_definition, load_tokenizer
from model import Decoder

BYTE = load_tokenizer("byte")
EOS = BYTE.eos_id
CONTEXT = 24
PAIRS = [
    ("How", "?"),
    ("", "an"),
    ("a longer prompt than", " the other ones"),
    ("x" * 40, " is cut"),
    ("y", "z" * CONTEXT),
    ("café ", "é"),
]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    shape = {
        "vocab_size": BYTE.vocab_size,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 4,
        "init_std": 0.3,
    }
    return Decoder(ModelConfig(context_length=CONTEXT, dropout=0.2, **shape))


@pytest.fixture(scope="module")
def merging() -> Tokenizer:
    """Return a tokenizer that joins words with the space before them, and letters across a prompt's
    end.
    """
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(
        ["the theory of the thesis is there"] * 9,
        trainers.BpeTrainer(vocab_size=60, special_tokens=["<e>"]),
    )
    return from_definition(backend.to_str(), "merging", 0, 0)


@torch.no_grad()
def one_by_one(
    decoder: Decoder, context: Sequence[int], continuation: Sequence[int]
) -> tuple[list[float], list[bool]]:
    """Score each token with a decoder that has read only what comes before it, as in generation."""
    nats, likeliest = [], []
    read = [EOS, *context, *continuation[:-1]][-CONTEXT:]
    first = len(read) - len(continuation) + 1
    for end, token in enumerate(continuation, start=first):
        probabilities = decoder.eval()(torch.tensor([read[:end]]))[0, -1].double().softmax(-1)
        nats.append(-math.log(probabilities[token]))
        likeliest.append(int(probabilities.argmax()) == token)
    return nats, likeliest


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("most", [1, 3, 8])
def test_scores_are_those_of_each_token_read_alone(decoder: Decoder, most: int) -> None:
    """The scores are the same at each batch size and come from the right logits. A cut
    on the left keeps the border.
    """
    pairs = [(BYTE.encode(prompt), BYTE.encode(text)) for prompt, text in PAIRS]
    rows = [continued(EOS, context, continuation, CONTEXT) for context, continuation in pairs]
    for scores, pair in zip(score(decoder.train(), rows, most), pairs, strict=True):
        nats, likeliest = one_by_one(decoder, *pair)
        np.testing.assert_allclose(scores.nats, nats, atol=2e-5)
        assert scores.likeliest.tolist() == likeliest
        decoder.train()
    assert decoder.training


def test_the_likeliest_tokens_are_known_as_such(decoder: Decoder) -> None:
    ids = [EOS, 65]
    for _ in range(6):
        ids.append(int(decoder.eval()(torch.tensor([ids]))[0, -1].argmax()))
    (scores,) = score(decoder, [continued(EOS, ids[1:2], ids[2:], CONTEXT)])
    assert scores.likeliest.all()
    (scores,) = score(
        decoder, [continued(EOS, ids[1:2], [*ids[2:-1], (ids[-1] + 1) % 256], CONTEXT)]
    )
    assert scores.likeliest.tolist() == [True] * 5 + [False]


def test_nothing_to_score(decoder: Decoder) -> None:
    assert score(decoder, []) == []


def test_a_row_opens_with_one_eos_unless_it_is_cut() -> None:
    """A whole row begins with one EOS, a row that is cut on the left with none."""
    row = continued(EOS, [1, 2], [3, 4], CONTEXT)
    assert row.ids.tolist() == [EOS, 1, 2, 3]
    assert row.labels.tolist() == [-100, -100, 3, 4]
    row = continued(EOS, [1, 2, 3], [4, 5], 3)
    assert (row.ids.tolist(), row.labels.tolist()) == ([2, 3, 4], [-100, 4, 5])


def test_a_prompt_and_its_continuation_have_the_ids_of_the_whole(merging: Tokenizer) -> None:
    for text in ("the theory of the thesis", "there is the"):
        for cut in range(len(text)):
            context, continuation = split(merging, text[:cut], text[cut:])
            assert context + continuation == merging.encode(text)
            assert continuation
            assert merging.encode(text[:cut])[: len(context)] == context
    # "the" would be joined to "sis"
    assert split(merging, "the the", "sis is")[0] == merging.encode("the")
    assert split(merging, "the", " thesis")[0] == merging.encode("the")


@given(st.integers(1, 90), st.integers(1, 9))
def test_windows_ask_for_every_token_once(length: int, context: int) -> None:
    ids = list(range(1, length + 1))
    rows = windows(0, ids, context)
    asked = [int(label) for row in rows for label in row.labels if label != -100]
    assert asked == ids
    for row, labels in itertools.chain((row.ids, row.labels) for row in rows):
        assert len(row) <= context
        places = np.flatnonzero(labels != -100)
        # Each label follows the token at its place.
        assert [row[place] for place in places] == [labels[place] - 1 for place in places]
        assert row[0] == 0 or places[0] >= context // 2 - (context + 1) % 2
