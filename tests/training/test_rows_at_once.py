"""Test trainer.micro_batch_size: auto: what it chooses, that it leaves no trace, and that a resumed
run keeps it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.config.schema.config import Config
from lm.config.schema.trainer import TrainerConfig
from lm.optim.objectives import NEXT_TOKEN
from lm.system.device import Device
from lm.system.errors import UserError
from lm.training.forecast import Forecast
from lm.training.live_tensors import LiveTensors
from lm.training.rows_at_once import Fitting, split
from model import Decoder
from tests.support.runs import config_file, train
from tests.training.test_train import assert_same_run, evaluations

AUTO = {"max_steps": 6, "batch_size": 8, "micro_batch_size": "auto", "validate_every": 3}
OF_A_CPU = {"device": "cpu", "precision": "fp32"}
MEMORY = "lm.training.rows_at_once.memory"


def fitting(device: Device, to_come: int = 0, **trainer: object) -> Fitting:
    """Return the search of a small model whose tensors are on the CPU."""
    config = Config.model_validate(
        {
            "data": {"source": {"format": "txt", "files": "unused"}, "document_mask": True},
            "model": {"context_length": 16, "n_layers": 2, "d_model": 16, "vocab_size": 50},
            "trainer": {"max_steps": 1, "batch_size": 12, "micro_batch_size": "auto", **trainer},
            "optimizer": {"warmup_steps": 0},
        }
    )
    return Fitting(Forecast(config, Decoder(config.model), device, "fp32", 0), NEXT_TOKEN, to_come)


def limit(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    """Let more than `rows` rows at once run out of memory, as CUDA says it. Return a list of the
    rows of all calls.
    """
    forward, calls = Decoder.forward, list[int]()

    def limited(self: Decoder, ids: Tensor, *rest: Any, **options: Any) -> Tensor:
        calls.append(len(ids))
        if len(ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, ids, *rest, **options)

    monkeypatch.setattr(Decoder, "forward", limited)
    monkeypatch.setattr(MEMORY, lambda device: (1000, 1000))
    return calls


def recorded(run: Path, checkpoint: str = "last.ckpt") -> int:
    rows: int = json.loads((run / checkpoint / "meta.json").read_text())["rows_at_once"]
    return rows


@pytest.mark.parametrize(
    ("limit_of_rows", "chosen"), [(0, 0), (1, 1), (2, 2), (5, 4), (7, 6), (11, 6), (12, 12)]
)
def test_on_cuda_it_is_the_largest_divisor_whose_step_works(
    limit_of_rows: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = limit(monkeypatch, limit_of_rows)
    search = fitting("cuda")
    before = {name: w.clone() for name, w in search.forecast.decoder.named_parameters()}
    assert search.rows() == chosen
    assert {12 % rows for rows in calls} == {0}
    for name, weight in search.forecast.decoder.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[name])


def test_the_state_to_come_and_a_margin_are_held_during_a_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit(monkeypatch, 12)
    search, held, empty = fitting("cuda", to_come=300), list[int](), torch.empty

    def noted(size: Any, **options: Any) -> Tensor:
        if options["dtype"] is torch.uint8:  # the decoder makes tensors too
            held.append(size)
        return empty(size, **options)

    monkeypatch.setattr(torch, "empty", noted)
    assert search.rows() == 12
    assert set(held) == {300 + 50}


def test_another_error_is_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 12)
    monkeypatch.setattr(NEXT_TOKEN, "total", lambda *_: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError):
        fitting("cuda").rows()


def test_on_a_cpu_it_is_calculated_and_the_processes_share_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calculated bytes of 6 rows are those that 6 rows take, and 0.65 of the memory is used."""
    search = fitting("cpu", to_come=1000)
    with LiveTensors() as tensors:
        search._backward_twice(6)
    search.forecast.decoder.zero_grad()
    enough = (tensors.peak + 1000) / 0.65
    for factor, device_rows in ((1.01, 6), (0.99, 4)):
        monkeypatch.setattr(MEMORY, lambda device, f=factor: (10**9, int(f * enough)))
        assert search.rows() == device_rows
    assert all(weight.grad is None for weight in search.forecast.decoder.parameters())
    monkeypatch.setattr(MEMORY, lambda device: (10**9, int(2.02 * enough)))
    assert fitting("cpu", to_come=1000, batch_size=24, devices=2).rows() == 6
    monkeypatch.setattr(MEMORY, lambda device: (10**9, 1000))
    assert search.rows() == 0
    monkeypatch.setattr(MEMORY, lambda device: (None, None))
    assert search.rows() == 12


def test_live_tensors_are_counted_until_they_are_freed() -> None:
    with LiveTensors() as tensors:
        first = torch.zeros(100)
        first += 1  # no new storage
        second = first.view(10, 10)[1:] * 2  # 360 bytes
        del second
        third = torch.zeros(50)
    assert tensors.peak == 400 + 360
    assert len(third) == 50


def test_auto_divides_the_rows_of_each_device() -> None:
    thirds = TrainerConfig(max_steps=1, batch_size=9, micro_batch_size="auto", devices=3)
    assert (thirds.micro_batch, list(thirds.training_problems())) == (3, [])
    halves = thirds.model_copy(update={"devices": 2})
    assert list(halves.training_problems()) == [
        "batch_size 9 is not divisible by devices 2; write a multiple of 2 for batch_size"
    ]


def test_a_batch_is_split_into_pieces() -> None:
    batch = {"input_ids": torch.arange(10).view(5, 2), "source": torch.arange(5)}
    pieces = list(split(batch, 2))
    assert [len(piece["source"]) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([piece["input_ids"] for piece in pieces]), batch["input_ids"])


@pytest.mark.usefixtures("trains")
def test_the_trial_leaves_no_trace_and_a_resumed_run_keeps_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run equals, bit for bit and with dropout, one that is given the number without a trial.
    Its validations take no more rows at once. Its second half, where all rows would fit, equals
    the other's too. A number that somebody writes replaces the recorded one.
    """
    config = config_file(tmp_path, trainer=AUTO | OF_A_CPU)
    told, tried = tmp_path / "told", tmp_path / "tried"
    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "rows", lambda self: 2)
        train(config, f"--checkpoint.directory={told}")
    directory = f"--checkpoint.directory={tried}"
    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "_should_fit", Fitting._can_be_done)
        calls = limit(patch, 3)
        train(config, directory)
        assert calls[:2] == [4, 2]
    assert "trainer.micro_batch_size: auto: 2 of 8 rows at once" in capsys.readouterr().out
    assert_same_run(tried, told)
    train(config, directory, resume=str(tried / "step-00000003.ckpt"))
    assert "kept from the checkpoint: 2 of 8 rows at once" in capsys.readouterr().out
    assert_same_run(tried, told)
    assert recorded(tried) == 2
    whole = tmp_path / "whole"
    train(config, f"--checkpoint.directory={whole}")
    assert recorded(whole) == 8
    assert evaluations(whole)[-1]["loss"] != evaluations(told)[-1]["loss"], "the number is seen"
    train(config, directory, "--trainer.max_steps=7", "--trainer.micro_batch_size=4", resume="auto")
    assert recorded(tried) == 4


@pytest.mark.usefixtures("trains")
def test_all_processes_take_the_smallest_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm.training.callbacks import ChooseRows

    class Trainer:
        world_size = 2

    def with_another(rows: Tensor, op: object) -> None:
        assert op == torch.distributed.ReduceOp.MIN
        rows.fill_(min(int(rows), 2))

    fits = ChooseRows._fitting
    monkeypatch.setattr(ChooseRows, "_fitting", lambda self, module, _: fits(self, module, Trainer))
    monkeypatch.setattr(torch.distributed, "all_reduce", with_another)
    train(config_file(tmp_path, trainer=AUTO | OF_A_CPU))
    assert recorded(tmp_path / "run") == 2


@pytest.mark.usefixtures("trains")
def test_a_number_that_was_halved_is_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file(tmp_path, trainer=AUTO | OF_A_CPU | {"micro_batch_size": 4})
    with monkeypatch.context() as patch:
        patch.setattr("lm.training.module.LanguageModel._accumulate", fails_once())
        train(config, "--trainer.max_steps=3")
    assert recorded(tmp_path / "run") == 2
    train(config, "--trainer.max_steps=6", resume="auto")
    assert recorded(tmp_path / "run") == 2


def fails_once() -> Any:
    from lm.training.module import LanguageModel

    accumulate, failures = LanguageModel._accumulate, iter([True])

    def failing(self: LanguageModel, batch: dict[str, Any]) -> Tensor:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return accumulate(self, batch)

    return failing


@pytest.mark.usefixtures("trains")
def test_a_single_row_that_does_not_fit_ends_the_run_and_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm.commands import load_config
    from lm.runs.origin import Origin
    from lm.training.plan import plan
    from train import assemble

    monkeypatch.setattr(MEMORY, lambda device: (10**9, 1000))
    config = config_file(tmp_path, trainer=AUTO | OF_A_CPU)
    words = (
        "^out of memory on device 0 with 1 row at once; write model.gradient_checkpointing: true,"
        " or a smaller .*model.context_length"
    )
    with pytest.raises(UserError, match=words) as stopped:
        train(config)
    assert stopped.value.exit_code == 1
    with pytest.raises(UserError, match=words):
        plan(assemble(load_config(config), Origin(), print), print)


@pytest.mark.usefixtures("trains")
def test_a_plan_measures_the_rows_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm.commands import load_config
    from lm.runs.origin import Origin
    from lm.training.plan import plan
    from train import assemble

    monkeypatch.setattr(Fitting, "rows", lambda self: 2)
    lines = list[str]()
    plan(
        assemble(
            load_config(config_file(tmp_path, trainer=AUTO | OF_A_CPU)), Origin(), lines.append
        ),
        lines.append,
    )
    said = "\n".join(lines)
    assert ", as many at once as fit the memory: " in said
    assert "trainer.micro_batch_size: auto: 2 rows at once" in said
    assert " for 2 rows at once, " in said
