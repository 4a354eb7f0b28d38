"""Comparisons of two models on the same text, with a known verdict: python -m pytest
tests/evaluation/test_same_text.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data import PackedDataModule
from lm.commands import load_config
from lm.config.schema.model import ModelConfig
from lm.evaluation.same_text import (
    Sums,
    documents_known,
    judge,
    passages_of,
    sums_of_passages,
    sums_of_rows,
)
from lm.evaluation.validation import evaluate
from lm.system.errors import ConfigError
from lm.tokenizer.tokenizer import ByteTokenizer
from model import Decoder
from tests.support.runs import TEXT, config_file
from tools.compare import Contender, verdict_on

NAMES = ("a", "b")


class OtherBytes(ByteTokenizer):
    """The same ids under another name; figures per byte must not change."""

    sha256 = "of another tokenizer"


def decoder(context: int = 16, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    shape = ModelConfig(
        vocab_size=ByteTokenizer().vocab_size,
        context_length=context,
        n_layers=1,
        d_model=16,
        n_heads=2,
        init_std=0.3,
    )
    return Decoder(shape).eval()


def sums(generator: np.random.Generator, better_by: float, n: int = 200) -> tuple[Sums, Sums]:
    """Return the sums of two models over rows of different lengths, hard or easy for both. The
    second is better by about `better_by` per token.
    """
    sizes = generator.integers(5, 50, n).astype(float)
    hard = sizes * generator.normal(3, 1, n)
    return Sums(hard, sizes), Sums(hard - sizes * generator.normal(better_by, 0.05, n), sizes)


# --- the verdict


def test_a_difference_that_is_there_is_found_and_named() -> None:
    a, b = sums(np.random.default_rng(0), 0.1)
    verdict = judge("the text of a", "nats per token", "rows", a, b, [])
    expected = (b.amounts.sum() - a.amounts.sum()) / a.sizes.sum()
    assert verdict.difference == pytest.approx(expected)
    assert (verdict.a, verdict.b) == pytest.approx(
        (a.amounts.sum() / a.sizes.sum(), b.amounts.sum() / b.sizes.sum())
    )
    assert verdict.low < -0.1 < verdict.high < -0.08 and verdict.beyond_noise
    words = verdict.words(NAMES)
    assert words.startswith(
        f"b is better than a by {-expected:.4f} nats per token, 95 % interval [0.0"
    )
    assert (
        "on the text of a (200 rows): beyond the noise of the text; the interval does not cover"
        " other seeds" in words
    )
    assert "tools.ablate" in words
    swapped = judge("the text of a", "nats per token", "rows", b, a, [])
    assert swapped.words(("b", "a")) == words


def test_noise_is_called_noise() -> None:
    generator = np.random.default_rng(1)
    a, b = sums(generator, 0.0)
    verdict = judge("the text of a", "nats per token", "rows", a, b, [])
    assert not verdict.beyond_noise
    assert "a and b cannot be told apart on the text of a (200 rows): b - a is " in verdict.words(
        NAMES
    )


def test_rows_are_paired() -> None:
    """Without pairs, rows that differ by 1 nat per token would hide a difference of a tenth."""
    a, b = sums(np.random.default_rng(2), 0.1)
    order = np.random.default_rng(3).permutation(len(a.sizes))
    shuffled = Sums(b.amounts[order], b.sizes[order])
    paired, unpaired = (judge("", "", "rows", a, each, []) for each in (b, shuffled))
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 5


@pytest.mark.usefixtures("takes_seconds")
def test_coverage() -> None:
    """About 95 % of 200 texts drawn by the same rule have an interval that holds the truth."""
    generator, inside = np.random.default_rng(4), 0
    for _ in range(200):
        verdict = judge("", "", "rows", *sums(generator, 0.02, 40), [])
        inside += verdict.low <= -0.02 <= verdict.high
    assert 178 <= inside <= 199


def test_equal_and_single() -> None:
    a, _ = sums(np.random.default_rng(5), 0.0)
    assert (
        judge("it", "nats per token", "rows", a, a, []).words(NAMES)
        == "a and b score exactly the same on it (200 rows)"
    )
    one = judge(
        "it",
        "bits per byte",
        "passages",
        Sums(np.array([3.0]), np.array([2.0])),
        Sums(np.array([2.0]), np.array([2.0])),
        [],
    )
    assert (
        one.words(NAMES)
        == "On it (1 passages) they differ by 0.5000 bits per byte; so few give no interval"
    )
    assert not one.beyond_noise


# --- the sums


def data(folder: Path, *overrides: str) -> PackedDataModule:
    return PackedDataModule(
        load_config(config_file(folder), list(overrides)).config, ByteTokenizer(), lambda line: None
    )


def test_rows_add_up_to_the_validation(tmp_path: Path) -> None:
    batches = list(data(tmp_path).val_dataloader())
    model = decoder()
    found, whole = sums_of_rows(model, batches), evaluate(model, batches, np.ones(260))
    assert found.sizes.min() > 0, "rows past the end are no cases"
    assert found.sizes.sum() == whole.tokens
    assert found.amounts.sum() / found.sizes.sum() == pytest.approx(whole.loss, rel=1e-6)


def test_passages_are_scored_as_one_token_after_the_other() -> None:
    model, tokenizer, text = decoder(), ByteTokenizer(), "a few words"
    found = sums_of_passages(model, tokenizer, [text, TEXT])
    ids = torch.tensor([[tokenizer.eos_id, *text.encode()]])
    with torch.no_grad():
        logs = model(ids[:, :-1]).double().log_softmax(-1)[0]
    bits = -sum(logs[i, number].item() for i, number in enumerate(ids[0, 1:].tolist())) / math.log(
        2
    )
    assert found.amounts[0] == pytest.approx(bits, rel=1e-5)
    assert found.sizes.tolist() == [len(text), len(TEXT)]


def test_passages_hold_all_of_the_text_in_order() -> None:
    texts = [TEXT, "short", "x" * 100, " \n ", "ä" * 50]
    pieces = passages_of(texts, 30, 1000)
    assert "".join(pieces) == "".join(text for text in texts if text.strip())
    assert max(map(len, pieces)) <= 60
    assert all(TEXT[len("".join(pieces[: i + 1]))] == " " for i in range(2)), (
        "cut before white space"
    )
    assert passages_of(texts, 30, 3) == [pieces[i * len(pieces) // 3] for i in range(3)]


# --- whose text, and how


def models(folder: Path, context: int = 16) -> tuple[Contender, Contender]:
    module = data(folder)
    return Contender("a", decoder(), ByteTokenizer(), module), Contender(
        "b", decoder(context, seed=1), ByteTokenizer(), module
    )


def test_the_same_rows_for_the_same_tokenizer(tmp_path: Path) -> None:
    a, b = models(tmp_path)
    verdict = verdict_on(a, a, b, 500)
    batches = list(a.data.val_dataloader())
    losses = [evaluate(each.decoder, batches, np.ones(260)).loss for each in (a, b)]
    assert (verdict.unit, verdict.kind, verdict.text) == (
        "nats per token",
        "rows",
        "the validation text of a",
    )
    assert [verdict.a, verdict.b] == pytest.approx(losses, rel=1e-6)
    same = verdict_on(a, a, a, 500)
    assert same.difference == same.low == same.high == 0


def test_another_tokenizer_or_a_shorter_context_is_compared_per_byte(tmp_path: Path) -> None:
    a, _ = models(tmp_path)
    renamed = a._replace(name="b", tokenizer=OtherBytes())
    verdict = verdict_on(a, a, renamed, 500)
    assert (verdict.unit, verdict.kind) == ("bits per byte", "passages")
    assert verdict.difference == verdict.low == verdict.high == 0
    assert 6 < verdict.a < 20, "random weights know nothing of a byte"
    shorter = verdict_on(a, *models(tmp_path, context=8), 500)
    assert (shorter.unit, shorter.kind) == ("bits per byte", "passages")
    longer = verdict_on(a, *models(tmp_path, context=32), 500)
    assert (longer.unit, longer.kind) == ("nats per token", "rows")
    assert longer.notes[-1] == "both read rows of 16 tokens there; their contexts are 16 and 32"


def test_text_that_one_was_trained_on_is_said(tmp_path: Path) -> None:
    a, b = models(tmp_path)
    assert verdict_on(a, a, b, 500).notes == []
    # All that is held out at 0.3 is also held out at 0.6, but not the other way round.
    other = data(tmp_path, "--data.val_fraction", "0.6")
    held_out = [other.corpora[0].val], [a.data.corpora[0].val]
    n = documents_known(held_out[0], [a.data.corpora[0].train])
    assert 0 < n == held_out[0][0].documents - held_out[1][0].documents
    b = b._replace(data=other)
    assert verdict_on(a, a, b, 500).notes == []
    said = (
        f"a was trained on {n} of the {held_out[0][0].documents} documents that b is validated on"
    )
    assert verdict_on(b, a, b, 500).notes == [said]


def test_conversations_are_not_cut_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = models(tmp_path)
    monkeypatch.setattr(a.data.corpora[0].val, "flagged", True)
    with pytest.raises(ConfigError, match="it holds conversations"):
        verdict_on(a, a, a._replace(tokenizer=OtherBytes()), 500)
