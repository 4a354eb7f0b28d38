"""Test which weights decay, and that our AdamW is AdamW: python -m pytest
tests/optim/test_optimizers.py.
"""

from __future__ import annotations

import copy
import typing
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lm.config.schema.model import ModelConfig
from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.optimizers import OPTIMIZERS, clip_gradients, make_optimizer, parameter_groups
from lm.optim.schedule import set_rates
from model import Decoder

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"qk_norm": True, "n_kv_heads": 2},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True},
    "untied": {"tie_embeddings": False, "bias": True},
}


def decoder(**changes: Any) -> Decoder:
    return Decoder(ModelConfig(vocab_size=11, context_length=8, n_layers=2, d_model=16, **changes))


def names(model: nn.Module, weight_decay: float = 0.1) -> dict[float, list[str]]:
    """Map each weight decay to the names of the parameters that have it."""
    name_of = {
        id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    return {
        group["weight_decay"]: [name_of[id(p)] for p in group["params"]]
        for group in parameter_groups(model, weight_decay)
    }  # type: ignore


@pytest.mark.parametrize("shape", SHAPES)
def test_every_parameter_is_in_exactly_one_group_and_the_matrices_decay(shape: str) -> None:
    model = decoder(**SHAPES[shape])
    groups = parameter_groups(model, 0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert len(set(grouped)) == len(grouped)
    # Our own model has no matrix outside a Linear or an Embedding: a new one must be listed in
    # DECAYED, or here as one that does not decay.
    assert {id(p) for p in model.parameters() if p.dim() >= 2} == {
        id(p) for p in groups[0]["params"]
    }  # type: ignore[attr-defined]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_no_norm_and_no_bias_decays() -> None:
    decayed = names(decoder(**SHAPES["gpt2"], qk_norm=True))[0.1]
    assert not [name for name in decayed if "norm" in name or name.endswith("bias")]
    assert {
        "layers.0.attention.q_proj.weight",
        "layers.1.mlp.down_proj.weight",
        "embed_positions.weight",
    } <= set(decayed)


class HeadNorm(nn.Module):
    """A custom norm with a scale for each head. By its shape, the scale is a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 8))
        self.gain = nn.Parameter(torch.ones(()))


def test_a_custom_norm_does_not_decay() -> None:
    model = nn.Sequential(nn.Linear(8, 8), HeadNorm(), nn.RMSNorm(8), nn.LayerNorm(8))
    found = names(model)
    assert found[0.1] == ["0.weight"]
    assert found[0.0] == ["0.bias", "1.weight", "1.gain", "2.weight", "3.weight", "3.bias"]


def test_a_tied_matrix_is_there_once() -> None:
    model = decoder(tie_embeddings=True)
    assert [
        name for name in names(model)[0.1] if name in ("embed_tokens.weight", "lm_head.weight")
    ] == ["lm_head.weight"]


def test_frozen_parameters_are_left_out_and_so_is_an_empty_group() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    assert names(model) == {0.1: ["2.weight"], 0.0: ["1.weight", "2.bias"]}
    model[2].requires_grad_(False)
    assert names(model) == {0.0: ["1.weight"]}


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_equals_the_plain_loop(fused: bool) -> None:
    """AdamW equals algorithm 2 of Loshchilov & Hutter 2019, computed here in float64."""
    torch.manual_seed(0)
    config = OptimizerConfig(lr=0.03, betas=(0.8, 0.97), eps=1e-6, weight_decay=0.5)
    model = nn.Sequential(nn.Linear(5, 7), nn.RMSNorm(7))
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    optimizer = OPTIMIZERS["adamw"](model, config, fused)
    for step in range(1, 21):
        rate = config.lr / step
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            gradient = parameter.grad.double()
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.97 * second[name] + 0.03 * gradient**2
            decay = 0.5 if name == "0.weight" else 0.0
            direction = (first[name] / (1 - 0.8**step)) / (
                (second[name] / (1 - 0.97**step)).sqrt() + 1e-6
            )
            weights[name] = weights[name] - rate * decay * weights[name] - rate * direction
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), weights[name], rtol=1e-5, atol=1e-6)


def test_the_configuration_reaches_the_optimiser() -> None:
    config = OptimizerConfig(lr=0.5, betas=(0.1, 0.2), eps=0.3, weight_decay=0.7)
    optimizer = make_optimizer(decoder(), config, "fp32")
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.7, 0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.1, 0.2), 0.3)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_embeddings_and_head_have_their_own_rate(shape: str, name: typing.Any) -> None:
    """Every weight keeps its decay; the schedule scales all rates by the same factor."""
    model = decoder(**SHAPES[shape])
    tied = model.config.tie_embeddings
    config = OptimizerConfig(
        name=name, lr=0.1, muon_lr=0.4, embedding_lr=0.3, head_lr=None if tied else 0.2,
        warmup_steps=3, muon_momentum_warmup=0,
    )  # fmt: skip
    optimizer = make_optimizer(model, config, "fp32")
    name_of = {id(weight): key for key, weight in model.named_parameters()}
    for step, share in ((None, 1.0), (0, 0.25), (3, 1.0)):
        if step is not None:
            assert set_rates(optimizer, step, 100, config, None) == pytest.approx(0.1 * share)
        rates = {
            name_of[id(weight)]: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for weight in group["params"]
        }
        assert rates.keys() == {*name_of.values()}
        for key, (rate, decay) in rates.items():
            expected = 0.4 if name == "muon" and "proj.weight" in key else 0.1
            expected = 0.3 if "embed" in key else 0.2 if "lm_head" in key else expected
            assert rate == pytest.approx(expected * share), key
            assert decay == (0.1 if "norm" not in key and "bias" not in key else 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_rates_of_their_own_there_are_the_groups_of_earlier_checkpoints(
    name: typing.Any,
) -> None:
    model = decoder(tie_embeddings=False)
    groups = make_optimizer(model, OptimizerConfig(name=name), "fp32").param_groups
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    inside, others = matrices[1:-1], [matrices[0], matrices[-1]]
    by_muon = [inside, others] if name == "muon" else [matrices]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    expected = [[id(weight) for weight in group] for group in [*by_muon, norms]]
    assert [[id(weight) for weight in group["params"]] for group in groups] == expected


@pytest.mark.parametrize(("precision", "fused"), [("fp32", True), ("bf16", True), ("fp16", None)])
def test_fused_unless_the_gradients_are_scaled(precision: str, fused: bool | None) -> None:
    """The option is None and not False, which would choose the slow loop over the parameters."""
    optimizer = make_optimizer(decoder(), OptimizerConfig(), precision)
    assert {group["fused"] for group in optimizer.param_groups} == {fused}


def test_every_optimiser_that_can_be_configured_is_in_the_table() -> None:
    assert set(typing.get_args(OptimizerConfig.model_fields["name"].annotation)) == set(OPTIMIZERS)


def test_a_saved_state_continues_to_the_bit() -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> None:
        for gradient in gradients:
            for parameter in model.parameters():
                parameter.grad = gradient.expand_as(parameter).clone()
            optimizer.step()

    torch.manual_seed(0)
    gradients = list(torch.randn(6))
    straight = decoder(bias=True)
    halted = copy.deepcopy(straight)
    steps(straight, make_optimizer(straight, OptimizerConfig(), "fp32"), gradients)
    optimizer = make_optimizer(halted, OptimizerConfig(), "fp32")
    steps(halted, optimizer, gradients[:3])
    resumed = make_optimizer(halted, OptimizerConfig(), "fp32")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(halted, resumed, gradients[3:])
    for ours, theirs in zip(halted.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("limit", [0.1, 0.9999, 1.0, 1.0001, 3.0, 1e9])
@pytest.mark.parametrize("norm", [1.0, 1 - 1e-6, 3.0, float("inf"), float("nan")])
def test_gradients_are_clipped_as_torch_clips_them(limit: float, norm: float) -> None:
    """To the bit, also where clipping would multiply by 1 and is left out."""
    model = decoder()
    optimizer = make_optimizer(model, OptimizerConfig(), "fp32")
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    torchs = [copy.deepcopy(weight) for weight in model.parameters()]
    for copied, weight in zip(torchs, model.parameters(), strict=True):
        copied.grad = weight.grad.clone()  # type: ignore[union-attr]
    nn.utils.clip_grads_with_norm_(torchs, limit, torch.tensor(norm))
    clip_gradients(optimizer, limit, torch.tensor(norm))
    for copied, weight in zip(torchs, model.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, copied.grad, rtol=0, atol=0, equal_nan=True)


def test_gradients_below_the_limit_are_not_touched() -> None:
    model = decoder()
    optimizer = make_optimizer(model, OptimizerConfig(), "fp32")
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    versions = [weight.grad._version for weight in model.parameters()]  # type: ignore[union-attr]
    clip_gradients(optimizer, 1.0, torch.tensor(0.5))
    assert [weight.grad._version for weight in model.parameters()] == versions  # type: ignore[union-attr]
