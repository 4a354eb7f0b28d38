"""A step has the same gradient however it is cut into micro-batches and processes, with uneven
masks.

Gradients are compared and not losses, because AdamW hides a wrong scale.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lm.config.schema.model import ModelConfig
from model import Decoder
from tests.support import one_step
from tests.support.runs import launched


def assert_close(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            result[name], value, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


# each row drops out the same units, whichever process has it
SAME_DROPOUT = ("alone.pt", "1-dropout.pt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, trains: None) -> dict[str, Tensor]:
    """Return the result of all rows at once, in one process."""
    out = tmp_path_factory.mktemp("whole") / "out.pt"
    one_step.main(one_step.ROWS, out, 1)
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def whole_muon(tmp_path_factory: pytest.TempPathFactory, trains: None) -> dict[str, Tensor]:
    """Return the same with Muon as the optimiser, and cautious decay."""
    out = tmp_path_factory.mktemp("whole_muon") / "out.pt"
    one_step.main(one_step.ROWS, out, 1, "muon", "cautious")
    return torch.load(out, weights_only=True)


def test_the_gradient_is_that_of_the_mean_over_all_targets(whole: dict[str, Tensor]) -> None:
    """The gradient equals that of a plain computation without Lightning. It differs from the wrong
    one, the mean of the rows' means.
    """
    from lm.optim.randomness import fold, seed_all

    seed_all(fold(1337))
    config = {
        "context_length": 12,
        "n_layers": 2,
        "d_model": 16,
        "n_heads": 2,
        "d_ff": 42,
        "vocab_size": 50,
        "init_std": 0.2,
    }
    decoder = Decoder(ModelConfig(**config))  # type: ignore[arg-type]
    data = one_step.OneStep(one_step.ROWS, 0, 1)
    logits, labels = decoder(data.input_ids[0]), data.labels[0]
    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward(
        retain_graph=True
    )
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(whole[name], parameter.grad, atol=1e-6, rtol=1e-5)
    right = decoder.lm_head.weight.grad.clone()
    decoder.zero_grad()
    means = [
        F.cross_entropy(row, targets)
        for row, targets in zip(logits, labels, strict=True)
        if (targets != -100).any()
    ]
    torch.stack(means).mean().backward()
    assert not torch.allclose(decoder.lm_head.weight.grad, right, atol=1e-3)


def test_the_norm_is_of_all_gradients_also_with_muon(whole_muon: dict[str, Tensor]) -> None:
    gradients = [
        value
        for name, value in whole_muon.items()
        if not name.startswith("after") and name not in ("loss", "grad_norm")
    ]
    norm = torch.stack([value.square().sum() for value in gradients]).sum().sqrt()
    torch.testing.assert_close(whole_muon["grad_norm"], norm)


@pytest.mark.parametrize("loss", ["", "early"])  # early: gradients made in the forward pass
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("micro_batch", [24, 4, 2, 1])
def test_accumulated(
    whole: dict[str, Tensor],
    whole_muon: dict[str, Tensor],
    tmp_path: Path,
    micro_batch: int,
    optimizer: str,
    loss: str,
) -> None:
    options = [loss, *(("muon", "cautious") if optimizer == "muon" else ())]
    one_step.main(micro_batch, tmp_path / "out.pt", 1, *options)
    expected = whole_muon if optimizer == "muon" else whole
    assert_close(torch.load(tmp_path / "out.pt", weights_only=True), expected)


@pytest.mark.usefixtures("starts_processes")
def test_gradients_made_in_the_forward_pass_of_two_processes(
    whole: dict[str, Tensor], tmp_path: Path
) -> None:
    """DDP and FSDP, with a tied head and with its own. One process has no target at times."""
    cases = [f"{case}-early" for case in ("4", "2", "1", "2-fsdp", "1-fsdp")]
    launched(2, "tests.support.one_step", str(tmp_path), *cases, *(f"{c}-untied" for c in cases))
    one_step.main(one_step.ROWS, tmp_path / "untied.pt", 1, "untied")
    untied = torch.load(tmp_path / "untied.pt", weights_only=True)
    for case in cases:
        assert_close(torch.load(tmp_path / f"{case}.pt", weights_only=True), whole)
        assert_close(torch.load(tmp_path / f"{case}-untied.pt", weights_only=True), untied)


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("processes", "cases"),
    [
        (2, ("4", "2", "2-fsdp", "4-pieces", "2-fsdp-pieces")),
        (3, ("4", "2-fsdp")),
        (4, ("2", "1", "1-fsdp")),
    ],
)
def test_many_processes(
    whole: dict[str, Tensor],
    whole_muon: dict[str, Tensor],
    tmp_path: Path,
    processes: int,
    cases: tuple[str, ...],
    figure: Callable[[str], None],
) -> None:
    """Processes over gloo share the rows in several ways. Some have only ignored labels."""
    by_muon = [f"{case}-muon-cautious" for case in cases]
    launched(processes, "tests.support.one_step", str(tmp_path), *cases, *by_muon, "1-dropout")
    for case in by_muon:  # sharded matrices are orthogonalised whole, not each part for itself
        assert_close(torch.load(tmp_path / f"{case}.pt", weights_only=True), whole_muon)
    matrix = "after layers.0.mlp.up_proj.weight"
    assert (whole_muon[matrix] - whole[matrix]).abs().max() > 1e-3
    one_step.main(1, tmp_path / "alone.pt", 1, "dropout")
    alone, shared = (torch.load(tmp_path / name, weights_only=True) for name in SAME_DROPOUT)
    assert_close(shared, alone)
    worst = 0.0
    for case in cases:
        result = torch.load(tmp_path / f"{case}.pt", weights_only=True)
        assert_close(result, whole)
        gradients = [
            name
            for name in whole
            if not name.startswith("after") and name not in ("loss", "grad_norm")
        ]
        worst = max(worst, *((result[name] - whole[name]).abs().max().item() for name in gradients))
    assert worst < 1e-6
    figure(
        f"{processes} processes, micro-batches of {', '.join(cases)}: gradients differ by at most"
        f" {worst:.1e}"
    )
