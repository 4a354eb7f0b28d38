"""Validation weighs every token the same: python -m pytest tests/evaluation/test_validation.py."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval_val import print_scores
from lm.config.schema.model import ModelConfig
from lm.evaluation.validation import Evaluation, evaluate
from lm.optim.loss import IGNORE_INDEX
from lm.optim.objectives import Preference, frozen_reference
from model import Decoder

EOS = 10
Batch = dict[str, Any]


class Given(nn.Module):
    """A stand-in for a decoder: label i costs `costs[i]` nats, whatever the input."""

    def __init__(self, *costs: float):
        super().__init__()
        self.costs = nn.Parameter(torch.tensor(costs))
        self.modes: list[bool] = []
        self.inner = nn.Dropout(0.5)

    def forward(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None) -> Tensor:
        self.modes.append(self.training or self.inner.training or torch.is_grad_enabled())
        return torch.where(labels == IGNORE_INDEX, 0.0, self.costs[labels.clamp(min=0)])


def sizes(each: float) -> NDArray[np.float64]:
    """Return the bytes of each id's text: all alike, and none for EOS."""
    table = np.full(300, each)
    table[EOS] = 0
    return table


def batch(*rows: list[int]) -> Batch:
    labels = torch.tensor(rows)
    return {"input_ids": torch.zeros_like(labels), "labels": labels, "step": 3}


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        ModelConfig(
            vocab_size=EOS + 1, context_length=6, n_layers=1, d_model=16, dropout=0.3, init_std=0.5
        )
    )


def rows() -> Batch:
    """Return nine rows of up to two documents. Some are mostly padding, two are nothing else."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(EOS, (9, 7), generator=generator)
    ids[:, 2] = EOS
    labels = ids[:, 1:].clone()
    for row, real in enumerate([6, 6, 1, 6, 3, 6, 2, 0, 0]):
        labels[row, real:] = IGNORE_INDEX
    return {
        "input_ids": ids[:, :-1],
        "labels": labels,
        "document_ids": (ids[:, :-1] == EOS).cumsum(1),
    }


def cut(whole: Batch, size: int, begin: int = 0, end: int = 9) -> Iterator[Batch]:
    for start in range(begin, end, size):
        yield {name: tensor[start : min(end, start + size)] for name, tensor in whole.items()}


def test_batches_weigh_by_their_tokens() -> None:
    """The sums 2 over 1 token and 90 over 9 give 92 / 10. The mean of the means would be 6."""
    unequal = [batch([1]), batch([2] * 9)]
    result = evaluate(Given(0.0, 2.0, 10.0), unequal, sizes(1.0))
    assert result.loss == pytest.approx(9.2)
    assert result.tokens == 10
    assert result.perplexity == pytest.approx(math.exp(9.2))


def test_the_same_at_every_batch_size_and_equal_to_the_loop() -> None:
    model, whole = decoder(), rows()
    results = [evaluate(model, cut(whole, size), sizes(1.7)) for size in (1, 3, 8, 9)]
    model.eval()
    with torch.no_grad():
        logs = (
            model(whole["input_ids"], document_ids=whole["document_ids"]).double().log_softmax(-1)
        )
    scored = [
        (b, t, y)
        for b, row in enumerate(whole["labels"].tolist())
        for t, y in enumerate(row)
        if y != IGNORE_INDEX
    ]
    nats = {place: -logs[place].item() for place in scored}
    text = [place for place in scored if place[2] != EOS]
    assert 0 < len(text) < len(scored) == 30
    for result in results:
        assert result.tokens == 30
        assert result.loss == pytest.approx(sum(nats.values()) / 30, rel=1e-6)
        assert result.bits_per_byte == pytest.approx(
            sum(nats[place] for place in text) / math.log(2) / (len(text) * 1.7), rel=1e-6
        )


def test_bits_per_byte_by_hand() -> None:
    """Two tokens of 3 bytes each at 1 and 3 bits give 4 bits over 6 bytes. The loss has the end of
    the document as a third token.
    """
    bit = math.log(2)
    result = evaluate(
        Given(0.0, bit, 3 * bit, *[0.0] * 7, 100.0), [batch([1, 2, EOS, IGNORE_INDEX])], sizes(3.0)
    )
    assert result.bits_per_byte == pytest.approx(4 / 6)
    assert result.loss == pytest.approx((4 * bit + 100) / 3, rel=1e-6)
    assert result.tokens == 3


def test_bits_per_byte_are_of_the_labels_that_are_scored() -> None:
    """Tokens of 1 and 5 bytes cost a bit each. Of four, one of 5 bytes is not scored."""
    table = np.array([1.0, 5.0, 0.0])
    bit = math.log(2)
    result = evaluate(Given(bit, bit, 9.0), [batch([0, 1, IGNORE_INDEX, 0, 2])], table)
    assert result.bits_per_byte == pytest.approx(3 / 7)


def test_an_impossible_end_of_document_spares_the_bits_per_byte() -> None:
    result = evaluate(Given(0.0, 1.0, *[0.0] * 8, math.inf), [batch([1, EOS])], sizes(1.0))
    assert (result.loss, result.perplexity) == (math.inf, math.inf)
    assert result.bits_per_byte == pytest.approx(1 / math.log(2))


def test_documents_are_handed_on() -> None:
    model, whole = decoder(), rows()
    without = {name: tensor for name, tensor in whole.items() if name != "document_ids"}
    assert evaluate(model, [whole], sizes(1.0)).loss != evaluate(model, [without], sizes(1.0)).loss


@pytest.mark.parametrize(
    "batches", [[], [batch([IGNORE_INDEX, IGNORE_INDEX])]], ids=["no batch", "no target"]
)
def test_nothing_to_score_is_nan(batches: list[Batch]) -> None:
    result = evaluate(Given(1.0), batches, sizes(1.0))
    assert result.tokens == 0
    assert math.isnan(result.loss)
    assert math.isnan(result.bits_per_byte)
    assert math.isnan(result.perplexity)


def test_only_ends_of_documents_have_a_loss_but_no_bits_per_byte() -> None:
    result = evaluate(Given(*[2.0] * 11), [batch([EOS, EOS])], sizes(1.0))
    assert result.loss == 2.0
    assert math.isnan(result.bits_per_byte)


@pytest.mark.parametrize("loss", [709.0, 710.0, 1e6, math.inf])
def test_perplexity_of_a_large_loss(loss: float) -> None:
    found = Evaluation(loss, 1.0, 1).perplexity
    assert found == (math.exp(709) if loss == 709 else math.inf)


def test_a_nan_is_not_hidden() -> None:
    result = evaluate(Given(0.0, math.nan), [batch([0, 0]), batch([1, 0])], sizes(1.0))
    assert math.isnan(result.loss)
    assert math.isnan(result.perplexity)


@pytest.mark.parametrize("training", [True, False])
def test_scored_in_evaluation_mode_and_left_in_its_own(training: bool) -> None:
    model = Given(1.0).train(training)
    evaluate(model, [batch([0])], sizes(1.0))
    assert model.modes == [False]
    assert model.training is model.inner.training is training


@pytest.mark.parametrize("training", [True, False])
def test_left_in_its_own_mode_after_an_exception_too(training: bool) -> None:
    def broken() -> Iterator[Batch]:
        yield batch([0])
        raise OSError

    model = Given(1.0).train(training)
    with pytest.raises(OSError):
        evaluate(model, broken(), sizes(1.0))
    assert model.training is model.inner.training is training


def test_leaves_no_trace_in_training() -> None:
    """No gradient is left and no random number is drawn, so the next training step is the same."""
    model = decoder().train()
    state = torch.get_rng_state()
    first = evaluate(model, [rows()], sizes(1.0))
    assert evaluate(model, [rows()], sizes(1.0)) == first  # dropout is off
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_many_batches_do_not_wear_the_sum_out() -> None:
    """A sum of 2**24 in float32 no longer notices another 0.5."""
    batches = [batch([1])] + [batch([0])] * 200
    result = evaluate(Given(0.5, float(2**24)), batches, sizes(1.0))
    assert result.loss * result.tokens == pytest.approx(2**24 + 100, rel=1e-12)


SOURCES = {
    "jsonl a": sizes(1.2),
    "txt b": sizes(2.5),
    "csv of which no row was chosen": sizes(1.0),
}


def of_two_sources() -> Batch:
    """Return rows 0 to 3 of one source and rows 4 to 8 of another. Batches of 3 include one with
    rows of both.
    """
    return rows() | {"source": torch.tensor([0] * 4 + [1] * 5)}


def test_sources_are_scored_as_each_alone_and_make_up_the_whole() -> None:
    model, whole = decoder(), rows()
    for size in (1, 3, 9):
        result = evaluate(model, cut(of_two_sources(), size), sizes(1.7), sources=SOURCES)
        # the same bits as without sources
        assert replace(result, sources={}) == evaluate(model, cut(whole, size), sizes(1.7))
        first, second, none = (result.sources[name] for name in SOURCES)
        for found, alone in (
            (first, evaluate(model, cut(whole, size, 0, 4), sizes(1.2))),
            (second, evaluate(model, cut(whole, size, 4, 9), sizes(2.5))),
        ):
            assert (found.loss, found.bits_per_byte) == (
                pytest.approx(alone.loss),
                pytest.approx(alone.bits_per_byte),
            )
            assert found.tokens == alone.tokens
        assert none.tokens == 0
        assert math.isnan(none.loss)
        assert first.tokens + second.tokens == result.tokens == 30
        assert first.tokens != second.tokens
        assert (first.loss * first.tokens + second.loss * second.tokens) / 30 == pytest.approx(
            result.loss
        )
        assert (first.loss + second.loss) / 2 != pytest.approx(result.loss)
        assert result.figures_by_source["csv of which no row was chosen"] == {
            "loss": None,
            "bits_per_byte": None,
            "tokens": 0,
        }


def test_preferences_of_several_sources_count_pairs() -> None:
    documents = torch.tensor(
        [[0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 2, 2]]
    )
    labels = torch.tensor([[1] * 8, [2] * 8, [3] * 6 + [IGNORE_INDEX] * 2])
    pairs = {
        "input_ids": labels.clamp(min=0),
        "labels": labels,
        "document_ids": documents,
        "source": torch.tensor([0, 1, 1]),
    }
    objective = Preference(0.1, frozen_reference(decoder()))
    result = evaluate(decoder(), [pairs], sizes(1.0), objective, {"a": sizes(1.0), "b": sizes(1.0)})
    assert [result.tokens, *(each.tokens for each in result.sources.values())] == [4, 2, 2]
    assert all(math.isnan(each.bits_per_byte) for each in result.sources.values())
    assert sum(each.loss * each.tokens for each in result.sources.values()) / 4 == pytest.approx(
        result.loss
    )


def score_share(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    # unequal in rows, tokens and sources: the first process has rows of one source only
    shares = [(0, 3), (3, 9)]
    result = evaluate(
        decoder(), cut(of_two_sources(), [2, 3][rank], *shares[rank]), sizes(1.7), sources=SOURCES
    )
    figures = [
        [each.loss, each.bits_per_byte, each.tokens] for each in (result, *result.sources.values())
    ]
    (Path(folder) / f"{rank}").write_text(json.dumps(figures))
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("starts_processes")
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(score_share, args=(str(tmp_path),), nprocs=2)
    alone = evaluate(decoder(), cut(of_two_sources(), 3), sizes(1.7), sources=SOURCES)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    for (loss, bits_per_byte, tokens), expected in zip(
        json.loads((tmp_path / "0").read_text()), (alone, *alone.sources.values()), strict=True
    ):
        assert (loss, bits_per_byte) == pytest.approx(
            (expected.loss, expected.bits_per_byte), nan_ok=True
        )
        assert tokens == expected.tokens


def test_bits_per_byte_that_are_withheld_are_words(capsys: pytest.CaptureFixture[str]) -> None:
    print_scores("a.ckpt", "c.yaml", Evaluation(loss=1.0, bits_per_byte=math.nan, tokens=5))
    assert "perplexity 2.72, no bits per byte: the tokenizer loses a part of the text" in (
        capsys.readouterr().out
    )
    print_scores("a.ckpt", "c.yaml", Evaluation(loss=1.0, bits_per_byte=1.5, tokens=5))
    assert "perplexity 2.72, 1.5000 bits per byte" in capsys.readouterr().out
