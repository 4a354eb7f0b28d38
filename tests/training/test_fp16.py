"""Train in fp16 with a gradient scaler on the CPU. The command refuses this because it is slow, but
the arithmetic is the GPU's.

`trainer.fit` makes one optimiser step after another, as on a GPU without bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lm.checkpoints.folder import FORMAT
from lm.checkpoints.write import write_checkpoint, write_json
from lm.config.schema.config import Config
from lm.config.schema.model import ModelConfig
from lm.runs.incidents import Incidents
from lm.system.errors import NonFiniteError
from lm.training.module import LanguageModel
from lm.training.parts import Parts
from lm.training.record import writers
from model import Decoder

pytestmark = pytest.mark.usefixtures("trains")

ROWS, LENGTH, VOCABULARY, STEPS = 4, 12, 50, 6
CALM, TOO_HIGH = 2.0**10, 2.0**40  # scales: no gradient overflows, or all do


class Steps(Dataset[dict[str, object]]):
    """A data set whose rows depend only on the number of the step."""

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> dict[str, object]:
        ids = torch.randint(
            0, VOCABULARY, (1, ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step)
        )
        return {"step": step, "input_ids": ids[..., :-1], "labels": ids[..., 1:]}


class Recorder(LanguageModel):
    """A model that records the norms of the gradients, and the weights and averages after each
    step. It saves after step 3 if `save` is set.
    """

    save: Path | None = None

    def on_fit_start(self) -> None:
        self.norms: list[float] = []
        self.states: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.norms.append(
            nn.utils.get_total_norm(
                [parameter.grad for parameter in self.decoder.parameters()]
            ).item()
        )

    def on_train_batch_end(self, *arguments: object) -> None:
        assert self.average is not None
        state = {
            name: parameter.detach().clone() for name, parameter in self.decoder.named_parameters()
        }
        if self.save is not None and self.step == 3:
            meta = {"format": FORMAT, "step": self.step, "model": {}, "tokenizer": {}, "config": {}}
            write_checkpoint(
                self.save, writers(self) | {"meta.json": lambda path: write_json(path, meta)}
            )
        self.states.append(
            state
            | {
                f"average of {name}": tensor.clone()
                for name, tensor in self.average.weights.items()
            }
            | {
                f"state of {number}, {name}": tensor.clone()
                for number, values in self.optimizers().state_dict()["state"].items()
                for name, tensor in values.items()
            }
        )


def fit(
    scale: float,
    precision: str = "fp16",
    say: Callable[[str], None] = print,
    growth: int = 2000,
    limit: int = 10,
    resume: Path | None = None,
    save: Path | None = None,
    policy: str = "stop",
    optimizer: str = "adamw",
) -> Recorder:
    config = Config.model_validate(
        {
            "data": {"source": {"format": "txt", "files": "unused"}},
            "model": {
                "context_length": LENGTH,
                "n_layers": 2,
                "d_model": 16,
                "n_heads": 2,
                "vocab_size": VOCABULARY,
                "init_std": 0.2,
            },
            "optimizer": {
                "name": optimizer,
                "warmup_steps": 0,
                "grad_clip": 0.5,
                "ema_decay": 0.5,
            },
            "trainer": {"max_steps": STEPS, "batch_size": ROWS},
        }
    )
    nothing: Any = None
    parts = Parts(
        config, nothing, nothing, lambda: Decoder(ModelConfig(**config.model.model_dump()))
    )
    vars(parts)["precision"] = precision  # fp16 is not offered on a CPU
    module = Recorder(parts, Incidents(None, str, policy, limit, say), resume)
    module.save = save
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if precision == "fp16" else []
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, plugins=plugins, max_epochs=1, logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    first = 3 if resume is not None else 0
    trainer.fit(module, DataLoader(Steps(), sampler=range(first, STEPS), batch_size=None))
    return module


def test_gradients_are_clipped_after_they_are_unscaled() -> None:
    """The norms that are logged and clipped are those of fp32, not a thousand times as large."""
    half, full = fit(CALM), fit(CALM, precision="fp32")
    assert half.grad_norm.item() == pytest.approx(full.grad_norm.item(), rel=0.02)
    assert half.grad_norm > 0.6
    assert all(norm == pytest.approx(0.5, rel=1e-3) for norm in half.norms)
    for name, tensor in full.states[-1].items():
        torch.testing.assert_close(half.states[-1][name], tensor, atol=5e-3, rtol=0.05)


def test_an_overflow_skips_the_update_and_is_counted() -> None:
    said: list[str] = []
    module = fit(TOO_HIGH, say=said.append)
    start = Decoder(module.decoder.config)
    skipped = [line for line in said if "skipped the update" in line]
    assert len(skipped) == STEPS
    assert (
        skipped[1]
        == "step 2: fp16 gradients overflowed, so the scaler skipped the update; scale now"
        f" {TOO_HIGH / 4:g}"
    )
    assert module.step == STEPS
    assert start.state_dict().keys() == module.decoder.state_dict().keys()
    for name, tensor in module.states[-1].items():
        assert torch.equal(tensor, module.states[0][name]), name
    assert module.optimizers(use_pl_optimizer=False).state_dict()["state"] == {}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("overflown", ["layers.1.mlp.up_proj.weight", "embed_tokens.weight"])
def test_an_overflow_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch, optimizer: str, overflown: str
) -> None:
    """Weights, moments and average are those of before the step. The weights did not move, so they
    count once in the average, not twice.
    """
    accumulate = LanguageModel._accumulate

    def overflowing(self: LanguageModel, batch: dict[str, object]) -> Tensor:
        loss = accumulate(self, batch)
        if self.step == 3:
            self.decoder.get_parameter(overflown).grad[0] = float("inf")
        return loss

    monkeypatch.setattr(LanguageModel, "_accumulate", overflowing)
    before, after = fit(CALM, optimizer=optimizer).states[2:4]
    assert len([name for name in before if name.startswith("state")]) > 20
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(before["norm.weight"], before["average of norm.weight"])


def test_overflows_without_an_end_stop_the_run() -> None:
    with pytest.raises(
        NonFiniteError,
        match=r"^step 3: 3 updates in a row had to be left out \(trainer.nonfinite_limit\)",
    ) as stopped:
        fit(TOO_HIGH, limit=3)
    assert stopped.value.exit_code == 4


def test_a_step_that_is_left_out_leaves_the_scale_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A resumed run does not compute the skipped step. Its scale must then be that of the run that
    computed it.
    """
    accumulate = LanguageModel._accumulate

    def poisoned(self: LanguageModel, batch: dict[str, object]) -> Tensor:
        return accumulate(self, batch) * (float("nan") if self.step == 2 else 1)

    def broken(self: LanguageModel, batch: dict[str, object]) -> Tensor:
        loss = poisoned(self, batch)
        if self.step == 2:
            self.decoder.norm.weight.grad[0] = float("nan")
        return loss

    monkeypatch.setattr(LanguageModel, "_accumulate", broken)
    found = fit(CALM, growth=2, policy="skip")
    assert found.trainer.precision_plugin.scaler.get_scale() == CALM * 2**2, (
        "doubled after steps 2 and 5"
    )
    monkeypatch.setattr(Incidents, "skipped", {2})
    known = fit(CALM, growth=2, policy="skip")
    assert (
        found.trainer.precision_plugin.state_dict() == known.trainer.precision_plugin.state_dict()
    )
    for name, tensor in known.states[-1].items():
        assert torch.equal(found.states[-1][name], tensor), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_without_a_target_has_no_loss_and_no_gradient(
    optimizer: str, early_gradients: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a step in which every answer is cut away: 0 divided by 0 would be NaN."""
    rows = Steps.__getitem__

    def without_targets(self: Steps, step: int) -> dict[str, object]:
        batch = rows(self, step)
        return batch | {"labels": torch.full_like(batch["labels"], -100)} if step == 2 else batch

    monkeypatch.setattr(Steps, "__getitem__", without_targets)
    module = fit(CALM, precision="fp32", optimizer=optimizer)
    assert module.norms[2] == 0 and module.norms[3] > 0
    assert all(tensor.isfinite().all() for tensor in module.states[-1].values())


def test_the_scale_is_saved_and_resumed(tmp_path: Path) -> None:
    straight = fit(CALM, growth=2, save=tmp_path / "step-00000003.ckpt")
    resumed = fit(1.0, growth=2, resume=tmp_path / "step-00000003.ckpt")
    for module in (straight, resumed):
        assert module.trainer.precision_plugin.scaler.get_scale() == CALM * 2**3, (
            "doubled after steps 2, 4 and 6"
        )
    for name, tensor in straight.states[-1].items():
        assert torch.equal(resumed.states[-1][name], tensor), name
