"""Compare adapters on linear layers with peft's and with plain matrices: python -m pytest
tests/surgery/test_lora.py.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.config.schema.finetune import LoraConfig
from lm.config.schema.model import ModelConfig
from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.averaging import WeightAverage
from lm.optim.optimizers import make_optimizer, parameter_groups, trained
from lm.surgery.four_bit import FourBitLinear
from lm.surgery.lora import Adapted, adapters_off, add_adapters, merge
from lm.system.errors import ConfigError
from lm.training.forecast import footprint
from model import Decoder
from tests.support import one_step
from tests.support.runs import launched

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 1},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True},
    "untied": {"tie_embeddings": False, "qk_norm": True},
}
PER_LAYER = [
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
]
IDS = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(1))


def decoder(shape: str = "llama", **changes: Any) -> Decoder:
    torch.manual_seed(0)
    values = {
        "vocab_size": 50,
        "context_length": 12,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 2,
        "init_std": 0.2,
    }
    return Decoder(ModelConfig.model_validate(values | SHAPES[shape] | changes))


def learnt(model: nn.Module) -> None:
    """Give B values, as training would."""
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in trained(model).items():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.1, generator=chance)


def adapted(
    shape: str = "llama", four_bits: bool = False, changes: Any = None, **config: Any
) -> Decoder:
    model = decoder(shape, **(changes or {}))
    add_adapters(model, LoraConfig(**config), four_bits)
    learnt(model)
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(IDS)
    return result


def backward(model: nn.Module) -> None:
    model(IDS[:, :-1], IDS[:, 1:]).sum().backward()


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("targets", [["layers.*"], ["*.q_proj", "*.v_proj"]])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_function_and_gradients_as_pefts(
    shape: str, targets: list[str], figure: Callable[[str], None]
) -> None:
    """peft's adapters in the same decoder, with the same weights, give the same logits and
    gradients.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    ours = adapted(shape, rank=4, alpha=6, targets=targets)
    names = [name for name, layer in ours.named_modules() if isinstance(layer, Adapted)]
    theirs = inject_adapter_in_model(
        PeftConfig(r=4, lora_alpha=6, target_modules=names), decoder(shape)
    )
    weights = trained(ours)
    named = {
        name.replace(".default.weight", ""): parameter
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    assert named.keys() == weights.keys() and len(weights) == 2 * len(names)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    apart = (logits(ours) - logits(theirs)).abs().max().item()
    for model in (ours, theirs):
        backward(model)
    for name, parameter in named.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-3, name
        torch.testing.assert_close(weights[name].grad, parameter.grad, atol=1e-5, rtol=1e-5)
    assert apart < 1e-5
    figure(f"{shape}, {', '.join(targets)}: logits differ from peft's by at most {apart:.1e}")


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_formula(shape: str) -> None:
    """The logits equal those of matrices W + alpha / rank * B A, computed here."""
    model, plain = adapted(shape, rank=4, alpha=6), decoder(shape)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, Adapted):
                plain.get_submodule(name).weight += 6 / 4 * layer.lora_B @ layer.lora_A  # type: ignore[operator]
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-5, rtol=1e-5)
    assert (logits(model) - logits(decoder(shape))).abs().max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_before_the_first_step_it_is_the_base(shape: str) -> None:
    model = decoder(shape)
    before = logits(model)
    names = add_adapters(model, LoraConfig())
    assert torch.equal(logits(model), before)
    wanted = [name for name in PER_LAYER if shape != "gpt2" or "gate" not in name]
    assert names == [f"layers.{layer}.{name}" for layer in range(2) for name in wanted]
    for name, weight in trained(model).items():
        if name.endswith("lora_A"):  # nn.Linear and peft start like this: a = sqrt(5)
            bound = weight.shape[1] ** -0.5
            assert 0.8 * bound < weight.abs().max() <= bound
        else:
            assert not weight.any()


def test_dropout_acts_on_what_the_adapters_read_and_only_in_training() -> None:
    model = adapted(dropout=0.5)
    still = logits(adapted())
    assert torch.equal(logits(model), still)
    torch.manual_seed(5)
    layer = model.layers[0].attention.q_proj.train()  # type: ignore[union-attr]
    assert isinstance(layer, Adapted)
    x = torch.randn(2, 32)
    torch.manual_seed(6)
    given = layer(x)
    torch.manual_seed(6)
    torch.testing.assert_close(
        given, layer.base(x) + 2 * F.dropout(x, 0.5) @ layer.lora_A.T @ layer.lora_B.T
    )
    layer.lora_B.data.zero_()
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_weights_get_no_gradient_and_never_change(shape: str, four_bits: bool) -> None:
    model = adapted(shape, four_bits)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-2, weight_decay=0.1), "fp32")
    average = WeightAverage(model, 0.5)
    for _ in range(3):
        backward(model)
        optimizer.step()
        average.update(model)
        assert {
            name for name, parameter in model.named_parameters() if parameter.grad is not None
        } == trained(model).keys()
        optimizer.zero_grad()
    changed = {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert changed == trained(model).keys() == average.weights.keys()
    assert all("lora_" in name for name in changed)


def test_adapters_do_not_decay_and_nothing_else_is_in_the_optimiser() -> None:
    model = adapted()
    groups = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.0]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    assert sorted(grouped) == sorted(map(id, trained(model).values())) and len(grouped) == 28


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_merged_equals_unmerged(shape: str, four_bits: bool, figure: Callable[[str], None]) -> None:
    model = adapted(shape, four_bits, rank=4, alpha=6)
    before = logits(model)
    merge(model)
    apart = (logits(model) - before).abs().max().item()
    assert apart < 1e-5
    plain = decoder(shape)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in plain.modules()]
    assert trained(model).keys() == trained(plain).keys()
    assert (model.lm_head.weight is model.embed_tokens.weight) is (shape != "untied")
    figure(f"{shape}{', 4 bits' * four_bits}: merged logits differ by at most {apart:.1e}")


def test_switched_off_it_is_the_base_and_then_itself_again() -> None:
    model, base = adapted(), decoder()
    own = logits(model)
    model.train()
    with adapters_off(model) as reference:
        assert reference is model and not any(layer.training for layer in model.modules())
        assert torch.equal(logits(model), logits(base))
        with adapters_off(model):
            pass
        assert torch.equal(logits(model), logits(base))
    assert model.training and all(layer.training for layer in model.modules())
    assert torch.equal(logits(model), own)
    with pytest.raises(KeyboardInterrupt), adapters_off(model):
        raise KeyboardInterrupt
    assert torch.equal(logits(model), own)


def test_averages_of_adapters_are_swapped_in_and_out() -> None:
    model = adapted()
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(1)
    average.update(model)
    own = logits(model)
    with average.swapped_in(model):
        halfway, swapped = adapted(), logits(model)
        with torch.no_grad():
            for parameter in trained(halfway).values():
                parameter.add_(0.5)
        torch.testing.assert_close(swapped, logits(halfway))
    assert torch.equal(logits(model), own)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (
            ["layers.*", "*.query"],
            "'*.query' matches no layer; there are embed_tokens, layers.*.attention.q_proj, ",
        ),
        # a pattern must match the whole name
        (
            ["q_proj"],
            "'q_proj' matches no layer; there are embed_tokens, layers.*.attention.q_proj, ",
        ),
        (["*.Q_proj"], "'*.Q_proj' matches no layer"),
        (["*norm*"], "'*norm*' matches no layer"),
        (
            ["lm_head"],
            (
                "'lm_head' names the output head alone, which gets no adapters of its own: the loss"
                " uses its matrix"
            ),
        ),
        (["*.q_proj", "*head"], "'*head' names the output head alone"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_and_nothing_is_changed(
    targets: list[str], said: str
) -> None:
    model = decoder()
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ConfigError) as caught:
        add_adapters(model, LoraConfig(targets=targets))
    message = str(caught.value)
    assert (
        message.startswith(f"finetune.lora.targets: {said}")
        and "\n" not in message
        and "layers.0" not in message
    )
    assert [name for name, _ in model.named_parameters()] == names == [*trained(model)]


@pytest.mark.parametrize("targets", [["*"], ["*", "layers.*"], ["*proj*"]])
def test_the_head_is_never_among_them_and_a_layer_only_once(targets: list[str]) -> None:
    model = decoder("untied")
    linear = [f"layers.{layer}.{name}" for layer in range(2) for name in PER_LAYER]
    assert add_adapters(model, LoraConfig(targets=targets)) == [
        *(["embed_tokens"] if "*" in targets else []),
        *linear,
    ]
    assert (
        type(model.lm_head) is nn.Linear
        and type(model.layers[0].attention.q_proj.base) is nn.Linear
    )  # type: ignore[union-attr]


def test_any_module_will_do() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Sequential(nn.Linear(7, 3, bias=False)))
    x = torch.randn(4, 5)
    assert add_adapters(model, LoraConfig(rank=2, targets=["2.0", "0"])) == ["0", "2.0"]
    learnt(model)
    before = model(x)
    merge(model)
    torch.testing.assert_close(model(x), before)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.0.weight"]


@pytest.mark.parametrize("shape", [(5, 7), (64, 64), (3, 130), (128, 352), (352, 128), (33, 96)])
def test_four_bits_are_the_nearest_of_sixteen_values(shape: tuple[int, int]) -> None:
    """A slow search in the table of the paper (appendix E) gives the same values. Each block of 64
    is scaled by its largest.
    """
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0])
    packed = FourBitLinear(layer)
    below = [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.3949174880981445,
        -0.2844413816928863,
        -0.1847734302282333,
        -0.0910500362515449,
    ]
    above = [
        0.0795802995562553,
        0.1609302014112472,
        0.2461123019456863,
        0.3379152417182922,
        0.4407098293304443,
        0.5626170039176941,
    ]
    table = torch.tensor([*below, 0.0, *above, 0.7229568362236023, 1.0])
    blocks = layer.weight.detach().flatten().split(64)
    nearest = torch.cat(
        [
            table[(block[:, None] / block.abs().max() - table).abs().argmin(1)] * block.abs().max()
            for block in blocks
        ]
    )
    torch.testing.assert_close(
        packed.weight(torch.float32), nearest.view(shape), atol=1e-6, rtol=1e-5
    )
    x = torch.randn(2, 4, shape[1], requires_grad=True)
    plain = nn.Linear(shape[1], shape[0])
    plain.weight, plain.bias = nn.Parameter(nearest.view(shape)), layer.bias
    gradients = [torch.autograd.grad(model(x).square().sum(), x)[0] for model in (packed, plain)]
    torch.testing.assert_close(packed(x), plain(x))
    torch.testing.assert_close(*gradients)


def test_four_bits_take_an_eighth_and_are_near() -> None:
    changes = {"d_model": 128, "n_heads": 4}
    base, model = decoder(**changes), decoder(**changes)
    whole = sum(
        base.get_submodule(f"layers.{layer}.{name}").weight.nbytes
        for layer in range(2)
        for name in PER_LAYER
    )  # type: ignore
    before, rest = (
        footprint(base, OptimizerConfig()),
        footprint(base, OptimizerConfig()).weights - whole,
    )
    add_adapters(model, LoraConfig(rank=1), four_bits=True)
    taken = footprint(model, OptimizerConfig(ema_decay=0.5))
    assert (taken.weights - rest - taken.gradients) / whole == pytest.approx(4.5 / 32, rel=0.01)
    assert (
        taken.optimizer == 2 * taken.gradients == 2 * taken.averages
        and taken.checkpoint == 4 * taken.gradients < before.checkpoint / 20
    )
    assert (
        model.n_parameters == base.n_parameters
        and model.n_matmul_parameters == base.n_matmul_parameters
    )
    error = [
        (layer.base.weight(torch.float32) - base.get_submodule(name).weight).norm()
        / base.get_submodule(name).weight.norm()  # type: ignore
        for name, layer in model.named_modules()
        if isinstance(layer, Adapted) and isinstance(layer.base, FourBitLinear)
    ]
    assert len(error) == 14 and 0.05 < max(error) < 0.12


def test_four_bits_compute_in_the_precision_of_their_surroundings_and_keep_no_whole_weights() -> (
    None
):
    model = adapted(four_bits=True, changes={"gradient_checkpointing": False})
    kept: list[int] = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ),
    ):
        layer = model.layers[0].mlp.up_proj  # type: ignore[union-attr]
        y = layer.base(torch.randn(2, 32, requires_grad=True))
    assert y.dtype == torch.bfloat16 and 32 * 128 not in kept and not kept
    y.sum().backward()


def test_checkpointed_activations_give_the_same_gradients() -> None:
    plain, saving = (
        adapted(four_bits=True),
        adapted(four_bits=True, changes={"gradient_checkpointing": True}),
    )
    for model in (plain, saving):
        backward(model.train())
    for name, parameter in trained(plain).items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, trained(saving)[name].grad, msg=name)


def test_without_bitsandbytes_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    add_adapters(decoder(), LoraConfig())
    with pytest.raises(
        ConfigError,
        match=(
            r"^finetune\.method: qlora needs a package:"
            r" \S+ -m pip install bitsandbytes$"
        ),
    ):
        add_adapters(decoder(), LoraConfig(), four_bits=True)


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("method", ["lora", pytest.param("qlora", marks=pytest.mark.long)])
def test_processes_learn_the_same_adapters(
    method: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Processes over gloo have the gradients and weights of one process. Each holds the whole
    decoder (ddp) or a part of it (fsdp).
    """
    one_step.main(8, tmp_path / "whole.pt", 1, method)
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert sum(name.startswith("layers.") for name in whole) == 28
    cases = [f"4-{method}", f"2-{method}", f"2-fsdp-{method}"]
    launched(2, "tests.support.one_step", str(tmp_path), *cases)
    worst = 0.0
    for case in cases:
        result = torch.load(tmp_path / f"{case}.pt", weights_only=True)
        assert result.keys() == whole.keys()
        for name, value in whole.items():
            worst = max(worst, (result[name].float() - value.float()).abs().max().item())
    assert worst < 1e-5
    figure(
        f"{method} on two processes (ddp, fsdp): gradients and weights differ by at most"
        f" {worst:.1e}"
    )


def test_a_copy_is_a_copy() -> None:
    """A decoder with adapters can be copied, as a reference model would be."""
    model = adapted(four_bits=True)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(model), logits(twin))
    with torch.no_grad():
        for parameter in trained(twin).values():
            parameter.add_(1)
    assert not torch.equal(logits(model), logits(twin))


def test_switched_off_it_is_the_reference_that_dpo_compares_with() -> None:
    """Losses and gradients equal those with a copy of the base as reference, although the adapters
    have dropout.
    """
    from lm.optim.objectives import Preference, frozen_reference

    rows = {
        "input_ids": IDS[:, :-1],
        "labels": IDS[:, 1:],
        "document_ids": torch.tensor([[0] * 6 + [1] * 5] * 3),
    }
    results = []
    for reference in (frozen_reference(decoder()), adapters_off):
        model = adapted(dropout=0.2).train()
        torch.manual_seed(7)
        losses = Preference(0.3, reference).losses(model, rows)
        losses.sum().backward()
        results.append((losses, [parameter.grad for parameter in trained(model).values()]))
    torch.testing.assert_close(*results)
    assert results[0][0].std() > 0.01


@pytest.mark.parametrize("shape", ["llama", "untied"])
def test_adapters_of_an_embedding_change_its_table_wherever_it_is_used(shape: str) -> None:
    """Loss, gradients and merged weights equal those of a decoder whose table is W + alpha / rank *
    B A, written out.
    """
    model, before = adapted(shape, targets=["embed_tokens"], rank=3, alpha=6.0), decoder(shape)
    low, high = trained(model).values()
    plain = decoder(shape)
    with torch.no_grad():
        plain.embed_tokens.weight += 2.0 * (high @ low)
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(model), logits(before), atol=1e-2)
    backward(model)
    backward(plain)
    table = plain.embed_tokens.weight.grad
    assert table is not None and low.grad is not None and high.grad is not None
    torch.testing.assert_close(high.grad, 2.0 * table @ low.detach().T, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(low.grad, 2.0 * high.detach().T @ table, atol=1e-3, rtol=1e-4)
    assert [
        name for name, parameter in model.named_parameters() if parameter.grad is not None
    ] == list(trained(model))
    with adapters_off(model) as reference:
        torch.testing.assert_close(logits(reference), logits(before), atol=0, rtol=0)
    merge(model)
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-5, rtol=1e-5)
    assert list(dict(model.named_parameters())) == list(dict(before.named_parameters()))
    assert (model.lm_head.weight is model.embed_tokens.weight) == (shape != "untied")


def test_a_tied_head_is_reached_by_the_embedding_alone() -> None:
    with pytest.raises(ConfigError, match="names the output head alone"):
        add_adapters(decoder(), LoraConfig(targets=["lm_head"]))
