"""The LightningModule: what one optimiser step is.

One Lightning batch is one optimiser step. The loader hands over all micro-batches of the step that this process has to do, so the number
of supervised tokens is known before the first backward pass and every token weighs the same, however the step is cut into micro-batches
and processes. Lightning's own accumulation averages the means of micro-batches, which is another number as soon as the masks differ.

The module is handed a function that builds the decoder, and does not know what is in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lm import sharding
from lm.checkpoint_files import Begun
from lm.ema import WeightAverage
from lm.errors import CheckpointError, NonFiniteError
from lm.loss import count_targets
from lm.optim import make_optimizer
from lm.randomness import fold, seed_all
from lm.schedule import learning_rate
from lm.schema import Config
from lm.weights import write_weights


class LanguageModel(lightning.LightningModule):
    """A decoder in training.

    Attributes:
        step: updates done so far. It is the run's only clock: data, learning rate and randomness follow from it.
        loss: the last step's loss in nats per token, on the device.
        grad_norm: the last step's global gradient norm before clipping, on the device.
        used_learning_rate: the last step's learning rate.
        skipped_steps: updates that the fp16 scaler skipped in this session.
        average: the averaged weights, or None where `optimizer.ema_decay` is 0.
    """

    def __init__(
        self,
        config: Config,
        make_decoder: Callable[[], nn.Module],
        precision: str,
        say: Callable[[str], None],
        resume: Path | None = None,
        init_from: Path | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.precision = precision
        self.step = 0
        self.average: WeightAverage | None = None
        self.loss = self.grad_norm = torch.tensor(float("nan"))
        self.used_learning_rate = 0.0
        self.skipped_steps = 0
        self._make_decoder = make_decoder
        self._say = say
        self._resume = resume
        self._init_from = init_from

    def configure_model(self) -> None:
        """Build the decoder, the same on every process of any number: on the CPU, from the seed alone. Share it out with fsdp."""
        if not hasattr(self, "decoder"):
            seed_all(fold(self.config.trainer.seed))
            self.decoder = self._make_decoder()
            if self._init_from is not None:
                self._load(self._init_from, averaged=True)
            if self._resume is not None:
                self._load(self._resume, averaged=False)
        if self.device_mesh is not None and not self.sharded:
            sharding.shard(self.decoder, self.decoder.get_submodule("layers").children(), self.device_mesh["data_parallel"])

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of the decoder only."""
        return sharding.is_sharded(self.decoder)

    def configure_optimizers(self) -> Optimizer:
        """The configured optimiser, in the state in which the run left it. The decoder is on its device by now."""
        optimizer = make_optimizer(self.decoder, self.config.optimizer, self.precision)
        if self.config.optimizer.ema_decay:
            self.average = WeightAverage(self.decoder, self.config.optimizer.ema_decay)
        if self._resume is not None:
            self._restore(optimizer, self._resume)
        return optimizer

    def compile_decoder(self) -> None:
        """Compile the decoder if that is wanted, and try it out at once: where it cannot be compiled the run goes on without."""
        wanted = self.config.trainer.compile
        if wanted == "off" or (wanted == "auto" and self.device.type != "cuda"):
            return
        self.decoder.compile()  # in place; torch.compile(module) would prefix every weight's name with _orig_mod.
        ids = torch.zeros(self.config.trainer.micro_batch, self.config.row_length, dtype=torch.int64, device=self.device)
        documents = ids if self.config.data.document_mask else None
        try:
            with self.trainer.precision_plugin.forward_context():
                self.decoder.train()(ids, ids, documents).sum().backward()
                with torch.no_grad():
                    self.decoder.eval()(ids, ids, documents)
        except Exception as error:  # whatever the compiler, its back end or a missing C compiler come up with
            self.decoder._compiled_call_impl = None
            self._say(f"torch.compile failed, so the model runs uncompiled: {type(error).__name__}: {str(error).splitlines()[0]}")
        self.decoder.train().zero_grad()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One optimiser step.

        `batch` holds `step` and the tensors `input_ids`, `labels` and perhaps `document_ids`, each (micro-batches, B, T).
        """
        assert batch["step"] == self.step, f"the loader is at step {batch['step']}, the model at {self.step}"
        optimizer = self.optimizers()
        self.used_learning_rate = learning_rate(self.step, self.config.max_steps, self.config.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.used_learning_rate
        # Summed over processes before the first backward pass. max(1): a step without a target has loss 0 and zero gradients, never NaN.
        targets = self._summed(count_targets(batch["labels"])).clamp(min=1)
        micro_batches, total = len(batch["labels"]), torch.zeros((), device=self.device)
        for micro in range(micro_batches):
            seed_all(fold(self.config.trainer.seed, self.step, micro * self.trainer.world_size + self.global_rank))
            documents = batch["document_ids"][micro] if "document_ids" in batch else None
            with self._no_sync_unless(micro == micro_batches - 1):
                loss = self.decoder(batch["input_ids"][micro], batch["labels"][micro], documents).sum()
                # DDP averages gradients over processes; times the world size, the average of sums is the sum.
                self.manual_backward(loss * (self.trainer.world_size / targets))
            total += loss.detach()
        self.loss = self._summed(total) / targets
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # fp16 has one
        scale = scaler.get_scale() if scaler is not None else 0.0
        optimizer.step()
        skipped = scaler is not None and self._watch_scale(scale, scaler.get_scale())
        optimizer.zero_grad()
        if self.average is not None and not skipped:
            self.average.update(self.decoder)
        self.step += 1

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Refuse an update that would destroy the weights, and clip the others. Gradients are complete and unscaled here.

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite. With fp16 an infinite gradient is to be expected: the scaler skips
                the step and lowers its scale, so only the loss counts.
        """
        parameters = [parameter for parameter in self.decoder.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        self.grad_norm = sharding.whole(norm)
        decisive = self.loss if self.precision == "fp16" else self.loss + self.grad_norm
        if not torch.isfinite(decisive):
            raise NonFiniteError(
                f"step {self.step + 1}: loss {self.loss.item():.4g}, gradient norm {self.grad_norm.item():.4g}, learning rate "
                f"{self.used_learning_rate:.3g}: not finite, so the update was not made; the weights of step {self.step} are intact. "
                "Most often optimizer.lr is too high or optimizer.warmup_steps too few; checkpoints so far are kept"
            )
        if self.config.optimizer.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, self.config.optimizer.grad_clip, self.grad_norm)

    def _watch_scale(self, before: float, after: float) -> bool:
        """Whether the fp16 scaler skipped the update, which it does and halves its scale where gradients overflowed. Says so.

        Raises:
            NonFiniteError: it has halved it so often that no scale will help.
        """
        if after < before:
            self.skipped_steps += 1
            self._say(f"step {self.step + 1}: fp16 gradients overflowed, update skipped ({self.skipped_steps} so far), scale now {after:g}")
        if after < 1:
            raise NonFiniteError(
                f"step {self.step + 1}: fp16 gradients overflow at every scale; lower optimizer.lr, or write --trainer.precision fp32"
            )
        return after < before

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The decoder as it should be judged: with the averaged weights where the run keeps them."""
        with self.average.swapped_in(self.decoder) if self.average is not None else contextlib.nullcontext():
            yield self.decoder

    def write_shards(self, path: Path) -> Begun | None:
        """Each process's part of the checkpoint `path`; None where the first process writes all of it. Raises CheckpointError on all."""
        if not self.sharded:
            return None
        optimizer = self.optimizers(use_pl_optimizer=False)
        kinds: dict[str, dict[str, Tensor]] = {"model": dict(self.decoder.named_parameters())}
        kinds["optimizer"] = sharding.optimizer_tensors(optimizer)
        return sharding.write_shards(path, kinds | ({"ema": self.average.weights} if self.average is not None else {}))

    def writers(self) -> dict[str, Callable[[Path], None]]:
        """The files of a checkpoint that are the first process's to write: name -> function that writes it."""
        if self.sharded:
            optimizer = self.optimizers(use_pl_optimizer=False)
            return {"train_state.json": lambda path: sharding.write_train_state(path, self.step, optimizer)}
        files: dict[str, Callable[[Path], None]] = {
            "model.safetensors": lambda path: write_weights(path, dict(self.decoder.named_parameters())),
            "train_state.pt": lambda path: torch.save(self._train_state(), path),
        }
        if self.average is not None:
            weights = self.average.weights
            files["ema.safetensors"] = lambda path: write_weights(path, weights)
        return files

    def _train_state(self) -> dict[str, Any]:
        state = {"step": self.step, "optimizer": self.optimizers(use_pl_optimizer=False).state_dict()}
        if scaler := self.trainer.precision_plugin.state_dict():
            state["scaler"] = scaler
        return state

    def _load(self, folder: Path, averaged: bool) -> None:
        weights = sharding.read_any_weights(folder, dict(self.decoder.named_parameters()), averaged)
        with torch.no_grad():
            for name, parameter in self.decoder.named_parameters():
                parameter.copy_(weights[name])

    def _restore(self, optimizer: Optimizer, folder: Path) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        try:
            state = sharding.read_train_state(folder, parameters)
            for saved, group in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=True):
                # The configuration decides, not what it said when the run was saved.
                saved.update({key: value for key, value in group.items() if key != "params"})
            optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            if "scaler" in state:
                self.trainer.precision_plugin.load_state_dict(state["scaler"])
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, AttributeError) as error:
            raise CheckpointError(f"{folder / 'train_state.pt'} cannot be read: {str(error).splitlines()[0]}") from error
        if self.average is not None and ((folder / "ema.safetensors").exists() or sharding.has_shards(folder, "ema")):
            weights = sharding.read_any_weights(folder, dict(self.decoder.named_parameters()), averaged=True)
            self.average.load({name: sharding.like(weights[name], average) for name, average in self.average.weights.items()})

    def _summed(self, value: Tensor) -> Tensor:
        """Added up over processes."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(value)
        return value

    def _no_sync_unless(self, last: bool) -> contextlib.AbstractContextManager[object]:
        """Processes exchange gradients in the backward pass of the last micro-batch only."""
        if self.sharded:
            sharding.exchange_gradients(self.decoder, last)
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else contextlib.nullcontext()
