"""The LightningModule: what one optimiser step is.

One Lightning batch is one optimiser step. The loader hands over all micro-batches of the step that
this process has to do, so the number of supervised tokens is known before the first backward pass
and every token weighs the same, however the step is cut into micro-batches and processes.
Lightning's own accumulation averages the means of micro-batches, which is another number as soon as
the masks differ.

The module is handed a function that builds the decoder, and does not know what is in it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lm.checkpoints.folder import Begun
from lm.checkpoints.train_state import Saved, begin_shards, load_into, read_saved, tensor_writers
from lm.config.schema.config import Config
from lm.optim.averaging import WeightAverage
from lm.optim.objectives import NEXT_TOKEN, Objective
from lm.optim.optimizers import make_optimizer
from lm.optim.randomness import fold, seed_all
from lm.optim.schedule import learning_rate
from lm.runs.incidents import Incidents, SpikeWatch
from lm.surgery import fsdp
from lm.system.device import smaller_micro_batch
from lm.system.errors import NonFiniteError, is_out_of_memory


class LanguageModel(lightning.LightningModule):
    """A decoder in training.

    Attributes:
        step: updates done so far. It is the run's only clock: data, learning rate and randomness
            follow from it.
        loss: the last step's loss in nats per token, on the device.
        grad_norm: the last step's global gradient norm before clipping, on the device.
        used_learning_rate: the last step's learning rate.
        incidents: what went wrong so far.
        average: the averaged weights, or None where `optimizer.ema_decay` is 0.
    """

    def __init__(
        self,
        config: Config,
        make_decoder: Callable[[], nn.Module],
        precision: str,
        incidents: Incidents,
        objective: Objective = NEXT_TOKEN,
        resume: Path | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.precision = precision
        self.step = 0
        self.average: WeightAverage | None = None
        self.loss = self.grad_norm = torch.tensor(math.nan)
        self.used_learning_rate = 0.0
        self.incidents = incidents
        self.objective = objective
        self.spikes = SpikeWatch()
        self._rows_at_once = config.trainer.micro_batch
        self._make_decoder = make_decoder
        self._resume = resume
        self._saved: Saved | None = None  # between reading and restoring

    def configure_model(self) -> None:
        """Build the decoder, the same on every process of any number: on the CPU, from the seed and
        files alone. Share it out with fsdp.
        """
        if not hasattr(self, "decoder"):
            seed_all(fold(self.config.trainer.seed))
            self.decoder = self._make_decoder()
            if self._resume is not None:
                load_into(self.decoder, self._resume, averaged=False)
                self._saved = read_saved(
                    self._resume, self.decoder, self.config.optimizer, self.precision
                )
        if self.device_mesh is not None and not self.sharded:
            fsdp.shard(
                self.decoder,
                self.decoder.get_submodule("layers").children(),
                self.device_mesh["data_parallel"],
            )

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of the decoder only."""
        return fsdp.is_sharded(self.decoder)

    def configure_optimizers(self) -> Optimizer:
        """The configured optimiser, in the state in which the run left it. The decoder is on its
        device by now.
        """
        optimizer = make_optimizer(self.decoder, self.config.optimizer, self.precision)
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

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One optimiser step.

        `batch` holds `step` and the tensors `input_ids`, `labels` and perhaps `document_ids`, each
        (micro-batches, B, T).

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite; the update was not made.
            GoBack: the same, where the configuration wants to go back to the newest checkpoint.
            UserError: out of memory, and smaller micro-batches cannot help.
        """
        assert batch["step"] == self.step, (
            f"the loader is at step {batch['step']}, the model at {self.step}"
        )
        self.used_learning_rate = learning_rate(
            self.step, self.config.max_steps, self.config.optimizer
        )
        optimizer = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self.used_learning_rate
        if self.step in self.incidents.skipped:
            self.loss = self.grad_norm = torch.tensor(math.nan)
        else:
            self.loss = self._backward(batch)
            self._update(optimizer, batch)
        self.step += 1

    def _backward(self, batch: dict[str, Any]) -> Tensor:
        """Fill the gradients; where memory does not suffice, do it again with half the rows at a
        time. Returns the loss.
        """
        while True:
            try:
                return self._accumulate(batch)
            except (
                RuntimeError,
                MemoryError,
            ) as error:  # torch has a class of its own for GPUs only
                if not is_out_of_memory(error):
                    raise
                problem = str(error).partition("\n")[0]
            # Out here, where the error no longer holds on to the tensors of the failed attempt.
            self._rows_at_once = smaller_micro_batch(
                self._rows_at_once, self.trainer.world_size, self.global_rank, problem
            )
            self.decoder.zero_grad()
            self.incidents.note(
                self.step,
                "memory",
                f"out of memory, so it is done again with {self._rows_at_once} of its rows at once"
                f" ({problem})",
            )

    def _accumulate(self, batch: dict[str, Any]) -> Tensor:
        # Summed over processes before the first backward pass. max(1): a step without a target has
        # loss 0 and zero gradients, never NaN.
        targets = self._summed(self.objective.count(batch)).clamp(min=1)
        micro_batches, total = len(batch["labels"]), torch.zeros((), device=self.device)
        for micro in range(micro_batches):
            seed_all(
                fold(
                    self.config.trainer.seed,
                    self.step,
                    micro * self.trainer.world_size + self.global_rank,
                )
            )
            names = [name for name in ("input_ids", "labels", "document_ids") if name in batch]
            parts = zip(
                *(batch[name][micro].split(self._rows_at_once) for name in names), strict=True
            )
            with self._no_sync_unless(micro == micro_batches - 1):
                for part in parts:
                    loss = self.objective.losses(
                        self.decoder, dict(zip(names, part, strict=True))
                    ).sum()
                    # DDP averages gradients over processes; times the world size, the average of
                    # sums is the sum.
                    self.manual_backward(loss * (self.trainer.world_size / targets))
                    total += loss.detach()
        return self._summed(total) / targets

    def _update(self, optimizer: LightningOptimizer, batch: dict[str, Any]) -> None:
        """Let the optimiser and the averages follow the gradients, or give the step up."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # fp16 has one
        before = scaler.state_dict() if scaler is not None else {}
        try:
            optimizer.step()
        except NonFiniteError as error:
            self.incidents.give_up(
                self.step,
                str(error),
                self._facts(),
                self._rows(batch["input_ids"]),
                self._rows(batch["labels"]),
            )
            self.loss = self.grad_norm = torch.tensor(math.nan)
            if scaler is not None:
                scaler.update()  # it must not wait for the rest of a step that ends here
                # a resumed run does not compute this step, and its scale must be the same
                scaler.load_state_dict(before)
        else:
            if scaler is not None and scaler.get_scale() < before["scale"]:
                now = f"scale now {scaler.get_scale():g}"
                self.incidents.note(
                    self.step,
                    "overflow",
                    f"fp16 gradients overflowed, so the scaler skipped the update; {now}",
                )
            elif self.average is not None:
                self.average.update(self.decoder)
            if spike := self.spikes.take(self.loss.item()):
                self.incidents.note(self.step, "spike", spike)
        optimizer.zero_grad()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Refuse an update that would destroy the weights, and clip the others. Gradients are
        complete and unscaled here.

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite. With fp16 an infinite
                gradient is to be expected: the scaler skips the step and lowers its scale, so only
                the loss counts.
        """
        parameters = [
            parameter for parameter in self.decoder.parameters() if parameter.grad is not None
        ]
        norm = nn.utils.get_total_norm(
            [parameter.grad for parameter in parameters if parameter.grad is not None]
        )
        self.grad_norm = fsdp.whole(norm)
        decisive = self.loss if self.precision == "fp16" else self.loss + self.grad_norm
        if not torch.isfinite(decisive):
            raise NonFiniteError(
                f"loss {self.loss.item():.4g}, gradient norm {self.grad_norm.item():.4g}, learning"
                f" rate {self.used_learning_rate:.3g}: not finite"
            )
        if self.config.optimizer.grad_clip:
            nn.utils.clip_grads_with_norm_(
                parameters, self.config.optimizer.grad_clip, self.grad_norm
            )

    def _facts(self) -> dict[str, Any]:
        """What there is to say about a step that went wrong."""
        norms = {
            name: fsdp.whole(weight.grad.norm()).item()
            for name, weight in self.decoder.named_parameters()
            if weight.grad is not None
        }
        loss, total = self.loss.item(), self.grad_norm.item()
        return {
            "step": self.step + 1,
            "loss": loss,
            "learning_rate": self.used_learning_rate,
            "grad_norm": total,
            "grad_norms": norms,
        }

    def _rows(self, tensor: Tensor) -> list[list[int]]:
        """The rows of (A, B, T) of all processes, in the order of the plan."""
        everywhere: Tensor = self.all_gather(tensor)  # (processes, A, B, T), or as it was
        rows: list[list[int]] = (
            (everywhere.transpose(0, 1) if self.trainer.world_size > 1 else everywhere)
            .flatten(0, -2)
            .tolist()
        )
        return rows

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The decoder as it should be judged: with the averaged weights where the run keeps them."""
        with (
            self.average.swapped_in(self.decoder)
            if self.average is not None
            else contextlib.nullcontext()
        ):
            yield self.decoder

    def write_shards(self, path: Path) -> Begun | None:
        """Each process's part of the checkpoint `path`; None where the first process writes all of
        it. Raises CheckpointError on all.
        """
        return (
            begin_shards(path, self.decoder, self.optimizers(use_pl_optimizer=False), self.average)
            if self.sharded
            else None
        )

    def writers(self) -> dict[str, Callable[[Path], None]]:
        """The files of a checkpoint that are the first process's to write: name -> function that
        writes it.
        """
        state = {"step": self.step, "recent_losses": list(self.spikes.recent)}
        if scaler := self.trainer.precision_plugin.state_dict():
            state["scaler"] = scaler
        return tensor_writers(
            self.decoder, self.optimizers(use_pl_optimizer=False), self.average, state
        )

    def _summed(self, value: Tensor) -> Tensor:
        """Added up over processes."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(value)
        return value

    def _no_sync_unless(self, last: bool) -> contextlib.AbstractContextManager[object]:
        """Processes exchange gradients in the backward pass of the last micro-batch only."""
        if self.sharded:
            fsdp.exchange_gradients(self.decoder, last)
        wrapped = self.trainer.strategy.model
        return (
            wrapped.no_sync()
            if isinstance(wrapped, DistributedDataParallel) and not last
            else contextlib.nullcontext()
        )
