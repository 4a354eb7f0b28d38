"""Test Muon against an SVD and a slow version: python -m pytest tests/optim/test_muon.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lm.config.schema.model import ModelConfig
from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.muon import Muon, orthogonalise
from lm.optim.optimizers import clip_gradients, hidden_matrices, make_optimizer
from model import Decoder

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"qk_norm": True, "n_kv_heads": 2},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True},
    "untied": {"tie_embeddings": False},
    "zero": {"residual_init": "zero", "tie_embeddings": False},
}
LLAMA_MATRICES = [
    f"layers.{layer}.{name}.weight"
    for layer in (0, 1)
    for name in (
        *(f"attention.{letter}_proj" for letter in "qkvo"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    )
]
GPT2_MATRICES = [name for name in LLAMA_MATRICES if "gate" not in name]
SETTINGS = OptimizerConfig(name="muon", lr=0.01, muon_lr=0.1, weight_decay=0.2, betas=(0.8, 0.97))
CAUTIOUS_ADAMW = {"name": "adamw", "cautious_decay": True}


def decoder(**changes: Any) -> Decoder:
    torch.manual_seed(1)
    return Decoder(ModelConfig(vocab_size=13, context_length=8, n_layers=2, d_model=16, **changes))


def train_on_noise(model: Decoder, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        model(torch.randint(13, (2, 8)), torch.randint(13, (2, 8))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 32), (96, 32), (32, 96), (1, 5)])
def test_the_direction_is_that_of_the_svd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
    for ours, matrix in zip(orthogonalise(matrices, dtype), matrices, strict=True):
        u, singular, vh = torch.linalg.svd(matrix, full_matrices=False)
        cosine = (ours * (u @ vh)).sum() / ours.norm() / (u @ vh).norm()
        assert cosine > 0.95
        # in the basis of the SVD the result is diagonal, and near 1 where the value was not tiny
        inside = u.T @ ours @ vh.T
        assert (inside - inside.diag().diag()).abs().max() < (1e-4 if dtype.itemsize == 4 else 0.1)
        large = singular > 0.05 * singular.max()
        assert inside.diag()[large].min() > 0.6 and inside.diag()[large].max() < 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_around_the_step_changes_nothing(dtype: torch.dtype) -> None:
    """Lightning runs the optimizer inside the training step's autocast."""
    torch.manual_seed(0)
    matrices = torch.randn(3, 96, 32)
    outside = orthogonalise(matrices, dtype)
    with torch.autocast("cpu", torch.bfloat16 if dtype is torch.float32 else torch.float16):
        assert torch.equal(orthogonalise(matrices, dtype), outside)


def test_under_cudas_autocast_the_norm_keeps_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a norm of bfloat16 is float32, which would make all products float32."""
    norm, enabled = Tensor.norm, list[bool]()

    def noted(self: Tensor, **arguments: Any) -> Tensor:
        enabled.append(torch.is_autocast_enabled("cpu"))
        result: Tensor = norm(self, **arguments)
        return result

    monkeypatch.setattr(Tensor, "norm", noted)
    with torch.autocast("cpu", torch.bfloat16):
        orthogonalise(torch.randn(1, 4, 4), torch.bfloat16)
    assert enabled == [False]


def test_a_zero_matrix_stays_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 4, 3), torch.float32), torch.zeros(2, 4, 3))


def slow_step(
    weight: Tensor, gradient: Tensor, momentum: Tensor, m: float, lr: float, decay: float
) -> tuple[Tensor, Tensor]:
    """One step of the formula in Muon's docstring, one matrix at a time, in float64."""
    momentum = m * momentum + gradient
    x = gradient + m * momentum
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / (wide.square().sum().sqrt() + 1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide - 4.7750 * gram @ wide + 2.0315 * gram @ gram @ wide
    x = wide if x.shape[0] <= x.shape[1] else wide.T
    rows, columns = weight.shape
    return (1 - lr * decay) * weight - lr * max(1, rows / columns) ** 0.5 * x, momentum


def test_muon_equals_the_formula_while_rate_and_momentum_change() -> None:
    torch.manual_seed(0)
    shapes = [(6, 6), (6, 6), (12, 6), (6, 12), (3, 6)]
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    slow = [(weight.detach().double(), torch.zeros(weight.shape).double()) for weight in weights]
    group = {"kind": "muon", "params": weights, "lr": 0.0, "momentum": 0.0, "weight_decay": 0.3}
    optimizer = Muon([group | {"cautious": False}], torch.float32)
    for step in range(5):
        lr, m = 0.1 / (step + 1), 0.85 + 0.02 * step
        optimizer.param_groups[0].update(lr=lr, momentum=m)
        for number, weight in enumerate(weights):
            weight.grad = torch.randn_like(weight) * 10.0**-number
            slow[number] = slow_step(
                slow[number][0], weight.grad.double(), slow[number][1], m, lr, 0.3
            )
        optimizer.step()
    for weight, (expected, momentum) in zip(weights, slow, strict=True):
        torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            optimizer.state[weight]["momentum"].double(), momentum, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("rows", "columns", "largest"), [(64, 64, 1), (256, 64, 2), (64, 256, 1)])
def test_how_far_one_update_goes(rows: int, columns: int, largest: float) -> None:
    """The largest singular value of an update is lr, times the root of rows / columns if tall."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(rows, columns))
    group = {"kind": "muon", "params": [weight], "lr": 0.5, "momentum": 0.9, "weight_decay": 0.0}
    weight.grad = torch.randn_like(weight)
    Muon([group | {"cautious": False}], torch.float32).step()
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(0.5 * largest, rel=0.25)


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_gets_the_matrices_of_the_layers_and_nothing_else(shape: str) -> None:
    model = decoder(**SHAPES[shape])
    hidden = hidden_matrices(model)
    found = [name for name, weight in model.named_parameters() if weight in hidden]
    assert found == (GPT2_MATRICES if shape == "gpt2" else LLAMA_MATRICES)
    groups = make_optimizer(model, SETTINGS, "fp32").param_groups
    grouped = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(grouped) == sorted(id(weight) for weight in model.parameters())
    for group in groups:
        for weight in group["params"]:
            assert group["kind"] == ("muon" if weight in hidden else "adamw")
            assert group["weight_decay"] == (0.2 if weight.dim() == 2 else 0.0)


def test_each_step_orthogonalises_every_hidden_matrix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counted(matrices: Tensor, dtype: torch.dtype) -> Tensor:
        counts.append(len(matrices))
        return orthogonalise(matrices, dtype)

    monkeypatch.setattr("lm.optim.muon.orthogonalise", counted)
    model = decoder(n_kv_heads=2)
    optimizer = make_optimizer(model, SETTINGS, "fp32")
    for step in range(1, 4):
        train_on_noise(model, optimizer, range(step, step + 1))
        assert sum(counts) == step * len(LLAMA_MATRICES)


def test_frozen_matrices_are_left_out() -> None:
    model = decoder()
    model.layers[0].requires_grad_(False)
    groups = make_optimizer(model, SETTINGS, "fp32").param_groups
    assert {id(weight) for group in groups for weight in group["params"]} == {
        id(weight) for weight in model.parameters() if weight.requires_grad
    }


def test_the_other_weights_are_trained_by_adamw_to_the_bit() -> None:
    """With the same gradients, torch's own AdamW moves embedding and norms as ours does."""
    ours, theirs = decoder(bias=True), decoder(bias=True)
    muon = make_optimizer(ours, SETTINGS, "fp32")
    adamw = make_optimizer(theirs, SETTINGS.model_copy(update={"name": "adamw"}), "fp32")
    for seed in range(4):
        for model, optimizer in ((ours, muon), (theirs, adamw)):
            torch.manual_seed(seed)
            for weight in model.parameters():
                weight.grad = torch.randn_like(weight)
            optimizer.step()
    hidden = hidden_matrices(ours)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other) == (mine not in hidden), name


def test_without_a_gradient_only_the_decay_acts_and_without_any_nothing() -> None:
    model = decoder(residual_init="zero")
    before = copy.deepcopy(model)
    for name, weight in model.named_parameters():
        if "k_proj" not in name:
            weight.grad = torch.zeros_like(weight)
    make_optimizer(model, SETTINGS, "fp32").step()
    for (name, weight), old in zip(model.named_parameters(), before.parameters(), strict=True):
        if weight in hidden_matrices(model):
            factor = 1.0 if "k_proj" in name else 1 - 0.1 * 0.2
            torch.testing.assert_close(weight, old * factor, rtol=1e-6, atol=0)


def test_the_first_steps_of_zero_initialised_projections_are_finite() -> None:
    model = decoder(residual_init="zero", tie_embeddings=False)
    train_on_noise(model, make_optimizer(model, SETTINGS, "fp32"), range(3))
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert all(weight.abs().max() > 0 for weight in model.parameters())


def test_clipping_scales_adamws_gradients_by_their_own_norm() -> None:
    model = decoder()
    optimizer = make_optimizer(model, SETTINGS, "fp32")
    hidden = hidden_matrices(model)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 1000.0 if weight in hidden else 2.0)
    others = [weight for weight in model.parameters() if weight not in hidden]
    norm = 2 * sum(weight.numel() for weight in others) ** 0.5
    clip_gradients(optimizer, norm / 4, torch.tensor(1e9))
    for weight in model.parameters():
        expected = torch.tensor(1000.0 if weight in hidden else 0.5)
        torch.testing.assert_close(weight.grad, expected.expand_as(weight), rtol=1e-4, atol=0)


def test_the_limit_of_the_norm_does_not_change_muons_step() -> None:
    models = decoder(), decoder()
    for model, limit in zip(models, (1e-3, 1e3), strict=True):
        optimizer = make_optimizer(model, SETTINGS, "fp32")
        for seed in range(3):
            torch.manual_seed(seed)
            for weight in model.parameters():
                weight.grad = torch.randn_like(weight)
            clip_gradients(optimizer, limit, torch.tensor(50.0))
            optimizer.step()
    for (name, low), high in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if low in hidden_matrices(models[0]):
            assert torch.equal(low, high), name


# One step with lr 0.1 and decay 0.5 from this matrix. Each case has a gradient and the signs of the
# update: AdamW's first one has the gradient's, Muon's those of the nearest orthogonal matrix.
BEFORE = torch.tensor([[2.0, -2.0], [4.0, -4.0]])
BY_HAND = {
    "adamw": ([[1.0, 1.0], [0.0, -1.0]], [[1, 1], [0, -1]]),
    "muon": ([[0.0, 3.0], [3.0, 0.0]], [[0, 1], [1, 0]]),
    "muon, another sign than the gradient's": ([[10.0, 1.0], [10.0, 0.5]], [[1, 1], [1, -1]]),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_cautious_decay_acts_where_the_update_leads_to_zero(case: str) -> None:
    gradient, signs = (torch.tensor(values) for values in BY_HAND[case])
    steps = []
    for cautious in (True, False):
        weight = nn.Parameter(BEFORE.clone())
        weight.grad = gradient.clone()
        group = {
            "kind": case.partition(",")[0], "params": [weight], "lr": 0.1, "momentum": 0.0,
            "weight_decay": 0.5, "betas": (0.9, 0.95), "eps": 1e-8, "fused": True,
        }  # fmt: skip
        Muon([group | {"cautious": cautious}], torch.float32).step()
        steps.append(weight.detach() - BEFORE)
    update = steps[1] + 0.1 * 0.5 * BEFORE
    assert torch.equal(update.sign() * (update.abs() > 1e-6), -signs.float())
    mask = BEFORE * signs > 0
    torch.testing.assert_close(steps[0], update - 0.1 * 0.5 * BEFORE * mask)


def test_adamws_cautious_decay_follows_the_moment_and_not_the_gradient() -> None:
    torch.manual_seed(0)
    settings = SETTINGS.model_copy(update=CAUTIOUS_ADAMW)
    model = nn.Linear(4, 30)
    weight, first, second = model.weight.detach().double(), 0.0, 0.0
    optimizer = make_optimizer(model, settings, "fp32")
    against = 0
    for step in range(1, 9):
        model.weight.grad, model.bias.grad = torch.randn(30, 4), torch.zeros(30)
        gradient = model.weight.grad.double()
        first = 0.8 * first + 0.2 * gradient
        second = 0.97 * second + 0.03 * gradient.square()
        update = first / (1 - 0.8**step) / ((second / (1 - 0.97**step)).sqrt() + 1e-8)
        against += int((gradient * update < 0).sum())
        weight = weight - 0.01 * (update + 0.2 * weight * (update * weight > 0))
        optimizer.step()
    assert against > 50
    torch.testing.assert_close(model.weight.double(), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_without_decay_there_is_nothing_to_be_cautious_about(name: str) -> None:
    """The rest of the step is the same to the bit, with torch's AdamW too."""
    models = decoder(bias=True), decoder(bias=True)
    for model, cautious in zip(models, (True, False), strict=True):
        update = {"name": name, "weight_decay": 0.0, "cautious_decay": cautious}
        optimizer = make_optimizer(model, SETTINGS.model_copy(update=update), "fp32")
        train_on_noise(model, optimizer, range(4))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("changes", [{}, {"cautious_decay": True}, CAUTIOUS_ADAMW])
def test_a_saved_state_continues_to_the_bit(changes: dict[str, Any]) -> None:
    settings = SETTINGS.model_copy(update=changes)
    straight, halted = decoder(bias=True), decoder(bias=True)
    train_on_noise(straight, make_optimizer(straight, settings, "fp32"), range(6))
    first = make_optimizer(halted, settings, "fp32")
    train_on_noise(halted, first, range(3))
    second = make_optimizer(halted, settings, "fp32")
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train_on_noise(halted, second, range(3, 6))
    for ours, theirs in zip(halted.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_products_are_in_bf16_only_where_the_device_has_it(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for native in (True, False):
        monkeypatch.setattr("lm.optim.optimizers.has_native_bf16", lambda _, n=native: n)
        optimizer = make_optimizer(decoder(), SETTINGS, precision)
        assert isinstance(optimizer, Muon)
        expected = torch.bfloat16 if native and precision == "bf16" else torch.float32
        assert optimizer.dtype is expected


def test_a_closure_is_called_once_with_gradients() -> None:
    model = decoder()
    optimizer = make_optimizer(model, SETTINGS, "fp32")
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert calls == [True]
