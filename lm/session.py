"""A training session, from a configuration to a run that is finished or safely stopped.

Pretraining and fine-tuning differ in what they hand in: data, a function that builds the decoder, and where the weights come from.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import signal
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from torch import nn

from lm.continuation import write
from lm.curves import draw
from lm.device import choose_device, choose_precision, flops_per_token, matmul_peak
from lm.errors import Stopped, UserError
from lm.evaluation import Evaluation, evaluate
from lm.logbook import Logbook, StepWork
from lm.milestones import Milestones, Record
from lm.origin import Origin
from lm.progress import Progress
from lm.prompt import open_prompt
from lm.run import RunFolder
from lm.sampling import Sampling
from lm.schema import Config
from lm.tokenizer import Tokenizer
from lm.training import LanguageModel

LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Data(Protocol):
    """What a session asks of a LightningDataModule beyond its training loader."""

    start_step: int
    epochs_per_step: float
    sha256: str
    text_bytes_per_token: float

    def val_dataloader(self) -> Iterable[dict[str, Any]]:
        """Batches of the validation split, the same every time."""


@dataclass(frozen=True)
class Machine:
    """What this session computes on."""

    device: str
    precision: str

    @staticmethod
    def chosen(config: Config) -> Machine:
        """The configured device and precision, or the best there is."""
        device = choose_device(config.trainer.device)
        return Machine(device, choose_precision(config.trainer.precision, device))


def run_session(
    config: Config, tokenizer: Tokenizer, data: Any, make_decoder: Callable[[], nn.Module], origin: Origin, run: RunFolder | None
) -> None:
    """Train until the budget, early stopping, the time limit or a signal ends it.

    Args:
        config: the configuration, as it was given.
        tokenizer: travels in every checkpoint.
        data: a LightningDataModule that fulfils `Data`.
        make_decoder: builds the decoder on the CPU from torch's global random state.
        origin: where the weights come from.
        run: the locked folder; None on all processes but the first.

    Raises:
        Stopped: a signal ended it; everything is saved.
    """
    _quieten_lightning()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    machine = Machine.chosen(config)
    progress = Progress(config.max_steps, origin.step, enabled=run is not None)
    data.start_step = origin.step
    module = LanguageModel(config, make_decoder, machine.precision, progress.say, resume=origin.resume, init_from=origin.init_from)
    module.configure_model()
    record = None
    if run is not None:
        progress.say(_headline(config, module.decoder, machine, config.max_steps * data.epochs_per_step))
        record = _record(config, tokenizer, data, module.decoder, origin, run, machine, progress)

    def score(decoder: nn.Module) -> Evaluation:
        return evaluate(decoder, data.val_dataloader(), tokenizer.eos_id, data.text_bytes_per_token)

    milestones = Milestones(config, score, _writer(config, tokenizer), progress, record)
    _trainer(config, machine, milestones).fit(module, datamodule=data)
    if run is not None:
        _farewell(config, run.path, module.step, milestones, progress)
    if milestones.signal:
        name = signal.Signals(milestones.signal).name
        raise Stopped(f"stopped by {name} after step {module.step:,}, saved; continue with --resume auto", milestones.signal)


def _trainer(config: Config, machine: Machine, milestones: Milestones) -> lightning.Trainer:
    """Lightning's part: devices, processes, precision and the loop over batches. Logging, saving and validating are ours (Milestones)."""
    return lightning.Trainer(
        accelerator={"cuda": "gpu"}.get(machine.device, machine.device),
        devices=config.trainer.devices,
        strategy="ddp" if config.trainer.devices > 1 else "auto",
        precision=LIGHTNING_PRECISION[machine.precision],
        max_epochs=1,  # the loader's one epoch is the run: it ends at the last step
        deterministic=config.trainer.deterministic,
        benchmark=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[milestones],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _record(
    config: Config,
    tokenizer: Tokenizer,
    data: Any,
    decoder: nn.Module,
    origin: Origin,
    run: RunFolder,
    machine: Machine,
    progress: Progress,
) -> Record:
    shape = decoder.config
    flops = config.tokens_per_step * flops_per_token(decoder.n_matmul_parameters(), shape.n_layers, config.row_length, shape.d_model)
    work = StepWork(tokens=config.tokens_per_step, epochs=data.epochs_per_step, flops=flops)
    peak = matmul_peak(machine.device, machine.precision) * config.trainer.devices
    seconds = origin.meta["seconds"] if origin.resume is not None and origin.meta is not None else 0.0
    logbook = Logbook(run.path, origin.step, seconds, work, peak, machine.device, progress, config.logging.tensorboard)
    names = ("torch", "lightning", "transformers", "tokenizers", "safetensors", "numpy")
    meta = {
        "format": 1,
        "n_parameters": decoder.n_parameters(),
        "model": shape.model_dump(mode="json"),
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
        },
        "config": config.model_dump(mode="json"),
        "data_sha256": data.sha256,
        "parent": origin.parent,
        "epochs_per_step": data.epochs_per_step,
        "precision": machine.precision,
        "device": machine.device,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names},
    }
    return Record(run, logbook, meta, tokenizer.definition)


def _writer(config: Config, tokenizer: Tokenizer) -> Callable[[nn.Module], str] | None:
    """What writes a sample at each validation: always from the same random numbers, so that samples show the weights' progress."""
    logging_config = config.logging
    if logging_config.sample_tokens == 0:
        return None

    def write_sample(decoder: nn.Module) -> str:
        generator = torch.Generator(next(decoder.parameters()).device).manual_seed(config.trainer.seed)
        prompt_ids = open_prompt(tokenizer, logging_config.sample_prompt)
        options = Sampling(temperature=logging_config.sample_temperature)
        *_, [sample] = write(decoder, tokenizer, prompt_ids, options, logging_config.sample_tokens, generator)
        return logging_config.sample_prompt + sample.text

    return write_sample


def _headline(config: Config, decoder: nn.Module, machine: Machine, passes: float) -> str:
    trainer, tokens = config.trainer, config.max_steps * config.tokens_per_step
    split = f" = {trainer.accumulation} x {trainer.micro_batch}" if trainer.accumulation > 1 else ""
    split += f" on {trainer.devices} devices" if trainer.devices > 1 else ""
    return (
        f"model: {decoder.n_parameters():,} parameters, {machine.precision} on {machine.device}\n"
        f"run: {config.max_steps:,} steps of {trainer.batch_size}{split} rows x {config.row_length} tokens = {tokens:,} tokens, "
        f"{tokens / decoder.n_parameters():.1f} for each parameter, {passes:.2f} passes over the data"
    )


def _farewell(config: Config, folder: Path, step: int, milestones: Milestones, progress: Progress) -> None:
    if not milestones.finished:
        if not milestones.signal:
            progress.say(f"the time limit of {config.trainer.max_minutes:g} minutes is reached: stopped after step {step:,}, saved")
        return
    try:
        draw([folder], folder / "curves.png")
    except (UserError, OSError, ValueError) as error:  # the run is complete and saved; a picture is not worth a failure
        progress.say(f"curves.png could not be drawn: {error}")
    progress.say(f"done: {folder / 'final.ckpt'}, {folder / 'best.ckpt'}, {folder / 'metrics.csv'}, {folder / 'curves.png'}")


def _quieten_lightning() -> None:
    """What Lightning notes about devices, loaders and a missing validation_step is answered here; the rest concerns its insides."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
