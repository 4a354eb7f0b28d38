"""Surprisal is the validation's loss, only not summed: python -m pytest
tests/evaluation/test_surprisal.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lm.config.schema.model import ModelConfig
from lm.display.html import visible
from lm.display.style import DARK, LIGHT
from lm.evaluation.surprisal import Surprisal, measure_surprisal
from lm.evaluation.validation import evaluate
from lm.reports import run_model
from lm.tokenizer.tokenizer import ByteTokenizer
from model import Decoder
from tests.display.test_html import HOSTILE, Read, contrast

BYTES = ByteTokenizer()
T = 24
NAMES = ("a.txt", "b.txt")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        ModelConfig(
            vocab_size=BYTES.vocab_size,
            context_length=T,
            n_layers=1,
            d_model=16,
            n_heads=2,
            init_std=0.4,
            dropout=0.3,
        )
    )


def batches(masked: bool) -> list[tuple[dict, list[str]]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for rows in (3, 2):
        ids = torch.randint(0, 256, (rows, T + 1), generator=generator)
        labels = ids[:, 1:].clone()
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = -100
        labels[0, -4:] = -100
        batch = {"input_ids": ids[:, :-1], "labels": labels}
        if masked:
            batch["document_ids"] = (
                (torch.rand(labels.shape, generator=generator) < 0.15).long().cumsum(dim=-1)
            )
        made.append((batch, [NAMES[i % 2] for i in range(rows)]))
    return made


@pytest.mark.parametrize("masked", [False, True])
def test_the_sums_are_those_of_a_validation(decoder, masked):
    decoder.train()
    found = measure_surprisal(decoder, batches(masked), T)
    assert decoder.training
    expected = evaluate(decoder, [batch for batch, _ in batches(masked)], np.ones(300))
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (
        found.tokens.sum() == expected.tokens == sum(tokens for _, tokens in found.sources.values())
    )
    assert sum(nats for nats, _ in found.sources.values()) == pytest.approx(found.nats.sum())
    for name in NAMES:  # one source alone
        own = [
            ({k: v[[s == name for s in sources]] for k, v in batch.items()}, ())
            for batch, sources in batches(masked)
        ]
        alone = evaluate(decoder, [batch for batch, _ in own], np.ones(300))
        assert found.sources[name] == (
            pytest.approx(alone.loss * alone.tokens, rel=1e-5),
            alone.tokens,
        )


@pytest.mark.parametrize("masked", [False, True])
def test_places_are_counted_from_where_the_model_begins_to_see(decoder, masked):
    """The sums equal those of one row and one place at a time."""
    nats, tokens = np.zeros(T + 1), np.zeros(T + 1, int)
    decoder.eval()
    for batch, _ in batches(masked):
        losses = decoder(batch["input_ids"], batch["labels"], batch.get("document_ids")).detach()
        for i, j in np.ndindex(*losses.shape):
            documents = batch["document_ids"][i].tolist() if masked else [0] * T
            if batch["labels"][i, j] != -100:
                nats[documents[: j + 1].count(documents[j])] += losses[i, j].item()
                tokens[documents[: j + 1].count(documents[j])] += 1
    found = measure_surprisal(decoder, batches(masked), T)
    assert found.tokens.tolist() == tokens.tolist() and found.nats == pytest.approx(nats, rel=1e-5)


def test_bins_hold_every_token_once():
    tokens = np.array([0, 5, 4, 3, 3, 0, 0, 0, 0, 7, 1])
    bins = Surprisal(tokens * 2.0, tokens).by_position()
    assert bins == [(1, 1, 2.0, 5), (2, 2, 2.0, 4), (3, 4, 2.0, 6), (9, 10, 2.0, 8)]


@pytest.mark.parametrize("masked", [False, True])
def test_examples_are_of_each_source_and_say_what_was_expected(decoder, masked):
    found = measure_surprisal(decoder, batches(masked), T, examples=3)
    assert [guessed.source for guessed in found.examples] == ["a.txt", "b.txt", "a.txt"]
    for guessed in found.examples:
        losses = (
            decoder(
                guessed.rows["input_ids"], guessed.rows["labels"], guessed.rows.get("document_ids")
            )[0]
            .detach()
            .numpy()
        )
        labels = guessed.rows["labels"][0].numpy()
        assert np.isnan(guessed.nats).tolist() == (labels == -100).tolist()
        asked = labels != -100
        assert guessed.nats[asked] == pytest.approx(losses[asked], abs=1e-5)
        right = asked & (guessed.likeliest == labels)
        assert np.exp(-guessed.nats[right]) == pytest.approx(guessed.probability[right], rel=1e-4)
        assert (np.exp(-guessed.nats[asked]) <= guessed.probability[asked] + 1e-6).all()
    assert measure_surprisal(decoder, batches(masked), T, least=T + 1).examples == []


def test_the_text_is_whole_and_each_token_has_its_value(decoder):
    text = (HOSTILE.encode("utf-8", "replace")[: T - 1]).decode()
    ids = torch.tensor([[BYTES.eos_id, *BYTES.encode(text)]])
    labels = torch.cat([ids[:, 1:], torch.tensor([[-100]])], dim=1)
    found = measure_surprisal(decoder, [({"input_ids": ids, "labels": labels}, [HOSTILE])], T)
    page = run_model.surprise(found, BYTES, HOSTILE, 1.25)
    read = Read(page)
    tokens = [attributes for tag, attributes in read.tags if tag == "i"][run_model.SHADES :]
    assert [token.get("title") is None for token in tokens] == [True] + [False] * (len(tokens) - 1)
    [guessed] = found.examples
    for token, nats in zip(tokens[1:], guessed.nats, strict=False):
        assert token["title"].startswith(f"{nats / math.log(2):.2f} bits ({nats:.3f} nats): ")
        assert f"h{run_model.shade(nats / math.log(2))}" in token["class"].split()
    assert visible(text) in read.text and "script" not in {tag for tag, _ in read.tags}
    assert f"{found.loss:.4f} nats per token (the run itself recorded 1.2500)" in read.text


@pytest.mark.parametrize(
    ("bits", "shade"), [(0, 0), (0.99, 0), (1, 1), (3.9, 2), (13.9, 6), (14, 7), (400, 7)]
)
def test_shades(bits, shade):
    assert run_model.shade(bits) == shade


@pytest.mark.parametrize(
    ("scheme", "colour", "shares"),
    [(0, (236, 112, 20), run_model.LIGHT_OPACITY), (1, (205, 84, 10), run_model.DARK_OPACITY)],
)
def test_text_can_be_read_on_every_shade(scheme, colour, shares):
    names = (LIGHT, DARK)[scheme]
    assert (
        f"rgba({', '.join(map(str, colour))}, {shares[-1]})" in run_model.STYLE
        and len(shares) == run_model.SHADES
    )
    paper = [int(names["paper"][i : i + 2], 16) for i in (1, 3, 5)]
    for share in shares:
        mixed = [round(a * share + b * (1 - share)) for a, b in zip(colour, paper, strict=True)]
        assert contrast(names["ink"], "#" + "".join(f"{value:02x}" for value in mixed)) > 4.5
