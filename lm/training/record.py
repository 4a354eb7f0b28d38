"""The files of a run, as its first process writes them: opened when nothing stands against the run
any more, and completed at its end.
"""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lm.checkpoints.folder import Checkpoint, step_name
from lm.checkpoints.lineage import lasting_meta
from lm.checkpoints.train_state import tensor_writers
from lm.checkpoints.write import Begun, point, retain, write_checkpoint, write_json
from lm.config.describe import to_yaml
from lm.config.schema.config import Config
from lm.display.curves import draw, summary
from lm.evaluation.validation import Evaluation
from lm.runs.changes import machine_changes
from lm.runs.folder import PARENT, RunFolder
from lm.runs.origin import Origin, make_room
from lm.runs.results import RecordedValidation
from lm.surgery.compilation import is_compiled
from lm.system.device import matmul_peak
from lm.system.disk import replace
from lm.system.errors import CheckpointError
from lm.system.progress import Progress
from lm.system.units import in_bytes
from lm.training.forecast import Forecast
from lm.training.logger import RunLogger, StepWork
from lm.training.module import LanguageModel
from lm.training.parts import Parts
from model import Decoder


@dataclass(frozen=True)
class Record:
    """The files of a run in one session.

    Attributes:
        config: the run's configuration.
        folder: the run's folder.
        logger: metrics.csv and TensorBoard.
        meta: the part of meta.json that no step changes.
        tokenizer_definition: the content of tokenizer.json.
        checkpoint_bytes: the size of one checkpoint on the disk.
    """

    config: Config
    folder: RunFolder
    logger: RunLogger
    meta: dict[str, Any]
    tokenizer_definition: str
    checkpoint_bytes: int

    def save(self, module: LanguageModel, begun: Begun | None) -> None:
        """Write the checkpoint of `module`'s step, and let last.ckpt mean it.

        Args:
            module: the model, its optimiser and its state.
            begun: the parts that each process has written, where the decoder is sharded.

        Raises:
            CheckpointError: the disk refuses, or has no room for the next one.
        """
        step, loss, folder = module.step, module.loss.item(), self.folder.path
        meta = self.meta | {
            "step": step,
            "epoch": step * self.meta["epochs_per_step"],
            "tokens": step * self.config.tokens_per_step,
            "seconds": self.logger.stopwatch.seconds,
            "rows_at_once": module.rows_at_once,
            "compiled": is_compiled(module.decoder),
            "train_loss": loss if math.isfinite(loss) else None,  # None: the update was skipped
            "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        files = writers(module) | {
            "tokenizer.json": lambda path: path.write_text(
                self.tokenizer_definition, encoding="utf-8"
            ),
            "meta.json": lambda path: write_json(path, meta),
        }
        if module.deadline is not None:
            meta |= module.deadline.state
        self.logger.sync()  # a run that goes on from here does not write these rows again
        write_checkpoint(folder / step_name(step), files, self.checkpoint_bytes, begun)
        point(folder, "last.ckpt", folder / step_name(step))
        self.retain()
        if step < self.config.max_steps and not (module.deadline and module.deadline.over):
            problem = f"saved at step {step:,}, and stopped before the disk is full"
            require_room(folder, self.checkpoint_bytes, problem)

    def retain(self) -> None:
        """Delete checkpoints beyond `checkpoint.keep`."""
        retain(self.folder.path, self.config.checkpoint.keep)

    def validation(self, step: int, result: Evaluation, sample: str | None, seconds: float) -> None:
        """Log and record the validation of `step`, which took `seconds`. Raises CheckpointError."""
        checkpoint = self.folder.path / step_name(step)
        self.logger.log_validation(step, result, sample)
        self.folder.record(
            RecordedValidation(
                step=step,
                manifest_sha256=Checkpoint(checkpoint).sha256 if checkpoint.exists() else None,
                loss=result.loss,
                perplexity=result.perplexity,
                bits_per_byte=result.bits_per_byte,
                tokens=result.tokens,
                seconds=seconds,
                sample=sample,
                sources=result.figures_by_source,
                text_bytes=result.text_bytes,
            )
        )  # last: without this line it is no validation, and a resumed run validates again

    def complete(self, step: int, progress: Progress) -> None:
        """Draw the curves of the complete run, and set final.ckpt.

        A picture that cannot be drawn is no reason to fail. final.ckpt comes last: while it is
        missing, a resumed run has something left to do.
        """
        folder = self.folder.path
        try:
            progress.say(summary(folder))
            draw([folder], folder / "curves.png")
        except Exception as error:
            progress.say(f"curves.png could not be drawn: {error}")
        point(folder, "final.ckpt", folder / step_name(step))
        files = ("final.ckpt", "best.ckpt", "metrics.csv", "curves.png")
        *others, last = names = [name for name in files if (folder / name).exists()]
        progress.say(f"done: {folder}/ holds {', '.join(others)} and {last}")
        if self.config.finetune is None:  # finetune.py has a report to write yet
            best = next(folder / name for name in ("best.ckpt", "final.ckpt") if name in names)
            command = ["eval_val.py", "--ckpt", str(best), "--config", f"{folder}/config.yaml"]
            progress.say(f"next: python {shlex.join(command)}")


def require_room(folder: Path, size: int, situation: str) -> None:
    """Raise CheckpointError if a folder's disk has no room for `size` more bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise CheckpointError(
            f"{folder}: {situation}: the next checkpoint takes {in_bytes(size)}, and"
            f" {in_bytes(free)} are free; make room"
        )


def writers(module: LanguageModel) -> dict[str, Callable[[Path], None]]:
    """Return the files of a checkpoint that hold tensors and state: name -> its writer."""
    state: dict[str, Any] = {"step": module.step, "recent_losses": list(module.spikes.recent)}
    if scaler := module.trainer.precision_plugin.state_dict():  # in fp16
        state["scaler"] = scaler
    optimizer = module.optimizers(use_pl_optimizer=False)
    return tensor_writers(module.decoder, optimizer, module.average, state)


def open_record(
    folder: RunFolder, parts: Parts, start: Origin, decoder: Decoder, progress: Progress
) -> Record:
    """Check that the run can end well, make room in its folder, and open its files.

    Raises:
        UserError: the run could not end well; nothing has been moved or written.
    """
    config, device, precision = parts.config, parts.device, parts.precision
    meta = lasting_meta(
        config, decoder, parts.tokenizer, parts.data, start.parent, device, precision
    )
    forecast = Forecast(config, decoder, device, precision, parts.data.epochs_per_step, start.step)
    forecast.check(folder.path)
    if start.resume is not None and start.meta is not None:
        for line in machine_changes(start.meta, meta):
            progress.say(line)
    if moved := make_room(folder, start, config):
        progress.say(moved)
    replace(folder.path / "config.yaml", to_yaml(config))
    if start.init_from is not None:
        replace(folder.path / PARENT, f"{start.init_from}\n")
    progress.say("\n".join(forecast.lines(folder.path)))
    peak = matmul_peak(device, precision)
    if device == "cuda":
        peak *= config.trainer.processes  # processes on CPUs share them
    logger = RunLogger(
        folder.path,
        step=start.step,
        seconds=start.seconds,
        work=_work(parts, decoder, meta),
        peak_flops=peak,
        device=device,
        progress=progress,
        tensorboard=config.logging.tensorboard,
        validated=folder.is_validated(start.step),
    )
    return Record(
        config=config,
        folder=folder,
        logger=logger,
        meta=meta,
        tokenizer_definition=parts.tokenizer.definition,
        checkpoint_bytes=forecast.footprint.checkpoint,
    )


def _work(parts: Parts, decoder: Decoder, meta: dict[str, Any]) -> StepWork:
    config, shape = parts.config, decoder.config
    matrices = decoder.n_matmul_parameters
    adapters = meta["adapters"]["n_parameters"] if "adapters" in meta else 0
    flops = flops_per_token(
        matrices + adapters,
        shape.n_layers,
        config.row_length,
        shape.d_model,
        n_frozen=matrices if adapters else 0,
    )
    tokens = config.tokens_per_step
    return StepWork(tokens, epochs=parts.data.epochs_per_step, flops=tokens * flops)


def flops_per_token(
    n_matmul_parameters: int, n_layers: int, context: int, d_model: int, n_frozen: int = 0
) -> int:
    """Return the FLOP of one token's forward and backward pass: 6 N + 12 L T d (PaLM, appendix B;
    Chowdhery et al. 2022, arXiv:2204.02311).

    A weight costs 2 FLOP in the forward pass, 2 for the gradient of its input, and 2 for its own
    gradient. A frozen weight has no gradient of its own.

    Attention counts in full although half of it is masked. PaLM and nanoGPT count so too, and their
    utilisations are therefore comparable.

    Args:
        n_matmul_parameters: N, the weights of all matrix products. The output head counts, tied or
            not; lookup tables do not.
        n_layers: L.
        context: T, the tokens in a row.
        d_model: d, the number of heads times their width.
        n_frozen: how many of N are not trained.
    """
    return 6 * n_matmul_parameters - 2 * n_frozen + 12 * n_layers * context * d_model
