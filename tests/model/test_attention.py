"""Attention by two products is torch's attention, and is used where it is faster."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import model as decoders
from lm.checkpoints.meta import Meta
from lm.config.schema.model import ModelConfig
from lm.optim.cpu_kernels import attend_by_products
from model import Decoder, attend

B, T, E = 3, 7, 8


def documents() -> Tensor:
    """Return the mask of rows with one, two and three documents, (B, 1, T, T)."""
    numbers = torch.tensor([[0] * T, [0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2, 2]])
    same = numbers[:, :, None] == numbers[:, None, :]
    return (same & torch.ones(T, T, dtype=torch.bool).tril())[:, None]


MASKS: dict[str, tuple[int, Tensor | None]] = {  # new positions, and who sees whom
    "causal": (T, None),
    "documents": (T, documents()),
    "a second chunk": (3, torch.ones(3, T, dtype=torch.bool).tril(T - 3)),
    "one new position": (1, torch.ones(1, T, dtype=torch.bool)),
    "padding": (1, torch.arange(T) >= torch.tensor([1, T - 1, 0])[:, None, None, None]),
}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("name", MASKS)
def test_products_are_torchs_attention(name: str, kv_heads: int) -> None:
    torch.manual_seed(0)
    new, mask = MASKS[name]
    inputs = [torch.randn(B, heads, T, E) * 2 for heads in (4, kv_heads, kv_heads)]
    inputs[0] = inputs[0][:, :, -new:]
    weights = torch.randn(B, 4, new, E)
    results = []
    for function in (attend, attend_by_products):
        q, k, v = (tensor.clone().requires_grad_() for tensor in inputs)
        out = function(q, k, v, mask)
        (out * weights).sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def error(kernels: str, **shape: Any) -> float:
    """Return the error of a bf16 decoder's gradients, as a share of float32's gradients."""
    torch.manual_seed(1)
    config = ModelConfig(
        vocab_size=50, context_length=64, n_heads=4, n_kv_heads=2, init_std=0.1, **shape
    )
    decoder = Decoder(config)
    ids = torch.randint(50, (4, 65))
    gradients = []
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            decoder(ids[:, :-1], ids[:, 1:]).mean().backward()
        gradients.append(torch.cat([w.grad.flatten() for w in decoder.parameters()]))
        decoder.zero_grad()
        decoder.config = config.model_copy(update={"kernels": kernels})
        for block in decoder.layers:
            block.attention.config = decoder.config
    return float((gradients[1] - gradients[0]).norm() / gradients[0].norm())


def test_in_bf16_it_is_as_exact_as_the_fused_kernel() -> None:
    assert error("auto") < 1.3 * error("fused") < 0.05


@pytest.mark.parametrize(
    ("kernels", "dtype", "most", "expected"),
    [
        ("auto", "bf16", 64 * 64, 4),
        ("auto", "bf16", 64 * 64 - 1, 0),
        ("auto", "fp32", 64 * 64, 0),
        ("fused", "bf16", 64 * 64, 0),
    ],
)
def test_where_it_is_used(
    kernels: str, dtype: str, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(decoders, "MOST_SCORES", most)
    by_products = decoders.attend_by_products
    monkeypatch.setattr(
        decoders, "attend_by_products", lambda *given: calls.append(1) or by_products(*given)
    )
    decoder = Decoder(ModelConfig(vocab_size=50, context_length=64, kernels=kernels))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        decoder(torch.zeros(1, 64, dtype=torch.int64))
    assert len(calls) == expected


def test_checkpoints_of_before_keep_the_fused_kernel(tmp_path: Any) -> None:
    shape = ModelConfig(vocab_size=50).model_dump()
    del shape["kernels"]
    assert Meta(tmp_path, {"model": shape}).model.kernels == "fused"
    config = {
        "model": shape,
        "data": {"source": {"format": "txt", "files": "a"}},
        "trainer": {"max_steps": 200},
    }
    assert Meta(tmp_path, {"config": config}).config.model.kernels == "fused"
    assert Meta(tmp_path, {"model": {**shape, "kernels": "auto"}}).model.kernels == "auto"


@pytest.mark.parametrize("mlp", ["gelu", "gelu_erf"])
def test_both_forms_of_gelu(mlp: str) -> None:
    decoder = Decoder(ModelConfig(vocab_size=50, mlp=mlp))
    mlp_layer = decoder.layers[0].mlp
    x = torch.randn(2, 3, 128)
    up = mlp_layer.up_proj(x)
    expected = {
        "gelu_erf": up * (1 + torch.erf(up / 2**0.5)) / 2,
        "gelu": up * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up**3))) / 2,
    }[mlp]
    torch.testing.assert_close(mlp_layer(x), mlp_layer.down_proj(expected), rtol=1e-5, atol=1e-6)
    other = Decoder(ModelConfig(vocab_size=50, mlp="gelu" if mlp == "gelu_erf" else "gelu_erf"))
    other.load_state_dict(decoder.state_dict())
    assert not torch.equal(other.layers[0].mlp(x), mlp_layer(x))
