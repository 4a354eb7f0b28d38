"""Numbers that are not finite stop a run wherever they come from, and two runs with one
configuration are equal.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import data
from lm.checkpoints.folder import step_directories
from lm.system.errors import NonFiniteError
from lm.training.module import LanguageModel
from model import Decoder
from tests.support.runs import config_file, train
from tests.training.test_train import assert_same_run

pytestmark = pytest.mark.usefixtures("trains")


def poison_loss(chance: random.Random, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of one micro-batch infinite or NaN."""
    forward, micro = Decoder.forward, chance.randrange(2)
    calls: list[int] = []

    def broken(self: Decoder, *arguments: Any, **options: Any) -> Tensor:
        out = forward(self, *arguments, **options)
        if not self.training:
            return out
        calls.append(1)
        return (
            out * chance.choice([float("nan"), float("inf")])
            if len(calls) == 2 * step + micro + 1
            else out
        )

    monkeypatch.setattr(Decoder, "forward", broken)


def poison_gradient(chance: random.Random, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one number of one gradient infinite or NaN."""
    accumulate = LanguageModel._accumulate

    def broken(self: LanguageModel, batch: dict[str, Any]) -> Tensor:
        loss = accumulate(self, batch)
        if self.step == step:
            gradient = chance.choice([parameter.grad for parameter in self.decoder.parameters()])
            gradient.view(-1)[chance.randrange(gradient.numel())] = chance.choice(
                [float("nan"), float("inf"), float("-inf")]
            )
        return loss

    monkeypatch.setattr(LanguageModel, "_accumulate", broken)


def poison_weight(chance: random.Random, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one number of the weights NaN, as a flipped bit in memory could."""
    accumulate = LanguageModel._accumulate

    def broken(self: LanguageModel, batch: dict[str, Any]) -> Tensor:
        if self.step == step:
            name = chance.choice(
                [
                    name
                    for name, parameter in self.decoder.named_parameters()
                    if name.startswith("layers.") or "norm" in name
                ]
            )
            weight = dict(self.decoder.named_parameters())[name]
            with torch.no_grad():
                weight.view(-1)[chance.randrange(weight.numel())] = float("nan")
        return accumulate(self, batch)

    monkeypatch.setattr(LanguageModel, "_accumulate", broken)


def poison_data(chance: random.Random, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark a row of the step and make its loss overflow, as damaged data might."""
    get, forward = data.TrainingSteps.__getitem__, Decoder.forward

    def marked(self: data.TrainingSteps, number: int) -> dict[str, Any]:
        batch = get(self, number)
        if number == step:
            batch["input_ids"][0, 0, chance.randrange(16)] = 257  # <|bos|>, which no text has
        return batch

    def overflowing(self: Decoder, ids: Tensor, *arguments: Any, **options: Any) -> Tensor:
        out = forward(self, ids, *arguments, **options)
        return out / (~(ids == 257).any()) if self.training else out

    monkeypatch.setattr(data.TrainingSteps, "__getitem__", marked)
    monkeypatch.setattr(Decoder, "forward", overflowing)


KINDS = [poison_loss, poison_gradient, poison_weight, poison_data]


def test_nothing_is_learnt_from_it(
    tmp_path: Path, amount: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    """The run stops before the update at random steps with exit code 4. No checkpoint has a number
    that is not finite.
    """
    times, tensors = amount(4, 30), 0
    for number in range(times):
        chance = random.Random(number)
        step, folder = chance.randrange(12), tmp_path / str(number)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patched:
            KINDS[number % 4](chance, step, patched)
            with pytest.raises(NonFiniteError, match=f"^step {step + 1}: ") as stopped:
                train(
                    config_file(folder), "--checkpoint.save_every=1", "--trainer.validate_every=100"
                )
        assert stopped.value.exit_code == 4
        checkpoints = step_directories(folder / "run")
        assert len(checkpoints) == step
        for file in (
            file for checkpoint in checkpoints for file in checkpoint.glob("*.safetensors")
        ):
            for tensor in load_file(file).values():
                assert tensor.isfinite().all()
                tensors += 1
        report = folder / "run" / f"nonfinite-step-{step + 1:08d}"
        assert {path.name for path in report.iterdir()} == {"report.json", "batch.jsonl"}
    figure(f"{times} of {times} stopped before the update, 0 of {tensors} saved tensors not finite")


def test_two_runs_are_one(
    tmp_path: Path, amount: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    steps = amount(12, 100)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        train(config_file(tmp_path / name), f"--trainer.max_steps={steps}")
    assert_same_run(tmp_path / "one" / "run", tmp_path / "other" / "run")
    figure(f"two runs of {steps} steps: every weight, optimiser state and logged number the same")
