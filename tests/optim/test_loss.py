"""Test the loss of each token: python -m pytest tests/optim/test_loss.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lm.optim import loss
from lm.optim.loss import IGNORE_INDEX, count_targets, token_losses


def inputs(
    batch: int = 3, length: int = 7, width: int = 5, vocabulary: int = 11
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(batch, length, width, requires_grad=True)
    head = torch.randn(vocabulary, width, requires_grad=True)
    labels = torch.randint(vocabulary, (batch, length))
    labels[0, 2] = labels[1, 0] = labels[2, 6] = IGNORE_INDEX
    return hidden, head, labels


def gradients(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    losses = token_losses(hidden, head, labels)
    by_hidden, by_head = torch.autograd.grad(
        (losses * torch.arange(1.0, labels.numel() + 1).view_as(labels)).sum(), (hidden, head)
    )
    return losses, by_hidden, by_head


def test_equals_the_definition_token_by_token() -> None:
    hidden, head, labels = inputs()
    losses = token_losses(hidden, head, labels)
    assert losses.shape == labels.shape
    for b, row in enumerate(labels.tolist()):
        for t, label in enumerate(row):
            scores = [
                sum(h * w for h, w in zip(hidden[b, t].tolist(), weights, strict=True))
                for weights in head.tolist()
            ]
            expected = (
                0.0
                if label == IGNORE_INDEX
                else math.log(sum(map(math.exp, scores))) - scores[label]
            )
            assert losses[b, t].item() == pytest.approx(expected, abs=1e-5)


def test_ignored_labels_are_zero_and_move_nothing() -> None:
    hidden, head, labels = inputs()
    losses, by_hidden, _ = gradients(hidden, head, labels)
    ignored = labels == IGNORE_INDEX
    assert (losses[ignored] == 0).all()
    assert (by_hidden[ignored] == 0).all()
    assert (losses[~ignored] > 0).all()
    assert (by_hidden[~ignored].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("limit", [2**26, 1])
def test_a_batch_without_targets_is_zero_with_zero_gradients(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "MAX_LOGITS", limit)
    hidden, head, labels = inputs()
    losses, by_hidden, by_head = gradients(hidden, head, torch.full_like(labels, IGNORE_INDEX))
    for tensor in (losses, by_hidden, by_head):
        assert (tensor == 0).all()
    assert count_targets(torch.full_like(labels, IGNORE_INDEX)).item() == 0


@pytest.mark.parametrize("rows", [1, 2, 4, 20, 21])
def test_pieces_equal_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients are equal for pieces that divide the 21 positions and pieces that do
    not.
    """
    whole = gradients(*inputs())
    monkeypatch.setattr(loss, "MAX_LOGITS", rows * 11)
    for part, expected in zip(gradients(*inputs()), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)


def test_a_large_number_of_logits_is_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "MAX_LOGITS", 4 * 11 + 10)
    sizes = []
    whole = loss._losses

    def counting(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return whole(hidden, head, labels)

    monkeypatch.setattr(loss, "_losses", counting)
    gradients(*inputs())
    assert sizes[:6] == [4, 4, 4, 4, 4, 1]
    # computed again in the backward pass, not kept
    assert sorted(sizes[6:]) == [1, 4, 4, 4, 4, 4]


def test_a_vocabulary_larger_than_the_limit_goes_row_by_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = token_losses(*inputs())
    monkeypatch.setattr(loss, "MAX_LOGITS", 3)
    torch.testing.assert_close(token_losses(*inputs()), whole)


@pytest.mark.parametrize("limit", [2**26, 22])
def test_scored_in_float32_whatever_the_logits_are(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "MAX_LOGITS", limit)
    hidden, head, labels = inputs()
    exact = token_losses(hidden, head, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, by_hidden, by_head = gradients(hidden, head, labels)
    assert losses.dtype == by_hidden.dtype == by_head.dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=0.1, atol=0.1)
    # A logsumexp in bfloat16 would be a multiple of 1/64 here.
    assert ((losses * 64) % 1 != 0).any()


def test_weights_in_bfloat16_are_scored_in_float32_too() -> None:
    hidden, head, labels = inputs()
    with torch.no_grad():
        losses = token_losses(hidden.bfloat16(), head.bfloat16(), labels)
        logits = torch.nn.functional.linear(hidden.bfloat16(), head.bfloat16())
    assert losses.dtype == torch.float32
    exact = -logits.double().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(
        losses.double(), exact.masked_fill(labels == IGNORE_INDEX, 0), rtol=1e-5, atol=1e-5
    )


def test_huge_logits_stay_finite() -> None:
    hidden, head, labels = inputs()
    losses, by_hidden, by_head = gradients(hidden, head.detach().mul(1e4).requires_grad_(), labels)
    for tensor in (losses, by_hidden, by_head):
        assert tensor.isfinite().all()


def test_count_targets() -> None:
    *_, labels = inputs()
    count = count_targets(labels)
    assert count.item() == 3 * 7 - 3
    assert count.dtype == torch.int64
    # label 0 is a token like any other
    assert count_targets(torch.zeros(2, 3, dtype=torch.int64)).item() == 6
