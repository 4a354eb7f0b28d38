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

from lm.checkpoint import read_meta
from lm.ema import WeightAverage
from lm.errors import NonFiniteError
from lm.loss import count_targets
from lm.optim import make_optimizer
from lm.randomness import fold, seed_all
from lm.schedule import learning_rate
from lm.schema import Config
from lm.train_state import read_train_state
from lm.weights import read_weights, write_weights


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
        self._saved: tuple[dict[str, Any], dict[str, Tensor] | None] | None = None  # between reading and restoring

    def configure_model(self) -> None:
        """Build the decoder, the same on every process and in every world size: on the CPU, from the seed alone."""
        if hasattr(self, "decoder"):
            return
        seed_all(fold(self.config.trainer.seed))
        self.decoder = self._make_decoder()
        if self._init_from is not None:
            self._load(self._init_from, averaged=True)
        if self._resume is not None:
            self._load(self._resume, averaged=False)
            self._saved = self._read_saved(self._resume)

    def configure_optimizers(self) -> Optimizer:
        """The configured optimiser, in the state in which the run left it. The decoder is on its device by now."""
        optimizer = make_optimizer(self.decoder, self.config.optimizer, self.precision)
        if self.config.optimizer.ema_decay:
            self.average = WeightAverage(self.decoder, self.config.optimizer.ema_decay)
        if self._saved is not None:
            state, average = self._saved
            optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            if "scaler" in state:
                self.trainer.precision_plugin.load_state_dict(state["scaler"])
            if self.average is not None and average is not None:
                self.average.load(average)
            self._saved = None
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
        self.grad_norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
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

    def writers(self) -> dict[str, Callable[[Path], None]]:
        """The checkpoint's tensor files: name -> function that writes it."""
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
        weights = read_weights(folder, dict(self.decoder.named_parameters()), averaged)
        with torch.no_grad():
            for name, parameter in self.decoder.named_parameters():
                parameter.copy_(weights[name])

    def _read_saved(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """The checkpoint's training state and averaged weights, before anything of the run is touched: what is refused changes nothing."""
        state = read_train_state(folder, read_meta(folder)["step"], make_optimizer(self.decoder, self.config.optimizer, self.precision))
        wanted = self.config.optimizer.ema_decay and (folder / "ema.safetensors").exists()
        return state, read_weights(folder, dict(self.decoder.named_parameters()), averaged=True) if wanted else None

    def _summed(self, value: Tensor) -> Tensor:
        """Added up over processes."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(value)
        return value

    def _no_sync_unless(self, last: bool) -> contextlib.AbstractContextManager[object]:
        """DDP exchanges gradients in the backward pass of the last micro-batch only."""
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else contextlib.nullcontext()
