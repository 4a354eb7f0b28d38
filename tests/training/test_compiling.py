"""Test trainer.compile: auto: when it compiles, that a resumed run stays as it was, and that
nothing is compiled again during a run.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from lm.config.schema.config import Config
from lm.system.device import Device
from lm.training.compiling import LEAST_SECONDS_ON_CPU, RATE, pays_off
from lm.training.record import flops_per_token
from model import Decoder
from tests.support.runs import config_file, train

RULE = "lm.training.callbacks.pays_off"


def config(schedule_by: str = "steps", **trainer: object) -> Config:
    return Config.model_validate(
        {
            "data": {"source": {"format": "txt", "files": "unused"}},
            "model": {"context_length": 16, "n_layers": 2, "d_model": 16, "vocab_size": 50},
            "trainer": {"batch_size": 4, **trainer},
            "optimizer": {"warmup_steps": 0, "schedule_by": schedule_by},
        }
    )


def decides(settings: Config, device: Device, threads: int, patch: pytest.MonkeyPatch) -> bool:
    patch.setattr(torch, "get_num_threads", lambda: threads)
    return pays_off(settings, Decoder(settings.model), device)


def test_a_cpu_compiles_where_enough_work_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an hour of all cores, whether one process has them or two."""
    decoder = Decoder(config(max_steps=1).model)
    step = 4 * 16 * flops_per_token(decoder.n_matmul_parameters, 2, 16, 16)
    enough = int(LEAST_SECONDS_ON_CPU * RATE / step) + 1
    for threads, devices in ((1, 1), (2, 1), (1, 2)):
        steps = enough * threads * devices
        for count, answer in ((steps + 2, True), (steps - 2, False)):
            settings = config(max_steps=count, devices=devices)
            assert decides(settings, "cpu", threads, monkeypatch) is answer


@pytest.mark.parametrize(
    ("device", "minutes", "answer"),
    [("cpu", 29.9, False), ("cpu", 30, True), ("cuda", 4.9, False), ("cuda", 5, True)],
)
def test_a_deadline_counts_compiling(
    device: Device, minutes: float, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decides(config("time", max_minutes=minutes), device, 1, monkeypatch) is answer
    both = config("time", max_minutes=minutes, max_steps=3)
    assert decides(both, device, 1, monkeypatch) is False


def test_max_minutes_that_only_stop_a_session_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decides(config(max_steps=10**9, max_minutes=1), "cpu", 1, monkeypatch) is True


@pytest.mark.parametrize(
    ("device", "steps", "answer"),
    [("cuda", 20, False), ("cuda", 499, False), ("cuda", 500, True), ("mps", 10**9, False)],
)
def test_other_devices(
    device: Device, steps: int, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decides(config(max_steps=steps), device, 1, monkeypatch) is answer


def compiled_with(patch: pytest.MonkeyPatch, works: bool = True) -> list[nn.Module]:
    """Replace the compiler. Return a list that grows by each decoder that it is given."""
    given = []

    def compile_with_nothing(module: nn.Module) -> None:
        given.append(module)

        def call(*arguments: Any, **keywords: Any) -> Any:
            if not works:
                raise RuntimeError("no compiler here")
            return module._call_impl(*arguments, **keywords)

        module._compiled_call_impl = call

    patch.setattr(nn.Module, "compile", compile_with_nothing)
    return given


def recorded(run: Path) -> bool:
    compiled: bool = json.loads((run / "last.ckpt" / "meta.json").read_text())["compiled"]
    return compiled


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize(
    ("long", "works", "kept"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_a_resumed_run_stays_as_it_was(
    long: bool,
    works: bool,
    kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where the compiler did not work before, and does now."""
    file, run = config_file(tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RULE, lambda *_: long)
        assert len(compiled_with(patch, works)) == 0
        train(file, "--trainer.max_steps=4")
    assert recorded(run) is kept
    said = capsys.readouterr().out
    assert ("trainer.compile: auto: compiling" in said) is long
    assert ("runs uncompiled: RuntimeError: no compiler here" in said) is not works
    monkeypatch.setattr(RULE, lambda *_: not kept)
    given = compiled_with(monkeypatch)
    train(file, "--trainer.max_steps=6", resume="auto")
    assert recorded(run) is kept
    assert len(given) == kept


@pytest.mark.usefixtures("trains")
def test_a_run_of_before_goes_on_by_the_rule_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compiled on CUDA only."""
    older = Path(__file__).parent / "older_run"
    shutil.copytree(older, tmp_path / "older", symlinks=True)
    monkeypatch.chdir(tmp_path / "older")
    monkeypatch.setattr(RULE, lambda *_: True)
    given = compiled_with(monkeypatch)
    train(Path("config.yaml"), "--trainer.max_steps=7", resume="auto")
    assert not given


@pytest.mark.usefixtures("trains")
def test_nothing_is_compiled_again_by_steps_validations_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch of the validation is filled up, as each step is."""
    traced = functools.partialmethod(nn.Module.compile, backend="eager")  # no C compiler
    monkeypatch.setattr(Decoder, "compile", traced)
    graphs = []
    for steps in (1, 5):
        torch._dynamo.reset()
        counters.clear()
        train(
            config_file(tmp_path),
            f"--trainer.max_steps={steps}",
            "--trainer.compile=on",
            "--trainer.validate_every=2",
            "--optimizer.warmup_steps=0",
            f"--checkpoint.directory={tmp_path / str(steps)}",
        )
        assert recorded(tmp_path / str(steps))
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs[0] == graphs[1] > 0
