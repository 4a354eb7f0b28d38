"""The LightningModule: what one optimiser step does.

One Lightning batch is one optimiser step. The loader hands over all micro-batches of the step that
this process computes, so the number of supervised tokens is known before the first backward pass.
Every token then weighs the same, however the step is cut into micro-batches and processes.
Lightning's own accumulation averages the means of micro-batches, which differs when masks differ.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from lm.checkpoints.folder import Checkpoint
from lm.checkpoints.train_state import TrainState, load_into, read_saved
from lm.optim.averaging import WeightAverage
from lm.optim.optimizers import clip_gradients, make_optimizer, trained
from lm.optim.randomness import fold, seed_all, seed_step
from lm.optim.schedule import set_rates
from lm.runs.incidents import Incidents, SpikeWatch
from lm.surgery import fsdp
from lm.system.errors import NonFiniteError, first_line, is_out_of_memory
from lm.training.deadline import Deadline
from lm.training.parts import Parts
from lm.training.processes import exchange_gradients
from lm.training.recovery import LossScale, give_up
from lm.training.rows_at_once import halve_rows, split


class LanguageModel(lightning.LightningModule):
    """A decoder in training.

    Attributes:
        step: updates done so far. Data and randomness follow from it alone, and so does the
            learning rate unless there is a deadline.
        loss: the last step's loss in nats per token, on the device.
        grad_norm: the last step's gradient norm of all weights before clipping, on the device.
        used_learning_rate: the last step's rate for weights without a rate of their own.
        deadline: the clock of a run with `optimizer.schedule_by: time`; train.py sets it.
        average: the averaged weights, or None where `optimizer.ema_decay` is 0.
        rows_at_once: the rows of one forward pass; callbacks.ChooseRows sets it.
    """

    def __init__(self, parts: Parts, incidents: Incidents, resume: Path | None = None):
        super().__init__()
        self.automatic_optimization = False
        self.config = parts.config
        self.precision = parts.precision
        self.objective = parts.objective
        self.incidents = incidents
        self.step = 0
        self.deadline: Deadline | None = None
        self.average: WeightAverage | None = None
        self.loss = self.grad_norm = torch.tensor(math.nan)
        self.used_learning_rate = 0.0
        self.spikes = SpikeWatch()
        self.rows_at_once = parts.config.trainer.micro_batch
        self._make_decoder = parts.make_decoder
        self._resume = resume
        self._saved: TrainState | None = None  # between reading and restoring

    def configure_model(self) -> None:
        """Build the decoder on the CPU, from the seed and files alone; with fsdp, shard it."""
        if not hasattr(self, "decoder"):  # train.py calls this first, then Lightning again
            seed_all(fold(self.config.trainer.seed))
            self.decoder = self._make_decoder()
            if self._resume is not None:
                start = Checkpoint(self._resume)
                load_into(self.decoder, start, averaged=False)
                self._saved = read_saved(start, self.decoder, self.config.optimizer, self.precision)
        if self.device_mesh is not None and not self.sharded:
            layers = self.decoder.get_submodule("layers").children()
            fsdp.shard(self.decoder, layers, self.device_mesh["data_parallel"])

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the decoder only."""
        return fsdp.is_sharded(self.decoder)

    def configure_optimizers(self) -> Optimizer:
        """Return the optimiser, in the state in which the run left it."""
        optimizer = make_optimizer(self.decoder, self.config.optimizer, self.precision)
        self._weights = list(trained(self.decoder).values())  # walking all modules takes 0.2 ms
        if self.config.optimizer.ema_decay:
            self.average = WeightAverage(self.decoder, self.config.optimizer.ema_decay)
        if self._saved is not None:
            state = self._saved.restore(optimizer, self.average)
            self.step = state["step"]
            self.spikes = SpikeWatch(state["recent_losses"])
            if "scaler" in state:
                self.trainer.precision_plugin.load_state_dict(state["scaler"])
            self._saved = None
        return optimizer

    def on_fit_start(self) -> None:
        """Read which updates the run skipped before: they are skipped again."""
        self.incidents.recall(self.step, self.trainer.strategy.broadcast)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Do one optimiser step.

        `batch` holds `step` and the tensors `input_ids`, `labels` and perhaps `document_ids`, each
        (micro-batches, B, T).

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite; no update was made.
            GoBack: the same, where the configuration wants to go back to a checkpoint.
            UserError: out of memory, and smaller micro-batches cannot help.
        """
        assert batch["step"] == self.step, f"loader at {batch['step']}, model at {self.step}"
        optimizer, last, settings = self.optimizers(), self.config.max_steps, self.config.optimizer
        to_all, clock = self.trainer.strategy.broadcast, self.deadline
        progress = clock.begin_step(self.step, to_all) if clock is not None else None
        self.used_learning_rate = set_rates(optimizer, self.step, last, settings, progress)
        if self.step in self.incidents.skipped:
            self.loss = self.grad_norm = torch.tensor(math.nan)
        else:
            self.loss = self._backward(batch)
            self._update(optimizer, batch)
        self.step += 1

    def _backward(self, batch: dict[str, Any]) -> Tensor:
        """Fill the gradients and return the loss; without enough memory, halve the rows at once."""
        while True:
            try:
                return self._accumulate(batch)
            except (RuntimeError, MemoryError) as error:  # torch's own class is for GPUs only
                if not is_out_of_memory(error):
                    raise
                problem = first_line(error)
            # After the except block: the error no longer holds the failed attempt's tensors.
            self.rows_at_once = halve_rows(self, self.rows_at_once, problem)
            self.decoder.zero_grad()

    def _accumulate(self, batch: dict[str, Any]) -> Tensor:
        # Summed over processes before the first backward pass. The clamp: a step without a target
        # has loss 0 and zero gradients, never NaN.
        targets = self._summed(self.objective.count(batch)).clamp(min=1)
        names = [name for name in ("input_ids", "labels", "document_ids") if name in batch]
        micro_batches = len(batch["labels"])
        total = torch.zeros((), device=self.device)
        for micro in range(micro_batches):
            place = micro * self.trainer.world_size + self.global_rank
            seed_step(fold(self.config.trainer.seed, self.step, place), self.device)
            pieces = list(split({name: batch[name][micro] for name in names}, self.rows_at_once))
            for number, rows in enumerate(pieces, start=micro * len(pieces) + 1):
                with exchange_gradients(self, last=number == micro_batches * len(pieces)):
                    loss = self.objective.total(self.decoder, rows)
                    # DDP averages gradients over processes; times their number, it is the sum.
                    self.manual_backward(loss * (self.trainer.world_size / targets))
                    total += loss.detach()
        return self._summed(total) / targets

    def _update(self, optimizer: LightningOptimizer, batch: dict[str, Any]) -> None:
        """Let the optimiser and the averages follow the gradients, or skip the update."""
        scale = LossScale(self.trainer.precision_plugin)
        try:
            optimizer.step()
        except NonFiniteError as error:
            give_up(self, batch, str(error))
            self.loss = self.grad_norm = torch.tensor(math.nan)
            scale.restore()
        else:
            if scale.fell():
                self.incidents.note(self.step, "overflow", scale.overflow())
            elif self.average is not None:
                self.average.update(self.decoder)
            if spike := self.spikes.take(self.loss.item()):
                self.incidents.note(self.step, "spike", spike)
        optimizer.zero_grad()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Refuse an update that would destroy the weights, and clip the others.

        Gradients are complete and unscaled here. With fp16 an infinite gradient is expected: the
        scaler skips the step and lowers its scale, so only the loss counts.

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite.
        """
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.grad_norm = fsdp.full_tensor(norm)
        decisive = self.loss if self.precision == "fp16" else self.loss + self.grad_norm
        if not torch.isfinite(decisive):
            raise NonFiniteError(
                f"loss {self.loss.item():.4g}, gradient norm {self.grad_norm.item():.4g}, learning"
                f" rate {self.used_learning_rate:.3g}: not finite"
            )
        if clip := self.config.optimizer.grad_clip:
            clip_gradients(optimizer, clip, self.grad_norm)

    def _summed(self, value: Tensor) -> Tensor:
        """Add up over processes."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(value)
        return value
