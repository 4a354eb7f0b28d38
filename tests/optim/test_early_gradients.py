"""Test early gradients: python -m pytest tests/optim/test_early_gradients.py.

The slow version computes each row's loss in float64, and autograd its gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lm.checkpoints.meta import Meta
from lm.config.schema.model import ModelConfig
from lm.optim import early_gradients
from lm.optim.early_gradients import summed_loss
from lm.optim.loss import IGNORE_INDEX, token_losses
from model import Decoder

BATCH, LENGTH, WIDTH, VOCABULARY = 3, 7, 5, 11
ROWS = 4  # of a piece: 21 rows are five pieces and one row
ALL = BATCH * LENGTH


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything take the early path, in small pieces and blocks."""
    for name, value in {"MOST_LOGITS": 0, "PIECE": 1, "LEAST_ROWS": ROWS, "BLOCK": 3}.items():
        monkeypatch.setattr(early_gradients, name, value)


def inputs(ignored: tuple[int, ...] | range = (0, 9, 20)) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(BATCH, LENGTH, WIDTH, generator=chance, requires_grad=True)
    head = torch.randn(VOCABULARY, WIDTH, generator=chance, requires_grad=True)
    labels = torch.randint(VOCABULARY, (ALL,), generator=chance)
    labels[list(ignored)] = IGNORE_INDEX
    return hidden, head, labels.view(BATCH, LENGTH)


def slow(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    rows = zip(hidden.double().flatten(0, 1), labels.flatten().tolist(), strict=True)
    losses = [
        (head.double() @ row).logsumexp(0) - head[label].double() @ row
        for row, label in rows
        if label != IGNORE_INDEX
    ]
    return torch.stack(losses).sum() if losses else 0 * (hidden.sum() + head.sum()).double()


def gradients(
    sum_up: Callable[..., Tensor], *given: Tensor, factor: float = 1.0
) -> tuple[Tensor, ...]:
    total = sum_up(*given)
    return total.detach(), *torch.autograd.grad(total * factor, given[:2])


IGNORED = {
    "none": (),
    "some": (0, 9, 20),
    "the first piece": range(ROWS),
    "a later piece": range(ROWS, 2 * ROWS),
    "all but the last": range(ALL - 1),
    "all": range(ALL),
    **{f"random {seed}": torch.randperm(ALL)[: 3 * seed].tolist() for seed in range(1, 6)},
}


@pytest.mark.parametrize("ignored", IGNORED.values(), ids=IGNORED)
def test_equals_the_slow_version(ignored: Any) -> None:
    results = gradients(summed_loss, *inputs(ignored), factor=0.3)
    for result, expected in zip(
        results, gradients(slow, *inputs(ignored), factor=0.3), strict=True
    ):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected.double(), rtol=1e-5, atol=1e-6)
    by_hidden = results[1].flatten(0, 1)
    assert not by_hidden[list(ignored)].any()
    if len(ignored) == ALL:
        assert not any(result.any() for result in results)


def test_ignored_rows_may_hold_anything() -> None:
    """Padding may have any hidden state. A huge one must not reach the head's gradient."""
    hidden, head, labels = inputs()
    with torch.no_grad():
        hidden.view(ALL, WIDTH)[[0, 9, 20]] = 1e30
    expected = gradients(slow, *inputs())[2]
    torch.testing.assert_close(gradients(summed_loss, hidden, head, labels)[2], expected)


@pytest.mark.parametrize("for_hidden", [True, False])
@pytest.mark.parametrize("for_head", [True, False])
def test_only_the_gradients_that_are_wanted(for_hidden: bool, for_head: bool) -> None:
    expected = gradients(slow, *inputs())
    hidden, head, labels = inputs()
    hidden.requires_grad_(for_hidden)
    head.requires_grad_(for_head)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        total = summed_loss(hidden, head, labels)
    assert total.item() == pytest.approx(expected[0].item())
    assert total.requires_grad == (for_hidden or for_head)
    wanted = [(ALL, WIDTH)] * for_hidden + [(VOCABULARY, WIDTH)] * for_head
    assert [tuple(shape) for shape in kept] == wanted
    if total.requires_grad:
        total.backward()
    for tensor, gradient, wants in (
        (hidden, expected[1], for_hidden),
        (head, expected[2], for_head),
    ):
        if wants:
            torch.testing.assert_close(tensor.grad, gradient, rtol=1e-5, atol=1e-6)
        else:
            assert tensor.grad is None


class Sizes(TorchDispatchMode):
    """Records how many numbers each new tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers.append(result.numel())
        return result


def test_no_logits_are_held_at_once() -> None:
    given = inputs()
    with Sizes() as sizes:
        summed_loss(*given).backward()
    assert max(sizes.numbers) == max(ALL * WIDTH, VOCABULARY * WIDTH)  # a piece has only 44 logits


def test_without_gradients_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation must cost what it did. needs_input_grad is true under no_grad."""
    monkeypatch.setattr("lm.optim.loss.MAX_LOGITS", VOCABULARY)  # rows of one
    hidden, head, labels = inputs()
    for off in (torch.no_grad, torch.inference_mode):
        with off(), Sizes() as ours:
            summed_loss(hidden, head, labels)
        with off(), Sizes() as plain:
            token_losses(hidden, head, labels).sum()
        assert ours.numbers == plain.numbers


def test_a_second_backward_pass_gives_the_same_again() -> None:
    hidden, head, labels = inputs()
    total = 3 * summed_loss(hidden, head, labels)
    total.backward(retain_graph=True)
    once = hidden.grad.clone(), head.grad.clone()
    total.backward()
    assert torch.equal(hidden.grad, 2 * once[0])
    assert torch.equal(head.grad, 2 * once[1])


def test_a_second_derivative_is_refused() -> None:
    hidden, head, labels = inputs()
    (by_hidden,) = torch.autograd.grad(
        summed_loss(hidden, head, labels) ** 2, hidden, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        by_hidden.sum().backward()


def test_another_use_of_hidden_has_its_own_gradient() -> None:
    def twice(sum_up: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda hidden, *rest: sum_up(hidden, *rest) + 0.1 * hidden.square().mean()

    results, expected = gradients(twice(summed_loss), *inputs()), gradients(twice(slow), *inputs())
    plain = gradients(slow, *inputs())
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), value.double(), rtol=1e-5, atol=1e-6)
    assert (results[1] - plain[1]).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(dtype: torch.dtype) -> None:
    """The inputs of the products are rounded; softmax and sums are float32."""
    exact = gradients(slow, *inputs())
    hidden, head, labels = inputs()
    with torch.autocast("cpu", dtype):
        total = summed_loss(hidden, head, labels)
    results = total.detach(), *torch.autograd.grad(total, (hidden, head))
    for result, expected in zip(results, exact, strict=True):
        assert result.dtype == torch.float32
        error = (result - expected).norm() / expected.norm()
        assert 1e-5 < error < 0.02
    assert (total * 64) % 1 != 0  # a sum in bfloat16 would be a multiple of 1/4 here


def test_weights_in_bfloat16() -> None:
    hidden, head, labels = inputs()
    given = (*(x.detach().bfloat16().requires_grad_() for x in (hidden, head)), labels)
    results = gradients(summed_loss, *given)
    assert [result.dtype for result in results] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for result, expected in zip(results, gradients(slow, *inputs()), strict=True):
        torch.testing.assert_close(result.double(), expected.double(), rtol=0.05, atol=0.1)


def test_many_pieces_in_bfloat16_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bfloat16 sum of 1 and 2^-9 is 1, however often."""
    monkeypatch.setattr(early_gradients, "LEAST_ROWS", 1)
    chance = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 2000, WIDTH, generator=chance).abs()
    head = torch.zeros(VOCABULARY, WIDTH, requires_grad=True)
    labels = torch.zeros(1, 2000, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        summed_loss(hidden, head, labels).backward()
    expected = hidden.sum((0, 1)) / VOCABULARY
    torch.testing.assert_close(head.grad[1], expected, rtol=5e-3, atol=0)


def test_the_scale_of_fp16_changes_no_gradient() -> None:
    """Gradients are made without the scale: 65,536 and 1 agree to the bit after unscaling. What
    overflows afterwards is infinite, where the scaler looks for it.
    """
    found = []
    for scale in (1.0, 65536.0):
        hidden, head, labels = inputs()
        with torch.autocast("cpu", torch.float16):
            total = summed_loss(hidden, head, labels)
        (total * scale / 18).backward()
        found.append((hidden.grad / scale, head.grad / scale))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    hidden, head, labels = inputs()
    (summed_loss(hidden, head, labels) * torch.tensor(torch.inf)).backward()
    assert not head.grad.isfinite().any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("frozen", ["", "lm_head", "layers"])
def test_in_a_decoder(tied: bool, checkpointing: bool, frozen: str) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "context_length": 8, "n_layers": 2, "d_model": 16, "n_heads": 2}
    shape |= {"tie_embeddings": tied, "gradient_checkpointing": checkpointing}
    decoder = Decoder(ModelConfig(**shape)).train()
    ids = torch.randint(50, (2, 8))
    if frozen:
        decoder.get_submodule(frozen).requires_grad_(False)
    found = []
    for kernels in ("auto", "fused"):
        decoder.config = decoder.config.model_copy(update={"kernels": kernels})
        decoder.zero_grad()
        total = decoder(ids, ids.roll(-1, 1), total=True)
        assert ("SummedLoss" in type(total.grad_fn).__name__) == (kernels == "auto")
        total.backward()
        found.append({name: weight.grad for name, weight in decoder.named_parameters()})
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-4, atol=1e-5)


def test_few_logits_are_computed_as_before_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_gradients, "MOST_LOGITS", ALL * VOCABULARY)
    plain = gradients(lambda *given: token_losses(*given).sum(), *inputs())
    for result, expected in zip(gradients(summed_loss, *inputs()), plain, strict=True):
        assert torch.equal(result, expected)
    assert "SummedLoss" not in type(summed_loss(*inputs()).grad_fn).__name__
    monkeypatch.setattr(early_gradients, "MOST_LOGITS", ALL * VOCABULARY - 1)
    assert "SummedLoss" in type(summed_loss(*inputs()).grad_fn).__name__


def test_runs_of_before_keep_their_loss(tmp_path: Any) -> None:
    """A checkpoint without `kernels` goes on with the loss of its time, to the bit."""
    shape = ModelConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=1).model_dump()
    del shape["kernels"]
    decoder = Decoder(Meta(tmp_path, {"model": shape}).model)
    ids = torch.randint(50, (2, 8))
    total = decoder(ids, ids, total=True)
    assert torch.equal(total, decoder(ids, ids).sum())
    assert type(total.grad_fn).__name__ == "SumBackward0"
