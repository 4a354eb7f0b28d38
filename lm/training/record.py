"""A training session, from a configuration to a run that is finished or safely stopped.

Pretraining and fine-tuning differ in what they hand in: data, a function that builds the decoder,
and where the weights come from.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from lm.checkpoints.folder import point, step_name
from lm.checkpoints.lineage import lasting_meta
from lm.config.describe import to_yaml
from lm.config.schema.config import Config
from lm.display.curves import draw, summary
from lm.evaluation.validation import Evaluation, evaluate
from lm.generation.continuation import write
from lm.generation.prompt import open_prompt
from lm.generation.sampling import Sampling
from lm.optim.objectives import NEXT_TOKEN, Objective
from lm.optim.optimizers import make_optimizer
from lm.runs.changes import machine_changes
from lm.runs.folder import PARENT, RunFolder
from lm.runs.incidents import Incidents
from lm.runs.origin import Origin, make_room
from lm.surgery.fsdp import ForSampling, is_sharded
from lm.system.device import (
    Device,
    Precision,
    autocast,
    check_devices,
    choose_device,
    choose_precision,
    flops_per_token,
    matmul_peak,
)
from lm.system.disk import replace
from lm.system.errors import ConfigError
from lm.system.progress import Progress
from lm.system.signals import StopSignals, stopped
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.callbacks import Milestones, Record
from lm.training.forecast import Forecast, try_out
from lm.training.logger import Logbook, StepWork
from lm.training.module import LanguageModel
from lm.training.processes import first_does
from lm.training.trainer import make_trainer


class Data(Protocol):
    """What a session asks of a LightningDataModule."""

    start_step: int
    epochs_per_step: float
    sha256: str
    revisions: dict[str, str]
    text_bytes_per_token: float
    validation_sources: dict[str, float]

    def train_dataloader(self) -> Iterable[dict[str, Any]]:
        """An item for each step from `start_step` on."""

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of the validation split, the same every time."""

    def teardown(self, stage: str) -> None:
        """End what reads the data."""


@dataclass(frozen=True)
class Session:
    """One session of a run.

    Args:
        config: the configuration, as it was given.
        tokenizer: travels in every checkpoint.
        data: a LightningDataModule that fulfils `Data`.
        make_decoder: builds the decoder on the CPU, with the weights that it starts from; what is
            random comes from torch's global state.
        origin: where the weights come from.
        run: the locked folder; None on all processes but the first.
        signals: what asks this process to stop.
        objective: what the rows are learnt for.
    """

    config: Config
    tokenizer: Tokenizer
    data: Data
    make_decoder: Callable[[], nn.Module]
    origin: Origin
    run: RunFolder | None
    signals: StopSignals
    objective: Objective = NEXT_TOKEN

    def train(self) -> None:
        """Go on until the budget, early stopping, the time limit or a signal ends it.

        Raises:
            Stopped: a signal ended it; everything is saved.
            GoBack: the run is to go on from its newest checkpoint, in another session.
        """
        self._prepare_torch()
        self.data.start_step = self.origin.step
        module = self._language_model()
        module.configure_model()
        record = first_does(lambda: self._open_record(module.decoder))
        milestones = Milestones(
            self.config, self._score, self._write_sample, self.signals, self.progress, record
        )
        try:
            make_trainer(self.config.trainer, self.device, self.precision, milestones).fit(
                module, datamodule=self.data
            )
        finally:
            self.data.teardown("fit")  # Lightning calls it only where all went well
        if milestones.finished:
            self._farewell(module.step)
        elif milestones.signal:
            raise stopped(milestones.signal, f" after step {module.step:,}, saved")
        else:
            minutes = self.config.trainer.max_minutes
            self.progress.say(
                f"the time limit of {minutes:g} minutes is reached: saved at step {module.step:,};"
                " go on with --resume auto"
            )

    def plan(self, say: Callable[[str], None]) -> None:
        """Say what `train` would take, after one micro-batch on the device; nothing is written but
        the token cache.

        Raises:
            UserError: it could not end well.
        """
        self._prepare_torch()
        decoder = self.make_decoder().to(self.device)
        folder = Path(self.config.checkpoint.directory).absolute()
        folder = next(place for place in (folder, *folder.parents) if place.exists())
        forecast = self._forecast(decoder)
        say("\n".join(forecast.lines(folder)))
        forecast.check(folder)
        batch = next(iter(self.data.train_dataloader()))
        rows = {
            name: value[0].to(self.device)
            for name, value in batch.items()
            if isinstance(value, torch.Tensor)
        }
        optimizer = make_optimizer(decoder, self.config.optimizer, self.precision)
        context = functools.partial(autocast, self.device, self.precision)
        trial = try_out(
            decoder, optimizer, lambda: self.objective.losses(decoder, rows).mean(), context
        )
        validation_tokens = (
            len(self.data.val_dataloader())
            * self.config.trainer.micro_batch
            * self.config.row_length
        )
        say("\n".join(forecast.measured(trial, validation_tokens)))

    def _language_model(self) -> LanguageModel:
        folder, trainer, say = (
            self.run.path if self.run is not None else None,
            self.config.trainer,
            self.progress.say,
        )
        incidents = Incidents(
            folder, self.tokenizer.decode, trainer.on_nonfinite, trainer.nonfinite_limit, say
        )
        return LanguageModel(
            self.config,
            self.make_decoder,
            self.precision,
            incidents,
            self.objective,
            self.origin.resume,
        )

    def _prepare_torch(self) -> None:
        trainer = self.config.trainer
        check_devices(trainer.devices, self.device)
        if trainer.strategy == "fsdp" and self.precision == "fp16":
            raise ConfigError(
                "trainer.strategy: fsdp does not train in fp16; write --trainer.precision bf16 or"
                " fp32, or strategy ddp"
            )
        if trainer.threads:
            torch.set_num_threads(trainer.threads)
            # For the processes that Lightning starts, and so that it leaves ours alone.
            os.environ["OMP_NUM_THREADS"] = str(trainer.threads)
        if trainer.deterministic:
            # read once, at the first matrix product on CUDA
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    @functools.cached_property
    def device(self) -> Device:
        """The configured device, or the best there is."""
        return choose_device(self.config.trainer.device)

    @functools.cached_property
    def precision(self) -> Precision:
        """The configured precision, or the best for the device."""
        return choose_precision(self.config.trainer.precision, self.device)

    @functools.cached_property
    def progress(self) -> Progress:
        """The display; silent on all processes but the first."""
        return Progress(self.config.max_steps, self.origin.step, enabled=self.run is not None)

    def _open_record(self, decoder: Any) -> Record:
        """Make room in the run's folder, now that nothing stands against the run any more, and open
        its books.
        """
        assert self.run is not None
        run = self.run
        config, shape = self.config, decoder.config
        meta = lasting_meta(
            config,
            decoder,
            self.tokenizer,
            self.data,
            self.origin.parent,
            self.device,
            self.precision,
        )
        forecast = self._forecast(decoder)
        forecast.check(run.path)
        if self.origin.resume is not None and self.origin.meta is not None:
            for line in machine_changes(self.origin.meta, meta, self.origin.resume):
                self.progress.say(line)
        if moved := make_room(run, self.origin, config):
            self.progress.say(moved)
        replace(run.path / "config.yaml", to_yaml(config))
        if self.origin.init_from is not None:
            replace(run.path / PARENT, f"{self.origin.init_from}\n")
        self.progress.say("\n".join(forecast.lines(run.path)))
        matrices, adapters = (
            decoder.n_matmul_parameters(),
            (meta["adapters"]["n_parameters"] if "adapters" in meta else 0),
        )
        frozen = matrices if adapters else 0
        flops = config.tokens_per_step * flops_per_token(
            matrices + adapters, shape.n_layers, config.row_length, shape.d_model, frozen
        )
        work = StepWork(
            tokens=config.tokens_per_step, epochs=self.data.epochs_per_step, flops=flops
        )
        # CPUs are shared
        peak = matmul_peak(self.device, self.precision) * (
            config.trainer.processes if self.device == "cuda" else 1
        )
        origin, tensorboard = self.origin, config.logging.tensorboard
        validated = any(line.step == origin.step for line in run.evaluations())
        logbook = Logbook(
            run.path,
            origin.step,
            origin.seconds,
            work,
            peak,
            self.device,
            self.progress,
            tensorboard,
            validated,
        )
        return Record(run, logbook, meta, self.tokenizer.definition, forecast.footprint.checkpoint)

    def _forecast(self, decoder: Any) -> Forecast:
        return Forecast(
            self.config,
            decoder,
            self.device,
            self.precision,
            self.data.epochs_per_step,
            self.origin.step,
        )

    def _score(self, decoder: nn.Module, enough: Callable[[], bool]) -> Evaluation:
        batches = itertools.takewhile(lambda _: not enough(), self.data.val_dataloader())
        data, reserved = self.data, self.tokenizer.reserved_ids
        return evaluate(
            decoder,
            batches,
            reserved,
            data.text_bytes_per_token,
            self.objective,
            data.validation_sources,
        )

    def _write_sample(self, decoder: Any) -> str | None:
        """Always from the same random numbers, so that the samples of a run show the weights'
        progress and nothing else.
        """
        settings = self.config.logging
        if settings.sample_tokens == 0:
            return None
        generator = torch.Generator(next(decoder.parameters()).device).manual_seed(
            self.config.trainer.seed
        )
        prompt_ids = open_prompt(self.tokenizer, settings.sample_prompt)
        options = Sampling(temperature=settings.sample_temperature)
        decoder = ForSampling(decoder) if is_sharded(decoder) else decoder
        *_, [sample] = write(
            decoder, self.tokenizer, prompt_ids, options, settings.sample_tokens, generator
        )
        return settings.sample_prompt + sample.text

    def _farewell(self, step: int) -> None:
        """The run is complete and saved by now: a picture that cannot be drawn is said, and not
        worth a failed run.

        final.ckpt comes last: while it is missing, there is something left to do for a run that is
        resumed.
        """
        if self.run is None:
            return
        folder = Path(self.config.checkpoint.directory)
        try:
            self.progress.say(summary(folder))
            draw([folder], folder / "curves.png")
        except Exception as error:
            self.progress.say(f"curves.png could not be drawn: {error}")
        point(folder, "final.ckpt", folder / step_name(step))
        self.progress.say(
            f"done: {folder}/ holds final.ckpt, best.ckpt, metrics.csv and curves.png"
        )
