"""Whole runs resume to the bit in this process, and nothing but training changes a model."""

from __future__ import annotations

import csv
import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lm.checkpoints.folder import Checkpoint, step_directories, step_of
from lm.checkpoints.write import write_checkpoint
from lm.system.errors import ConfigError, NonFiniteError, Stopped
from lm.training.module import LanguageModel
from tests.support.runs import config_file, train

ROOT = Path(__file__).parents[2]
TIMES = {"timestamp", "tokens_per_second", "mfu", "peak_memory_mb", "seconds"}
ONE_STEP = "--trainer.max_minutes=1e-9"  # the limit has passed when the first step ends


def weights(
    run: Path, name: str = "final.ckpt", file: str = "model.safetensors"
) -> dict[str, torch.Tensor]:
    return load_file(run / name / file)


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [
            {key: value for key, value in row.items() if key not in TIMES}
            for row in csv.DictReader(file)
        ]


def evaluations(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "manifest_sha256")}
        for line in lines
    ]


def optimizer_state(run: Path) -> dict[str, Any]:
    return torch.load(run / "final.ckpt" / "train_state.pt", weights_only=True)


def assert_same(one: Any, other: Any) -> None:
    """Check that two values are equal to the bit, tensors within containers included."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def assert_same_run(one: Path, other: Path) -> None:
    assert_same(weights(one), weights(other))
    assert_same(weights(one, file="ema.safetensors"), weights(other, file="ema.safetensors"))
    assert_same(optimizer_state(one), optimizer_state(other))
    assert metrics(one) == metrics(other)
    assert evaluations(one) == evaluations(other)
    assert (one / "best.ckpt").readlink() == (other / "best.ckpt").readlink()


def steps(run: Path) -> list[int]:
    return [step_of(path) for path in step_directories(run)]


def test_a_run_leaves_what_it_should(straight: Path) -> None:
    assert steps(straight) == [3, 4, 6, 8, 9, 12]
    assert (straight / "final.ckpt").resolve().name == "step-00000012.ckpt"
    assert (straight / "last.ckpt").resolve().name == "step-00000012.ckpt"
    best = min(evaluations(straight)[1:], key=lambda line: line["loss"])
    assert (straight / "best.ckpt").resolve().name == f"step-{best['step']:08d}.ckpt"
    assert [line["step"] for line in evaluations(straight)] == [0, 4, 8, 12]
    rows = metrics(straight)
    assert [int(row["step"]) for row in rows if row["split"] == "train"] == list(range(1, 13))
    assert [int(row["step"]) for row in rows if row["split"] == "val"] == [0, 4, 8, 12]
    assert (straight / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(straight.glob(".*tmp*"))
    meta = Checkpoint(straight / "final.ckpt").meta
    assert meta["step"] == 12
    assert meta["tokens"] == 12 * 8 * 16
    assert meta["epoch"] > 1.1, "the test should see more than one epoch"
    assert evaluations(straight)[-1]["loss"] < evaluations(straight)[0]["loss"]


def test_the_resolved_configuration_is_saved(straight: Path) -> None:
    from lm.commands import load_config

    saved = load_config(straight / "config.yaml", []).config
    assert saved == load_config(straight.parent / "config.yaml", []).config
    assert Checkpoint(straight / "final.ckpt").meta["config"] == saved.model_dump(mode="json")


@pytest.mark.usefixtures("trains")
def test_stopped_and_resumed_after_every_step(straight: Path, tmp_path: Path) -> None:
    """Twelve sessions of one step each give the same run: mid-epoch, across epochs, before and
    after validations, inside and outside of saves.
    """
    config = config_file(tmp_path)
    for _ in range(12):
        train(config, ONE_STEP, resume="auto")
    assert_same_run(straight, tmp_path / "run")


OPTIMIZERS = {
    "adamw": (),
    "cautious adamw": ("--optimizer.cautious_decay=true", "--optimizer.embedding_lr=1e-2"),
    "muon": ("--optimizer.name=muon", "--optimizer.muon_momentum_warmup=4"),
    "cautious muon": (
        *("--optimizer.name=muon", "--optimizer.cautious_decay=true"),
        *("--optimizer.embedding_lr=1e-2", "--optimizer.head_lr=1e-3"),
        "--model.tie_embeddings=false",
    ),
}
# Each value of a column meets each value of the others.
NEW_WAYS = [
    ("muon", "auto", "bpe", "fp32"),
    ("muon", "fused", "byte", "bf16"),
    ("cautious muon", "auto", "byte", "fp32"),
    ("cautious muon", "fused", "bpe", "bf16"),
    ("cautious adamw", "auto", "bpe", "bf16"),
    ("cautious adamw", "fused", "byte", "fp32"),
    ("adamw", "auto", "byte", "bf16"),
    ("adamw", "fused", "bpe", "fp32"),
]


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize(("optimizer", "kernels", "tokenizer", "precision"), NEW_WAYS)
def test_new_optimisers_losses_and_vocabularies_resume_exactly(
    tmp_path: Path,
    early_gradients: None,
    optimizer: str,
    kernels: str,
    tokenizer: str,
    precision: str,
) -> None:
    """Sessions of one step each: in the warm-up of rate and momentum, later, and at the last
    step.
    """
    size = ("--tokenizer.vocab_size=280",) * (tokenizer == "bpe")
    keys = (
        *(f"--model.kernels={kernels}", f"--trainer.precision={precision}"),
        *(f"--tokenizer.name={tokenizer}", *size, *OPTIMIZERS[optimizer]),
        *("--trainer.max_steps=6", "--trainer.validate_every=3", "--logging.sample_tokens=0"),
    )
    (tmp_path / "straight").mkdir()
    train(config_file(tmp_path / "straight"), *keys)
    config = config_file(tmp_path)
    for _ in range(6):
        train(config, *keys, ONE_STEP, resume="auto")
    assert_same_run(tmp_path / "straight" / "run", tmp_path / "run")


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("step", [3, 4, 8, 9])
def test_resumed_from_an_older_checkpoint(straight: Path, tmp_path: Path, step: int) -> None:
    """The later rows, results and checkpoints are moved aside, and the resumed run makes the same
    ones again.
    """
    config = config_file(tmp_path)
    train(config)
    run = tmp_path / "run"
    train(config, resume=str(run / f"step-{step:08d}.ckpt"))
    assert_same_run(straight, run)
    later = [
        path.name for path in (run / f"after-step-{step:08d}-1").iterdir() if path.suffix == ".ckpt"
    ]
    assert later, "later checkpoints are moved aside, not deleted"
    moved = metrics(run / f"after-step-{step:08d}-1")
    assert [row for row in metrics(straight) if int(row["step"]) > step] == moved, (
        "and so are the rows of metrics.csv"
    )


@pytest.mark.usefixtures("trains")
def test_a_validation_that_a_kill_prevented_is_made_up_for(straight: Path, tmp_path: Path) -> None:
    """The run was saved at step 8 and killed before the result was written. The resumed run
    validates first.
    """
    config = config_file(tmp_path)
    train(config)
    run = tmp_path / "run"
    lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text("".join(lines[:2]))
    rows = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text(
        "".join(row for row in rows if not row.startswith("8,") or ",train," in row)
    )
    train(config, resume=str(run / "step-00000008.ckpt"))
    assert_same_run(straight, run)


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize(
    "change",
    [
        "--data.workers=2",
        "--trainer.validate_every=100",
        "--logging.sample_tokens=0",
        "--checkpoint.save_every=1",
    ],
)
def test_nothing_but_training_changes_the_weights(
    straight: Path, tmp_path: Path, change: str
) -> None:
    """Validation, sampling, saving and worker processes leave no trace in the weights."""
    train(config_file(tmp_path), change)
    assert_same(weights(straight), weights(tmp_path / "run"))


@pytest.mark.usefixtures("trains")
def test_intervals_count_optimiser_steps(straight: Path, tmp_path: Path) -> None:
    """The same steps are logged, saved and validated without accumulation. The straight run has two
    micro-batches a step.
    """
    train(
        config_file(
            tmp_path,
            trainer={
                "max_steps": 12,
                "batch_size": 8,
                "validate_every": 4,
                "device": "cpu",
                "precision": "fp32",
            },
        )
    )
    run = tmp_path / "run"
    assert steps(run) == steps(straight)
    for one, other in zip(metrics(run), metrics(straight), strict=True):
        assert [one[key] for key in ("step", "split", "epoch", "tokens", "lr")] == [
            other[key] for key in ("step", "split", "epoch", "tokens", "lr")
        ]


@pytest.mark.usefixtures("starts_processes", "trains")
def test_killed_at_any_moment(straight: Path, tmp_path: Path) -> None:
    """The same command, started again after kill -9, makes the same run."""
    config = config_file(tmp_path)
    command = [sys.executable, "train.py", "--config", str(config), "--resume", "auto"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not steps(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert steps(tmp_path / "run")
    train(config, resume="auto")
    assert_same_run(straight, tmp_path / "run")


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_after_the_step_and_saves(
    straight: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file(tmp_path)
    step = LanguageModel.training_step

    def interrupted(self: LanguageModel, batch: dict[str, Any], batch_idx: int) -> None:
        if self.step == 4:
            signal.raise_signal(number)  # in the middle of step 5
        step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="after step 5, saved") as stopped:
        train(config)
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert steps(tmp_path / "run")[-1] == 5
    monkeypatch.undo()
    train(config, resume="auto")
    assert_same_run(straight, tmp_path / "run")


@pytest.mark.usefixtures("trains")
def test_a_signal_in_the_last_step_leaves_only_its_validation(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file(tmp_path)
    step = LanguageModel.training_step

    def interrupted(self: LanguageModel, batch: dict[str, Any], batch_idx: int) -> None:
        if self.step == 11:
            signal.raise_signal(signal.SIGTERM)
        step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", interrupted)
    with pytest.raises(Stopped, match="after step 12, saved"):
        train(config)
    monkeypatch.undo()
    assert evaluations(tmp_path / "run")[-1]["step"] == 8
    train(config, resume="auto")
    assert_same_run(straight, tmp_path / "run")


@pytest.mark.usefixtures("trains")
def test_a_finished_run_stays_finished_until_it_gets_a_longer_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path)
    train(config)
    for name in ("final.ckpt", "curves.png"):
        (tmp_path / "run" / name).unlink()  # as if a kill had come just before that
    capsys.readouterr()
    train(config, resume="auto")
    assert "finished its 12 steps" not in capsys.readouterr().out
    assert (tmp_path / "run" / "final.ckpt").resolve().name == "step-00000012.ckpt"
    assert (tmp_path / "run" / "curves.png").exists()
    train(config, resume="auto")
    assert "finished its 12 steps" in capsys.readouterr().out
    train(config, "--trainer.max_steps=14", resume="auto")
    assert (tmp_path / "run" / "final.ckpt").resolve().name == "step-00000014.ckpt"
    assert "trainer.max_steps 12 -> 14" in capsys.readouterr().out


@pytest.mark.usefixtures("trains")
def test_a_fresh_run_moves_the_old_one_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path)
    train(config)
    old = weights(tmp_path / "run")
    train(config, "--trainer.seed=2")
    assert str(tmp_path / "run-1") in capsys.readouterr().out
    assert_same(weights(tmp_path / "run-1"), old)
    assert not torch.equal(weights(tmp_path / "run")["norm.weight"], old["norm.weight"])


@pytest.mark.usefixtures("trains")
def test_the_rows_up_to_a_checkpoint_are_on_the_disk_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut could leave a checkpoint whose rows nobody writes again."""
    flushed: list[int] = []
    monkeypatch.setattr(
        "lm.training.logger.sync",
        lambda path: flushed.append(len(path.read_text().splitlines()) - 1),
    )
    monkeypatch.setattr(
        "lm.training.record.write_checkpoint",
        lambda path, *_: flushed.append(-step_of(path)) or write_checkpoint(path, *_),
    )
    train(config_file(tmp_path))
    # the rows of the steps, and of the validations at 0, 4 and 8
    assert flushed == [4, -3, 5, -4, 8, -6, 10, -8, 12, -9, 15, -12]


@pytest.mark.usefixtures("trains")
def test_a_run_that_came_to_no_checkpoint_begins_again_in_its_place(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two such starts leave no run-1 and no run-2, and nothing is twice in TensorBoard."""
    config, run = (
        config_file(tmp_path, logging={"every": 1, "sample_tokens": 8, "tensorboard": True}),
        tmp_path / "run",
    )
    accumulate = LanguageModel._accumulate

    def ended(self: LanguageModel, batch: dict[str, Any]) -> torch.Tensor:
        if self.step == 2:
            raise RuntimeError("the power went")
        return accumulate(self, batch)

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(LanguageModel, "_accumulate", ended)
            with pytest.raises(RuntimeError, match="the power went"):
                train(config, resume="auto")
        assert [row["step"] for row in metrics(run)] == ["0", "1", "2"]
    train(config, resume="auto")
    assert_same_run(straight, run)
    assert not [*tmp_path.glob("run-*")]
    events = EventAccumulator(str(run))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [*range(1, 13)]
    assert [event.step for event in events.Scalars("loss/val")] == [0, 4, 8, 12]


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("--model.n_layers=3", "model.n_layers"),
        ("--trainer.seed=2", "trainer.seed"),
        ("--trainer.batch_size=16", "trainer.batch_size"),
    ],
)
def test_another_run_cannot_be_resumed(
    straight: Path, tmp_path: Path, change: str, key: str
) -> None:
    config = config_file(tmp_path)
    train(config, ONE_STEP)
    with pytest.raises(ConfigError, match=key):
        train(config, change, resume="auto")


@pytest.mark.usefixtures("trains")
def test_a_run_goes_on_with_its_own_text_and_precision_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file(tmp_path)
    train(config, ONE_STEP)
    with (
        monkeypatch.context() as patched,
        pytest.raises(ConfigError, match="computes in fp32, this session would in bf16"),
    ):
        patched.setattr("lm.training.parts.choose_precision", lambda option, device: "bf16")
        train(config, resume="auto")
    with (tmp_path / "corpus.txt").open("a") as file:
        file.write("\nOne more paragraph.\n")
    with pytest.raises(ConfigError, match="the text is not the one"):
        train(config, resume="auto")


@pytest.mark.usefixtures("trains")
def test_a_new_run_from_old_weights(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    train(config)
    parent = tmp_path / "run" / "final.ckpt"
    train(
        config,
        f"--checkpoint.directory={tmp_path / 'child'}",
        "--optimizer.lr=1e-4",
        init_from=str(parent),
    )
    recorded = Checkpoint(tmp_path / "child" / "final.ckpt").meta["parent"]
    assert recorded["step"] == 12
    assert (
        recorded["manifest_sha256"] == json.loads((parent / "manifest.json").read_text())["sha256"]
    )
    assert evaluations(tmp_path / "child")[0]["loss"] == pytest.approx(
        evaluations(tmp_path / "run")[-1]["loss"], abs=1e-6
    )
    assert Checkpoint(tmp_path / "run" / "final.ckpt").meta["parent"] is None


@pytest.mark.usefixtures("trains")
def test_a_run_from_old_weights_that_was_killed_early_begins_again_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file(tmp_path)
    train(config)
    child, parent = (
        f"--checkpoint.directory={tmp_path / 'child'}",
        str(tmp_path / "run" / "final.ckpt"),
    )
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr("lm.training.callbacks.SaveCheckpoint._save", killed)
        train(config, child, init_from=parent)
    assert not list((tmp_path / "child").glob("*.ckpt"))
    train(config, child, resume="auto")
    straight = f"--checkpoint.directory={tmp_path / 'straight'}"
    train(config, straight, init_from=parent)
    assert Checkpoint(tmp_path / "child" / "final.ckpt").meta["parent"]["step"] == 12
    weights = [
        (tmp_path / name / "final.ckpt" / "model.safetensors").read_bytes()
        for name in ("child", "straight", "run")
    ]
    assert weights[0] == weights[1] != weights[2]


def killed(*_: object) -> None:
    raise RuntimeError("killed")


@pytest.mark.usefixtures("trains")
def test_a_loss_that_is_not_finite_stops_before_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model import Decoder

    forward, calls = Decoder.forward, []

    def broken(self: Decoder, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = forward(self, *args, **kwargs)
        calls.append(self.training)
        return out * float("nan") if sum(calls) == 7 else out  # the first micro-batch of step 4

    monkeypatch.setattr(Decoder, "forward", broken)
    with pytest.raises(NonFiniteError, match="step 4: loss nan") as stopped:
        train(config_file(tmp_path))
    assert stopped.value.exit_code == 4
    assert steps(tmp_path / "run") == [3]
    assert all(
        tensor.isfinite().all() for tensor in weights(tmp_path / "run", "last.ckpt").values()
    )


@pytest.mark.usefixtures("trains")
def test_early_stopping_counts_validations(tmp_path: Path) -> None:
    config = config_file(tmp_path, optimizer={"lr": 1.0, "warmup_steps": 0, "schedule": "constant"})
    train(
        config,
        "--trainer.validate_every=1",
        "--trainer.early_stopping=3",
        "--trainer.max_steps=500",
    )
    losses = [line["loss"] for line in evaluations(tmp_path / "run")]
    assert len(losses) < 500
    assert losses.index(min(losses)) == len(losses) - 4
    assert (tmp_path / "run" / "final.ckpt").resolve().name == f"step-{len(losses) - 1:08d}.ckpt"


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("scored", [False, True])
def test_killed_when_early_stopping_was_about_to_end_it(tmp_path: Path, scored: bool) -> None:
    """The kill comes before or after the result was written. If it was half written, its row in
    metrics.csv is there once.
    """
    config = config_file(tmp_path, optimizer={"lr": 1.0, "warmup_steps": 0, "schedule": "constant"})
    overrides = (
        "--trainer.validate_every=1",
        "--trainer.early_stopping=3",
        "--trainer.max_steps=500",
    )
    train(config, *overrides)
    run = tmp_path / "run"
    whole = steps(run), metrics(run), evaluations(run)
    (run / "final.ckpt").unlink()
    if not scored:
        lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
        (run / "evaluations.jsonl").write_text("".join(lines[:-1]))
    train(config, *overrides, resume="auto")
    assert (steps(run), metrics(run), evaluations(run)) == whole
    assert (run / "final.ckpt").exists()


@pytest.mark.usefixtures("trains")
def test_a_budget_in_tokens(tmp_path: Path) -> None:
    train(config_file(tmp_path), "--trainer.max_steps=null", "--trainer.max_tokens=700")
    assert steps(tmp_path / "run")[-1] == 700 // (8 * 16)


@pytest.mark.usefixtures("trains")
def test_a_run_of_so_many_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its length is known when the text is open. A resumed run finds the same one, from the text or
    from its checkpoint; no file of settings holds it.
    """
    config, run = config_file(tmp_path), tmp_path / "run"
    passes = ["--trainer.max_steps=null", "--trainer.max_epochs=0.8"]
    train(config, *passes, "--checkpoint.directory", str(tmp_path / "straight"))
    printed = capsys.readouterr().out
    one = int(re.search(r"one is ([\d,]+) steps", printed)[1])  # type: ignore[index]
    last = steps(tmp_path / "straight")[-1]
    meta = json.loads((tmp_path / "straight" / "final.ckpt" / "meta.json").read_text())
    assert last == math.ceil(0.8 / meta["epochs_per_step"]) and 2 < last < one
    assert meta["config"]["trainer"]["max_steps"] is None
    assert f"run: {last} steps" in printed and f"step {last}/{last}" in printed
    assert float(metrics(tmp_path / "straight")[-2]["lr"]) == pytest.approx(3e-4), "decayed"

    train(config, *passes, ONE_STEP)
    train(config, *passes, resume="auto")
    assert_same_run(tmp_path / "straight", run)
    capsys.readouterr()
    train(config, *passes, resume="auto")
    printed = capsys.readouterr().out
    assert f"finished its {last} steps" in printed
    assert "data: train" not in printed, "the text is not opened to know it"
    train(config, passes[0], "--trainer.max_epochs=0.9", resume="auto")
    assert steps(run)[-1] == math.ceil(0.9 / meta["epochs_per_step"]) > last
    assert "trainer.max_epochs 0.8 -> 0.9 (from here on" in capsys.readouterr().out


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize(
    ("limits", "last"), [((12, 0.7), 6), ((3, 0.7), 3)], ids=["passes", "steps"]
)
def test_the_smallest_limit_ends_the_run(
    tmp_path: Path, limits: tuple[int, float], last: int
) -> None:
    train(
        config_file(tmp_path),
        f"--trainer.max_steps={limits[0]}",
        f"--trainer.max_epochs={limits[1]}",
    )
    assert steps(tmp_path / "run")[-1] == last


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_compiled_and_plain_runs_share_checkpoints(
    optimizer: str, tmp_path: Path, early_gradients: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name contains _orig_mod., and each kind of run continues the other's. The compiler's back
    end is replaced for speed.
    """
    compiled = []

    def compile_with_nothing(module: torch.nn.Module) -> None:
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    (tmp_path / "plain").mkdir()
    train(config_file(tmp_path / "plain"), *OPTIMIZERS[optimizer])
    monkeypatch.setattr(torch.nn.Module, "compile", compile_with_nothing)
    config = config_file(tmp_path)
    for session in range(3):
        keys = f"--trainer.compile={'off' if session == 1 else 'on'}", *OPTIMIZERS[optimizer]
        train(config, *keys, *([ONE_STEP] if session < 2 else []), resume="auto")
    assert len(compiled) == 2
    plain = weights(tmp_path / "plain" / "run")
    assert weights(tmp_path / "run").keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("trains")
def test_what_cannot_compile_runs_uncompiled_and_says_so(
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def compile_badly(module: torch.nn.Module) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no compiler here")

        module._compiled_call_impl = fail

    monkeypatch.setattr(torch.nn.Module, "compile", compile_badly)
    train(config_file(tmp_path), "--trainer.compile=on")
    assert "runs uncompiled: RuntimeError: no compiler here" in capsys.readouterr().out
    assert_same(weights(straight), weights(tmp_path / "run"))
