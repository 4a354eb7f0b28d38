"""Test non-finite numbers, spikes, too little memory, failed evaluations and a full disk."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.runs.incidents import Incidents, SpikeWatch
from lm.system.errors import CheckpointError, NonFiniteError, Stopped, UserError
from lm.system.progress import Progress
from lm.training.module import LanguageModel
from model import Decoder
from tests.support.runs import config_file, train
from tests.training.test_train import (
    assert_same,
    assert_same_run,
    evaluations,
    metrics,
    steps,
    weights,
)


def poison(monkeypatch: pytest.MonkeyPatch, *at: int) -> list[int]:
    """Make the loss of these steps (updates done before) NaN. Return a list that grows by each step
    that is computed.
    """
    accumulate, computed = LanguageModel._accumulate, []

    def poisoned(self: LanguageModel, batch: dict[str, Any]) -> Tensor:
        loss = accumulate(self, batch)
        computed.append(self.step)
        return loss * float("nan") if self.step in at else loss

    monkeypatch.setattr(LanguageModel, "_accumulate", poisoned)
    return computed


def left_out(folder: Path, *at: int) -> None:
    """Record these steps as skipped in an earlier session."""
    folder.mkdir(parents=True)
    (folder / ".run-id").write_text("0123456789abcdef\n")
    (folder / "incidents.jsonl").write_text(
        "".join(json.dumps({"step": step, "kind": "skipped", "message": ""}) + "\n" for step in at)
    )


def incidents(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "incidents.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory, trains: None) -> Path:
    """Return a run of 12 steps that never made the update of step 8."""
    folder = tmp_path_factory.mktemp("without")
    left_out(folder / "run", 7)
    train(config_file(folder))
    return folder / "run"


@pytest.mark.usefixtures("trains")
def test_stop_shows_what_there_was_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 7)
    with pytest.raises(
        NonFiniteError,
        match=(
            r"^step 8: loss nan, .*no checkpoint has anything of it; what there was to see is in"
            r" .*; "
        ),
    ) as stopped:
        train(config_file(tmp_path))
    assert stopped.value.exit_code == 4
    run = tmp_path / "run"
    assert steps(run) == [3, 4, 6]
    report = json.loads(
        (run / "nonfinite-step-00000008" / "report.json").read_text(), parse_constant=pytest.fail
    )
    assert (report["step"], report["loss"], report["last_checkpoint"]) == (
        8,
        "nan",
        str(run / "step-00000006.ckpt"),
    )
    assert report["learning_rate"] > 0
    assert report["grad_norms"].keys() == weights(run, "last.ckpt").keys()
    assert all(norm > 0 for name, norm in report["grad_norms"].items() if "norm" not in name)
    assert report["grad_norm"] == pytest.approx(
        sum(norm**2 for norm in report["grad_norms"].values()) ** 0.5, rel=1e-4
    )
    rows = [
        json.loads(line)
        for line in (run / "nonfinite-step-00000008" / "batch.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 8
    assert all(len(row["input_ids"]) == len(row["labels"]) == 16 for row in rows)
    assert rows[0]["input_ids"][1:] == rows[0]["labels"][:-1]
    assert rows[0]["text"] == bytes(i for i in rows[0]["input_ids"] if i < 256).decode(
        errors="replace"
    )


@pytest.mark.usefixtures("trains")
def test_skip_is_the_run_without_that_update(
    without: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = poison(monkeypatch, 7)
    train(config_file(tmp_path), "--trainer.on_nonfinite=skip")
    run = tmp_path / "run"
    assert 7 in computed
    assert_same_run(without, run)
    [row] = [row for row in metrics(run) if row["step"] == "8" and row["split"] == "train"]
    assert row["loss"] == row["grad_norm"] == "nan"
    assert [(line["step"], line["kind"]) for line in incidents(run)] == [(7, "skipped")]


@pytest.mark.usefixtures("trains")
def test_a_skipped_step_changes_nothing(without: Path) -> None:
    """Steps 7 and 8 have equal weights and averages; the learning rate and the plan go on."""
    folder = without.parent
    run = folder / "each"
    left_out(run, 7)
    train(folder / "config.yaml", "--checkpoint.save_every=1", f"--checkpoint.directory={run}")
    for file in ("model.safetensors", "ema.safetensors"):
        assert_same(
            weights(run, "step-00000007.ckpt", file), weights(run, "step-00000008.ckpt", file)
        )
    before, after = (
        torch.load(run / f"step-0000000{step}.ckpt" / "train_state.pt", weights_only=True)
        for step in (7, 8)
    )
    assert_same(before["optimizer"]["state"], after["optimizer"]["state"])
    assert_same(weights(run), weights(without))


@pytest.mark.usefixtures("trains")
def test_a_resumed_run_skips_them_too(
    without: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded step is skipped. It is not computed, so its loss is not NaN again."""
    config = config_file(tmp_path)
    with monkeypatch.context() as patched:
        poison(patched, 7)
        train(config, "--trainer.on_nonfinite=skip")
    computed = poison(monkeypatch)
    train(
        config, "--trainer.on_nonfinite=skip", resume=str(tmp_path / "run" / "step-00000006.ckpt")
    )
    assert computed == [6, 8, 9, 10, 11]
    assert_same_run(without, tmp_path / "run")


@pytest.mark.usefixtures("trains")
def test_rollback_goes_back_and_does_without_it(
    without: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = poison(monkeypatch, 7)
    train(config_file(tmp_path), "--trainer.on_nonfinite=rollback")
    assert computed == [*range(8), 6, *range(8, 12)]
    assert_same_run(without, tmp_path / "run")


@pytest.mark.usefixtures("trains")
def test_rollback_needs_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 1)
    with pytest.raises(
        NonFiniteError,
        match=(
            r"^step 2: going back .* but it has none yet: checkpoint.save_every is 3, write a"
            r" smaller one$"
        ),
    ):
        train(config_file(tmp_path), "--trainer.on_nonfinite=rollback")


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_too_many_in_a_row_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    poison(monkeypatch, 4, 6, 7, 8)
    with pytest.raises(
        NonFiniteError,
        match=r"^step 9: 3 updates in a row had to be left out \(trainer.nonfinite_limit\)",
    ) as stopped:
        train(
            config_file(tmp_path), f"--trainer.on_nonfinite={policy}", "--trainer.nonfinite_limit=3"
        )
    assert stopped.value.exit_code == 4


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("where", ["gradient", "weight"])
def test_whatever_is_not_finite_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """An infinite gradient with a finite loss is found, and so is a weight that is NaN."""
    accumulate = LanguageModel._accumulate

    def broken(self: LanguageModel, batch: dict[str, Any]) -> Tensor:
        if self.step == 4 and where == "weight":
            with torch.no_grad():
                self.decoder.norm.weight[0] = float("nan")
        loss = accumulate(self, batch)
        if self.step == 4 and where == "gradient":
            self.decoder.norm.weight.grad[0] = float("inf")
        return loss

    monkeypatch.setattr(LanguageModel, "_accumulate", broken)
    with pytest.raises(NonFiniteError, match=r"^step 5: loss .*, gradient norm (inf|nan), "):
        train(config_file(tmp_path))


def test_a_report_that_cannot_be_written_does_not_hide_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise CheckpointError(f"{path} could not be written: No space left on device")

    monkeypatch.setattr("lm.runs.incidents.replace", refuse)
    kept = Incidents(tmp_path, str, "stop", 10, print)
    with pytest.raises(
        NonFiniteError,
        match=(
            r"^step 8: loss nan, .* could not be kept: .*report.json could not be written: No space"
        ),
    ):
        kept.give_up(7, "loss nan", {}, [[1]], [[2]])


def test_reports_do_not_fill_the_disk(tmp_path: Path) -> None:
    said: list[str] = []
    kept = Incidents(tmp_path, str, "skip", 10**6, said.append)
    kept.recall(0, lambda value: value)
    for step in range(50):
        kept.give_up(step, "loss nan", {}, [[1]], [[2]])
    assert len(list(tmp_path.glob("nonfinite-step-*"))) == 20
    assert len(said) == len(incidents(tmp_path)) == 50
    again = Incidents(tmp_path, str, "skip", 10**6, said.append)
    again.recall(0, lambda value: value)
    assert again.skipped == set(range(50))


def test_a_line_of_incidents_that_is_none_is_left_out(tmp_path: Path) -> None:
    left_out(tmp_path / "run", 1)
    with (tmp_path / "run" / "incidents.jsonl").open("a") as file:
        file.write('{"step": Infinity, "kind": "skipped", "message": ""}\n[]\n{"step": null}\n3\n')
    kept = Incidents(tmp_path / "run", str, "skip", 10, print)
    kept.recall(0, lambda value: value)
    assert kept.skipped == {1}


def test_a_line_of_incidents_that_was_cut_is_left_out_and_not_glued_to(tmp_path: Path) -> None:
    left_out(tmp_path / "run", 1, 2)
    file = tmp_path / "run" / "incidents.jsonl"
    file.write_text(file.read_text()[:-10])
    kept = Incidents(tmp_path / "run", str, "skip", 10, lambda line: None)
    kept.recall(0, lambda value: value)
    assert kept.skipped == {1}
    kept.note(5, "skipped", "")
    again = Incidents(tmp_path / "run", str, "skip", 10, lambda line: None)
    again.recall(0, lambda value: value)
    assert again.skipped == {1, 5}


@pytest.mark.usefixtures("trains")
def test_a_rollback_leaves_no_book_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each session closes its logs. TensorBoard's threads and files, and progress bars, would
    otherwise pile up.
    """
    poison(monkeypatch, 7, 8)
    closed: list[Progress] = []
    monkeypatch.setattr(Progress, "close", lambda self: closed.append(self))
    train(config_file(tmp_path), "--trainer.on_nonfinite=rollback", "--logging.tensorboard=true")
    assert not [
        thread for thread in threading.enumerate() if "tensorboard" in type(thread).__module__
    ]
    assert len({id(progress) for progress in closed}) == 3


def test_only_overflows_of_the_way_that_the_run_has_come_count(tmp_path: Path) -> None:
    """Three overflows in a row ended the run. It goes on from step 10 with a lower rate, and
    overflows after that step do not count.
    """
    ended = Incidents(tmp_path, str, "stop", 3, print)
    ended.recall(10, lambda value: value)
    with pytest.raises(NonFiniteError):
        for step in (9, 11, 12, 13):
            ended.note(step, "overflow", "")
    lower = Incidents(tmp_path, str, "stop", 3, print)
    lower.recall(10, lambda value: value)
    lower.note(13, "overflow", "")
    lower.note(10, "overflow", "")
    # the three are 9, before the resume, 10 and 11
    with pytest.raises(NonFiniteError, match=r"^step 12: 3 updates in a row"):
        lower.note(11, "overflow", "")
    assert len(incidents(tmp_path)) == 5, "and what is written down already is not written twice"


@pytest.mark.usefixtures("trains")
def test_the_time_limit_does_not_start_anew_with_a_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hours pass in the step that is given up. The run that goes on from step 6 is past its
    limit of one.
    """
    poison(monkeypatch, 7)
    give_up, monotonic = Incidents.give_up, time.monotonic

    def slow(*arguments: Any) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 7200)
        give_up(*arguments)

    monkeypatch.setattr(Incidents, "give_up", slow)
    train(config_file(tmp_path), "--trainer.on_nonfinite=rollback", "--trainer.max_minutes=60")
    assert steps(tmp_path / "run")[-1] == 7


@pytest.mark.usefixtures("trains")
def test_a_signal_after_a_rollback_is_not_answered_with_another_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, recall = poison(monkeypatch, 7), Incidents.recall

    def interrupted(self: Incidents, *arguments: Any) -> None:
        recall(self, *arguments)
        if self.skipped:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Incidents, "recall", interrupted)
    with pytest.raises(Stopped):
        train(config_file(tmp_path), "--trainer.on_nonfinite=rollback")
    assert computed == [*range(8)]


# --- spikes


def test_a_spike_is_flagged_and_noise_is_not() -> None:
    watch = SpikeWatch()
    losses = [3 - 0.01 * step + 0.05 * (step * 7919 % 13 - 6) / 6 for step in range(100)]
    assert [watch.take(loss) for loss in losses] == [None] * 100
    message = watch.take(3.4)
    assert message is not None
    assert message.startswith("loss spike: 3.4000, where the median of the last 20 is 2.")
    assert watch.take(2.0) is None
    assert SpikeWatch(list(watch.recent)).take(3.4) == watch.take(3.4)
    assert SpikeWatch([3.0] * 49).take(30.0) is None, "too few to tell"
    assert SpikeWatch([3.0] * 50).take(3.05) is None, (
        "two hundredths are no spike, however calm it was"
    )


@pytest.mark.usefixtures("trains")
def test_spikes_are_written_down_and_the_watch_survives_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate = LanguageModel._accumulate

    def spiking(self: LanguageModel, batch: dict[str, Any]) -> Tensor:
        return accumulate(self, batch) * (3 if self.step == 70 else 1)

    monkeypatch.setattr(LanguageModel, "_accumulate", spiking)
    config = config_file(
        tmp_path,
        trainer={"max_steps": 72, "batch_size": 2, "micro_batch_size": None, "validate_every": 100},
    )
    train(config, "--checkpoint.save_every=60")
    assert [(line["step"], line["kind"]) for line in incidents(tmp_path / "run")] == [(70, "spike")]
    (tmp_path / "run" / "incidents.jsonl").unlink()
    train(config, "--checkpoint.save_every=60", resume=str(tmp_path / "run" / "step-00000060.ckpt"))
    assert [(line["step"], line["kind"]) for line in incidents(tmp_path / "run")] == [(70, "spike")]


# --- memory


def short_of_memory(monkeypatch: pytest.MonkeyPatch, rows: int, message: str) -> None:
    """Let more than `rows` rows at once run out of memory from the sixth training call on."""
    forward, calls = Decoder.forward, []

    def limited(self: Decoder, ids: Tensor, *rest: Any, **options: Any) -> Tensor:
        if self.training:
            calls.append(len(ids))
            if len(calls) > 5 and len(ids) > rows:
                raise RuntimeError(message)
        return forward(self, ids, *rest, **options)

    monkeypatch.setattr(Decoder, "forward", limited)


CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    " tried to allocate 9 bytes."
)


@pytest.mark.usefixtures("trains")
def test_out_of_memory_is_done_again_with_fewer_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run continues one row at a time from the second micro-batch of step 3. It is the same run
    except for rounding.
    """
    plain = config_file(
        tmp_path,
        model={
            "context_length": 16,
            "n_layers": 2,
            "d_model": 32,
            "n_heads": 2,
            "dropout": 0.0,
            "init_std": 0.1,
        },
    )
    train(plain)
    short_of_memory(monkeypatch, 1, CPU_MESSAGE)
    short = tmp_path / "short"
    train(plain, f"--checkpoint.directory={short}")
    assert [line["message"].partition(" (")[0] for line in incidents(short)] == [
        f"out of memory, so it is done again with {rows} of its rows at once" for rows in (2, 1)
    ]
    assert [line["step"] for line in incidents(short)] == [2, 2]
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(weights(short)[name], tensor, atol=2e-5, rtol=1e-4)
    for mine, theirs in zip(evaluations(short), evaluations(tmp_path / "run"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


@pytest.mark.usefixtures("trains")
def test_a_single_row_that_is_too_much_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 0, CPU_MESSAGE)
    with pytest.raises(
        UserError,
        match=(
            r"^out of memory on device 0 with 1 row at once; write model.gradient_checkpointing:"
            r" true"
        ),
    ) as stopped:
        train(config_file(tmp_path))
    assert stopped.value.exit_code == 1


@pytest.mark.usefixtures("trains")
def test_other_errors_are_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 1, "mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(config_file(tmp_path))


def test_several_devices_are_told_the_numbers_to_change() -> None:
    from lm.training.rows_at_once import fewer_rows

    with pytest.raises(
        UserError,
        match=(
            r"^out of memory on device 3 with 8 rows at once; write trainer.micro_batch_size: 4"
            r" \(it is 8 now"
        ),
    ):
        fewer_rows(8, 4, 3, "CUDA out of memory")


# --- evaluation


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("what", ["validation", "the sample"])
def test_an_evaluation_that_fails_is_not_worth_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(
        "lm.training.callbacks.evaluate" if what == "validation" else "lm.training.callbacks.write",
        broken,
    )
    train(config_file(tmp_path))
    said = capsys.readouterr().out
    line = (
        f"{what} failed, and the run goes on without: RuntimeError: no such kernel (the traceback"
        f" is in {tmp_path / 'run'}/error-"
    )
    assert said.count(line) == 4
    assert "no such kernel" in next((tmp_path / "run").glob("error-*.txt")).read_text()
    assert steps(tmp_path / "run")[-1] == 12
    assert (tmp_path / "run" / "final.ckpt").exists()
    assert (tmp_path / "run" / "evaluations.jsonl").exists() == (what == "the sample")


@pytest.mark.usefixtures("trains")
def test_a_picture_that_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("lm.training.record.draw", broken)
    train(config_file(tmp_path))
    said = capsys.readouterr().out
    assert "curves.png could not be drawn: no fonts" in said
    assert said.splitlines()[-2].endswith("holds final.ckpt, best.ckpt and metrics.csv")


# --- the disk


@pytest.mark.usefixtures("trains")
def test_a_disk_that_is_nearly_full_stops_the_run_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    config = config_file(tmp_path)
    looks = []

    def filling(path: Any) -> Any:
        looks.append(path)
        return usage(10**9, 0, 10**9 if len(looks) < 5 else 50_000)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", filling)
        with pytest.raises(
            CheckpointError,
            match=(
                r"saved at step \d+, and stopped before the disk is full: the next checkpoint takes"
                r" \d+ kB, and 50 kB"
            ),
        ):
            train(config)
    assert 3 <= steps(tmp_path / "run")[-1] < 12
    train(config, resume="auto")
    assert steps(tmp_path / "run")[-1] == 12


@pytest.mark.usefixtures("trains")
def test_a_disk_that_is_too_small_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(
        CheckpointError,
        match=(
            r"checkpoint.directory: .* has 1 kB free, and a checkpoint of this run takes .* kB,"
            r" twice"
        ),
    ):
        train(config_file(tmp_path))
    assert not steps(tmp_path / "run")
