"""A run prints its needs before it starts, and is refused if they cannot be met: python -m pytest
tests/training/test_forecast.py.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lm.checkpoints.folder import Checkpoint
from lm.commands import answer_without_training, load_config, training_parser
from lm.config.schema.config import Config
from lm.config.schema.optimizer import OptimizerConfig
from lm.system.device import Device
from lm.system.errors import CheckpointError, ConfigError
from lm.system.units import in_bytes
from lm.training.forecast import Forecast, Trial, footprint, try_out
from model import Decoder
from tests.support.runs import config_file, train
from tests.training.test_train import ROOT
from train import assemble


def config(**trainer: Any) -> Config:
    optimizer = trainer.pop("optimizer", {})
    values = {"max_steps": 100, "batch_size": 8, "micro_batch_size": 2} | trainer
    return Config.model_validate(
        {
            "data": {"source": {"format": "txt", "files": "unused"}},
            "model": {
                "context_length": 16,
                "n_layers": 1,
                "d_model": 16,
                "n_heads": 2,
                "vocab_size": 50,
            },
            "optimizer": {"warmup_steps": 0} | optimizer,
            "trainer": values,
        }
    )


def forecast(
    epochs_per_step: float = 0.01, start: int = 0, device: Device = "cpu", **trainer: Any
) -> Forecast:
    settings = config(**trainer)
    return Forecast(settings, Decoder(settings.model), device, "fp32", epochs_per_step, start)


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_footprint_is_that_of_the_real_thing(tmp_path: Path, name: str) -> None:
    """The footprint equals the optimiser's own state, and the files of a checkpoint."""
    train(config_file(tmp_path), "--trainer.max_steps=3", f"--optimizer.name={name}")
    checkpoint = tmp_path / "run" / "final.ckpt"
    from lm import load

    decoder, _, meta = load(checkpoint)
    taken = footprint(decoder, OptimizerConfig(name=name, ema_decay=0.5))
    assert taken.weights == taken.gradients == taken.averages == 4 * meta["n_parameters"]
    optimizer = torch.load(checkpoint / "train_state.pt", weights_only=True)["optimizer"]["state"]
    moments = sum(
        tensor.nbytes for state in optimizer.values() for tensor in state.values() if tensor.dim()
    )
    assert taken.optimizer == moments
    files = sum(
        file["bytes"]
        for name, file in Checkpoint(checkpoint).files.items()
        if name != "tokenizer.json"
    )
    assert taken.checkpoint <= files <= 1.1 * taken.checkpoint
    assert taken.memory == 3 * taken.weights + moments
    assert moments == 2 * taken.weights if name == "adamw" else moments < 2 * taken.weights


def test_activations_are_what_the_backward_pass_keeps() -> None:
    """The figure for two layers agrees with one by hand: the input of each, and what ReLU keeps. A
    view counts once, a weight not at all.
    """
    model = nn.Sequential(
        nn.Linear(8, 32, bias=False),
        nn.ReLU(),
        nn.Unflatten(1, (2, 16)),
        nn.Flatten(),
        nn.Linear(32, 4, bias=False),
    )
    rows = torch.randn(10, 8)
    trial = try_out(
        model,
        torch.optim.AdamW(model.parameters()),
        lambda: model(rows).mean(),
        contextlib.nullcontext,
    )
    assert trial.activations == 4 * (10 * 8 + 10 * 32)
    assert trial.seconds > 0
    assert trial.update_seconds > 0


def test_what_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 2_500_000_000))
    model, run, disk = forecast(max_steps=1000).lines(tmp_path)
    count = sum(parameter.numel() for parameter in forecast().decoder.parameters())
    assert (
        model
        == f"model: {count:,} parameters, fp32 on cpu; weights {in_bytes(4 * count)}, gradients"
        f" {in_bytes(4 * count)}, optimiser {in_bytes(8 * count)}"
    )
    assert run.startswith(
        "run: 1,000 steps of 8 rows of 16 tokens, as 4 x 2 rows: 128,000 tokens, 10.00 passes over"
        " the data (one is 100 steps), "
    )
    assert (
        disk
        == f"disk: {in_bytes(12 * count)} a checkpoint, up to {in_bytes(48 * count)} in all; 2.5 GB"
        " free"
    )


def test_what_a_trial_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm.training.forecast.memory", lambda device: (8 * 10**9, 5 * 10**9))
    plan = forecast(max_steps=600, validate_every=200)
    needed = in_bytes(plan.footprint.memory + 3_000_000)
    memory, time = plan.measured(
        Trial(3_000_000, seconds=0.2, update_seconds=0.2), validation_tokens=1280
    )
    assert (
        memory
        == f"memory: activations 3 MB for 2 rows at once, {needed} in all; cpu has 8 GB, 5 GB of it"
        " free"
    )
    # A step is 4 micro-batches and an update, 1 s for 128 tokens. There are 4 validations of a
    # third of 10 s.
    assert time == "time: 128 tokens/s; 600 steps in 10 min, 4 validations in 13.3 s"


@pytest.mark.parametrize(
    ("minutes", "warmup", "last_step"),
    [
        (1, 200, 116),
        (1, 116, 116),
        (1, 115, None),
        (None, 200, None),
        (0.01, 100, 1),
        (60, 599, None),
    ],
)
def test_a_time_limit_inside_the_warm_up_is_foreseen(
    minutes: float | None, warmup: int, last_step: int | None
) -> None:
    """The first validation takes 1.7 s of the minute, and a step half a second."""
    settings = config(max_steps=600, max_minutes=minutes)
    settings = settings.model_copy(
        update={"optimizer": settings.optimizer.model_copy(update={"warmup_steps": warmup})}
    )
    plan = Forecast(settings, Decoder(settings.model), "cpu", "fp32", 0.01)
    lines = plan.measured(Trial(1, seconds=0.1, update_seconds=0.1), validation_tokens=1280)[2:]
    if last_step is None:
        assert lines == []
        return
    assert lines == [
        f"trainer.max_minutes: {minutes:g} minutes end near step {last_step}, inside the warm-up of"
        f" {warmup} steps; write trainer.max_steps: {last_step} and optimizer.warmup_steps:"
        f" {last_step // 10}, or a longer trainer.max_minutes"
    ]
    advised = {"max_steps": last_step, "max_minutes": minutes}
    Config.model_validate(  # what is advised is accepted
        settings.model_dump()
        | {"trainer": settings.trainer.model_dump() | advised}
        | {"optimizer": {"warmup_steps": last_step // 10}}
    )


@pytest.mark.usefixtures("trains")
def test_the_first_steps_foresee_a_time_limit_inside_the_warm_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path)
    limit = ["--trainer.max_steps=100000", "--optimizer.warmup_steps=90000"]
    train(file, *limit, "--trainer.max_minutes=0.02", "--trainer.validate_every=100000")
    warnings = [line for line in capsys.readouterr().out.splitlines() if "inside the" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("trainer.max_minutes: 0.02 minutes end near step ")


@pytest.mark.usefixtures("trains")
def test_a_plan_knows_the_steps_of_so_many_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smoke text gives 65 rows: 2 passes are 16.25 steps of 8."""
    arguments, overrides = training_parser("train.py", "", init_from=True).parse_known_args(
        [
            *("--config", str(config_file(tmp_path)), "--plan"),
            *("--trainer.max_steps=null", "--trainer.max_epochs=2"),
        ]
    )
    loaded = load_config(arguments.config, overrides)
    assert answer_without_training(arguments, loaded, assemble)
    printed = capsys.readouterr().out
    assert "run: 17 steps of 8 rows" in printed and "time: " in printed
    assert "; 17 steps in " in printed
    with pytest.raises(ConfigError, match=r"^optimizer.warmup_steps: 17 leaves nothing of the"):
        loaded = load_config(arguments.config, [*overrides, "--optimizer.warmup_steps=17"])
        answer_without_training(arguments, loaded, assemble)


def test_a_run_by_the_clock_is_forecast_from_its_minutes(tmp_path: Path) -> None:
    settings = config(max_steps=None, max_minutes=2, optimizer={"schedule_by": "time"})
    run = Forecast(settings, Decoder(settings.model), "cpu", "fp32", 0.01)
    line = run.lines(tmp_path)[1]
    assert line == (
        "run: 2 minutes, in steps of 8 rows of 16 tokens, as 4 x 2 rows; of the passes over the"
        " data one is 100 steps"
    )
    assert "; at most 120 steps in 2 min" in run.measured(Trial(1, 0.2, 0.2), 0)[1]
    warming = settings.optimizer.model_copy(update={"warmup_steps": 500})
    slow = settings.model_copy(update={"optimizer": warming})
    said = Forecast(slow, Decoder(slow.model), "cpu", "fp32", 0.01).measured(Trial(1, 0.2, 0.2), 0)
    assert "inside the warm-up of 500 steps; write optimizer.warmup_steps: 12, or" in said[-1]


@pytest.mark.parametrize("max_steps", [200, 201, 250, 99, 1])
def test_validations_are_counted(max_steps: int) -> None:
    """Validations are due at step 0, every hundredth and the last."""
    due = [step for step in range(max_steps + 1) if step in (0, max_steps) or step % 100 == 0]
    time = forecast(max_steps=max_steps, validate_every=100).measured(Trial(1, 0.2, 0.2), 0)[1]
    assert f", {len(due)} validations in " in time


@pytest.mark.parametrize(
    ("devices", "micro_batch", "said"), [(1, 8, ""), (1, 2, ", as 4 x 2 rows"), (2, 4,
    ", as 4 rows on each of 2 devices"),
                                         (2, 2, ", as 2 x 2 rows on each of 2 devices")],
)  # fmt: skip
def test_a_step_s_rows_and_where_they_go(
    tmp_path: Path, devices: int, micro_batch: int, said: str
) -> None:
    run = forecast(devices=devices, micro_batch_size=micro_batch).lines(tmp_path)[1]
    assert f"steps of 8 rows of 16 tokens{said}: " in run


@pytest.mark.parametrize(
    ("device", "strategy", "memory"),
    [("cuda", "ddp", 1.0), ("cuda", "fsdp", 0.25), ("cpu", "ddp", 2.0), ("cpu", "fsdp", 0.5)],
)
def test_memory_is_that_of_one_device_and_on_a_cpu_of_all_its_processes(
    device: Device, strategy: str, memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm.training.forecast.memory", lambda device: (None, None))
    two_machines = forecast(device=device, strategy=strategy, devices=2, num_nodes=2)
    assert two_machines.memory_needed == memory * two_machines.footprint.memory
    processes = 2 if device == "cpu" else 1
    everything = in_bytes(two_machines.memory_needed + processes * 3_000_000)
    assert f", {everything} in all" in two_machines.measured(Trial(3_000_000, 0.2, 0.2), 0)[0]


def test_processes_on_a_cpu_share_its_cores() -> None:
    alone, two = (
        forecast(devices=devices).measured(Trial(1, 0.2, 0.0), 0)[1] for devices in (1, 2)
    )
    assert alone == two, "half as many micro-batches each, at half the speed"


def test_room_for_the_checkpoints_that_are_still_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new run needs room for two checkpoints. A resumed run has the first on the disk, and is not
    refused because of it.
    """
    usage, one = namedtuple("usage", "total used free"), forecast().footprint.checkpoint
    for free, start, refused in (
        (2 * one, 0, False),
        (2 * one - 1, 0, True),
        (one, 40, False),
        (one - 1, 40, True),
        (0, 100, False),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(10**12, 0, free))
        with (
            pytest.raises(CheckpointError, match="and a checkpoint of this run takes")
            if refused
            else contextlib.nullcontext()
        ):
            forecast(start=start).check(tmp_path)


def test_a_model_that_cannot_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = forecast().footprint.memory
    monkeypatch.setattr("lm.training.forecast.memory", lambda device: (taken - 1, 0))
    with pytest.raises(
        ConfigError,
        match=(
            r"^model: its weights, gradients and optimiser state take .* on each device, and cpu"
            r" has "
        ),
    ):
        forecast().check(tmp_path)
    forecast(strategy="fsdp", devices=2, device="cuda").check(tmp_path)
    monkeypatch.setattr("lm.training.forecast.memory", lambda device: (None, None))
    forecast().check(tmp_path)


@pytest.mark.parametrize(
    ("given", "allowed"),
    [(None, True), (257, True), (260, True), (384, True), (385, False), (50_000, False)],
)
def test_a_vocabulary_is_the_tokenizers_or_a_round_number(given: int | None, allowed: bool) -> None:
    values = config().model_copy(
        update={"model": config().model.model_copy(update={"vocab_size": given})}
    )
    if allowed:
        assert values.with_vocabulary(257).model.vocab_size == (given or 257)
    else:
        with pytest.raises(
            ConfigError,
            match=(
                rf"^model.vocab_size: {given} is larger than the tokenizer's 257; write null, or"
                r" 384 for"
            ),
        ):
            values.with_vocabulary(257)


@pytest.mark.usefixtures("starts_processes")
def test_the_plan_writes_nothing_but_the_token_cache(tmp_path: Path) -> None:
    file = config_file(tmp_path)
    command = [sys.executable, "train.py", "--config", str(file), "--plan"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "data",
        "model",
        "run",
        "disk",
        "memory",
        "time",
    ]
    assert re.search(
        r"^time: [\d,]+ tokens/s; 12 steps in \d+(\.\d+)? s, 4 validations in \d+(\.\d+)? s$",
        done.stdout,
        re.MULTILINE,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cache",
        "config.yaml",
        "corpus.txt",
    ]
