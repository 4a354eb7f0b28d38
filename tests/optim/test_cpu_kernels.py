"""CPUs' norms and rotations against torch's: python -m pytest tests/optim/test_cpu_kernels.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lm.config.schema.model import ModelConfig
from lm.optim import cpu_kernels
from lm.optim.cpu_kernels import RMSNormalise, Rotate
from model import Decoder, RMSNorm, make_norm, rope_rotation, rotate

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def gradients(result: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Return the result, and the gradients of a sum of it with fixed weights."""
    weights = torch.linspace(-1, 1, result.numel()).view_as(result)
    return [result, *torch.autograd.grad((result * weights).sum(), inputs)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 16), (2, 3, 4, 6)])
def test_a_norm_is_torchs(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3).to(dtype).requires_grad_()
    weight = torch.randn(shape[-1]).requires_grad_()
    exact = F.rms_norm(x.double(), shape[-1:], weight.double(), 1e-6)
    ours, theirs = (
        gradients(result, x, weight) for result in (RMSNormalise.apply(x, weight, 1e-6), exact)
    )
    assert [tensor.dtype for tensor in ours] == [dtype, dtype, torch.float32]
    for mine, right in zip(ours, theirs, strict=True):
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(mine.double(), right.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_rotation_is_the_models(dtype: torch.dtype, rows: int | None) -> None:
    torch.manual_seed(0)
    positions = torch.arange(5) if rows is None else torch.randint(9, (rows, 5))
    rotation = rope_rotation(ModelConfig(d_model=32, n_heads=4), positions)
    x = torch.randn(3, 5, 4, 8).to(dtype).transpose(1, 2).requires_grad_()
    ours, theirs = (gradients(turn(x, *rotation), x) for turn in (Rotate.apply, rotate))
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 2)


def test_zeros_and_small_numbers_stay_finite() -> None:
    x = torch.tensor([[0.0, 0.0], [1e-20, -1e-20], [1e15, 1e15]]).requires_grad_()
    for tensor in gradients(RMSNormalise.apply(x, torch.ones(2), 1e-6), x):
        assert torch.isfinite(tensor).all()


def test_under_autocast_it_has_autocasts_type() -> None:
    """The projections that follow cast nothing."""
    norm = make_norm(ModelConfig(), 8)
    x = torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype is torch.bfloat16
    assert norm(x).dtype is torch.float32
    assert norm(x.bfloat16()).dtype is torch.bfloat16


def test_autocast_around_the_backward_pass_changes_nothing() -> None:
    """Lightning runs it inside the training step's autocast."""
    torch.manual_seed(0)
    x, weight = torch.randn(5, 64).requires_grad_(), torch.randn(64).requires_grad_()
    result = (RMSNormalise.apply(x, weight, 1e-6) * torch.randn(5, 64)).sum()
    outside = torch.autograd.grad(result, (x, weight), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(result, (x, weight))
    for one, other in zip(inside, outside, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    inputs = {"x": torch.randn(3, 4), "weight": torch.ones(4)}
    trained = [tensor for name, tensor in inputs.items() if name != frozen]
    for tensor in trained:
        tensor.requires_grad_()
    RMSNormalise.apply(*inputs.values(), 1e-6).sum().backward()
    assert inputs[frozen].grad is None
    assert all(tensor.grad is not None for tensor in trained)


@pytest.mark.parametrize(("kernels", "expected"), [("auto", True), ("fused", False)])
def test_where_they_are_used(kernels: Any, expected: bool) -> None:
    config = ModelConfig(vocab_size=20, context_length=8, kernels=kernels, qk_norm=True)
    result = Decoder(config)(torch.zeros(2, 8, dtype=torch.int64)).sum()
    result.backward()  # the gradients of queries and keys are not contiguous
    graph = named(result.grad_fn)
    assert ("RMSNormaliseBackward" in graph, "RotateBackward" in graph) == (expected, expected)


def test_not_where_torch_compiles_or_another_device_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norm, x = RMSNorm(ModelConfig(), 8), torch.randn(2, 8)
    assert "RMSNormaliseBackward" in named(norm(x).grad_fn)
    assert norm.to("meta")(x.to("meta")).device.type == "meta"
    norm = RMSNorm(ModelConfig(), 8)
    monkeypatch.setattr(cpu_kernels.torch.compiler, "is_compiling", lambda: True)
    assert "RMSNormaliseBackward" not in named(norm(x).grad_fn)


def named(node: Any) -> set[str]:
    """Return the names of the operations in a graph of gradients."""
    found: set[str] = set()
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(type(node).__name__)
        waiting += [parent for parent, _ in node.next_functions]
    return found
