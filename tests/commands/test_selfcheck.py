"""Every check passes for a correct decoder and fails for one with exactly that defect: python -m
pytest tests/commands/test_selfcheck.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lm.checks import selfchecks
from lm.checks.subject import Subject, shortened
from lm.commands import load_config
from lm.config.schema.finetune import LoraConfig
from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.objectives import NEXT_TOKEN, NextToken, Preference
from lm.optim.optimizers import make_optimizer
from lm.surgery.lora import adapters_off, add_adapters
from lm.system.errors import CheckFailed
from lm.training.forecast import Trial
from model import Decoder
from tests.support.runs import ROOT, config_file, write_trained
from tools.selfcheck import CHECKS, line, main, parts_of, resume

QUICK = tuple(CHECKS)[:-1]  # all but resume


def subject(folder: Path, *overrides: str, **changes: Any) -> Subject:
    """Return the tests' small run with another decoder or objective."""
    parts = parts_of(
        load_config(
            config_file(folder),
            ["--model.tie_embeddings=false", "--data.document_mask=true", *overrides],
        )
    )
    if "make_decoder" in changes:
        shape = parts.config.with_vocabulary(parts.tokenizer.vocab_size).model
        changes["make_decoder"] = lambda make=changes["make_decoder"]: make(shape)
    return Subject(dataclasses.replace(parts, **changes))


def red(tried: Subject) -> set[str]:
    return {name for name in QUICK if tried.check(name).ok is False}


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["--model.tie_embeddings=true", "--model.residual_init=zero", "--data.document_mask=false"],
        [
            "--model.positions=learned",
            "--model.norm=layernorm",
            "--model.mlp=gelu",
            "--model.bias=true",
            "--model.init_std=0.02",
        ],
        [
            "--model.qk_norm=true",
            "--model.n_kv_heads=1",
            "--model.gradient_checkpointing=true",
            "--data.rows=document",
            "--model.init_std=0.05",
        ],
        ["--data.sequence_length=2", "--model.init_std=0.05"],
        ["--model.d_model=8", "--optimizer.lr=1e-4"],
    ],
    ids=["llama", "tied", "gpt2", "qwen3", "shortest", "narrow"],
)
def test_a_right_decoder_passes(overrides: list[str], tmp_path: Path) -> None:
    flags = {flag.partition("=")[0] for flag in overrides}
    rest = [
        flag
        for flag in ("--model.tie_embeddings=false", "--data.document_mask=true")
        if flag.partition("=")[0] not in flags
    ]
    tried = Subject(parts_of(load_config(config_file(tmp_path), [*rest, *overrides])))
    results = {name: tried.check(name) for name in QUICK}
    assert [name for name, result in results.items() if result.ok is False] == [], results
    assert "largest change 0 in" in results["future"].figure
    if "--data.document_mask=false" in overrides:
        assert results["documents"] == (None, "they do, by choice: data.document_mask is false", "")


class SeesTheNextToken(Decoder):
    def _mask(
        self, input_ids: Tensor, document_ids: Tensor | None, start: int, padding: Tensor | None
    ) -> Tensor | None:
        mask = super()._mask(input_ids, document_ids, start, padding)
        if document_ids is None:
            return mask
        length, same = input_ids.shape[1], document_ids[:, :, None] == document_ids[:, None, :]
        return (torch.ones(length, length, dtype=torch.bool).tril(1) & same)[:, None]


class DoublesAnOffset(Decoder):
    def _positions(
        self, input_ids: Tensor, document_ids: Tensor | None, start: int, padding: Tensor | None
    ) -> Tensor:
        return super()._positions(input_ids, document_ids, 2 * start, padding)


class ForgetsPadding(Decoder):
    def _mask(
        self, input_ids: Tensor, document_ids: Tensor | None, start: int, padding: Tensor | None
    ) -> Tensor | None:
        return super()._mask(input_ids, document_ids, start, None)


class StartsTooLarge(Decoder):
    def initialise(self) -> None:
        self.config = self.config.model_copy(update={"init_std": 10 * self.config.init_std})
        super().initialise()


class NeverUsesOne(Decoder):
    def __init__(self, config: Any):
        super().__init__(config)
        self.gate = nn.Parameter(torch.ones(3))


class KeepsOneFrozen(Decoder):
    def __init__(self, config: Any):
        super().__init__(config)
        self.norm.requires_grad_(False)


class IgnoresDocuments(Decoder):
    def _mask(
        self, input_ids: Tensor, document_ids: Tensor | None, start: int, padding: Tensor | None
    ) -> Tensor | None:
        return super()._mask(input_ids, None, start, padding)


class CountsThrough(Decoder):
    """Positions in a row continue across documents, where they should start anew. Only a learned
    table shows it.
    """

    def _positions(
        self, input_ids: Tensor, document_ids: Tensor | None, start: int, padding: Tensor | None
    ) -> Tensor:
        return super()._positions(input_ids, None, start, padding)


class Deaf(Decoder):
    def forward(self, input_ids: Tensor, *rest: Any, **more: Any) -> Tensor:
        return super().forward(torch.zeros_like(input_ids), *rest, **more)


class BurstsBehindPadding(Decoder):
    """Padding gives NaN, as softmax does for a token that may look at nothing."""

    def forward(self, input_ids: Tensor, *rest: Any, **more: Any) -> Tensor:
        logits = super().forward(input_ids, *rest, **more)
        return (
            logits * math.nan if "cache" in more and more["cache"].padding is not None else logits
        )


class Bursts(Decoder):
    def forward(self, input_ids: Tensor, *rest: Any, **more: Any) -> Tensor:
        return super().forward(input_ids, *rest, **more) * math.nan


class ShufflesLabels(NextToken):
    """The labels are shuffled anew each time, so nothing can be learned."""

    def total(self, decoder: nn.Module, rows: Any) -> Tensor:
        labels = rows["labels"]
        return super().total(
            decoder, {**rows, "labels": labels[:, torch.randperm(labels.shape[1])]}
        )


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    ("make", "broken"),
    [
        (SeesTheNextToken, {"future"}),
        (DoublesAnOffset, {"cache"}),
        (ForgetsPadding, {"cache"}),
        (StartsTooLarge, {"loss"}),
        (NeverUsesOne, {"gradients"}),
        (KeepsOneFrozen, {"gradients"}),
        (IgnoresDocuments, {"documents"}),
        (BurstsBehindPadding, {"cache"}),
        (Bursts, set(QUICK)),
    ],
)
def test_a_broken_decoder_fails_in_just_that(
    make: Callable[[Any], Decoder], broken: set[str], tmp_path: Path
) -> None:
    assert red(subject(tmp_path, make_decoder=make)) == broken


def test_positions_that_do_not_begin_anew_are_seen(tmp_path: Path) -> None:
    assert red(subject(tmp_path, "--model.positions=learned", make_decoder=CountsThrough)) == {
        "documents"
    }


def test_a_mask_that_is_wrong_without_documents_is_seen_with_them_on(tmp_path: Path) -> None:
    class Wrong(Decoder):
        def _mask(
            self, input_ids: Tensor, document_ids: Tensor | None, start: int, padding: Tensor | None
        ) -> Tensor | None:
            mask = super()._mask(input_ids, document_ids, start, padding)
            return (
                torch.ones(2 * (input_ids.shape[1],), dtype=torch.bool).tril(1)
                if mask is None
                else mask
            )

    assert "future" in red(subject(tmp_path, make_decoder=Wrong))


def test_a_zero_start_hides_no_leak(tmp_path: Path) -> None:
    """If residual_init is zero, the first weights look at no other token and would pass with any
    mask.
    """
    tried = subject(tmp_path, "--model.residual_init=zero", make_decoder=SeesTheNextToken)
    first = {key: value[:1] for key, value in tried.rows.items()}
    assert selfchecks.future(tried.decoder().eval(), first).ok, "not drawn anew"
    assert not tried.check("future").ok


@pytest.mark.usefixtures("takes_seconds")
def test_labels_that_mean_nothing_are_not_learned(tmp_path: Path) -> None:
    assert red(subject(tmp_path, objective=ShufflesLabels())) == {"heart"}


def test_a_decoder_that_does_not_read_fails(tmp_path: Path) -> None:
    assert subject(tmp_path, make_decoder=Deaf).check("future")[:2] == (
        False,
        "other tokens change no logit at all, not even their own",
    )


def test_a_large_model_gets_no_more_than_its_time(tmp_path: Path) -> None:
    tried = subject(tmp_path)
    decoder = tried.decoder()
    optimizer = make_optimizer(decoder, tried.config.optimizer, "fp32")
    result = selfchecks.overfit_one_batch(
        decoder,
        optimizer,
        {key: value[:1] for key, value in tried.rows.items()},
        NEXT_TOKEN,
        share=0.2,
        seconds=0,
    )
    assert result.ok is None
    assert "in 1 steps" in result.figure
    assert "undecided after its limit of 0 s" in result.figure


@pytest.mark.usefixtures("takes_seconds")
def test_the_usual_initialisation_is_right_at_any_width_and_few_labels_prove_nothing(
    tmp_path: Path,
) -> None:
    wide = subject(
        tmp_path,
        "--model.init_std=0.02",
        "--model.d_model=2560",
        "--model.n_layers=1",
        "--model.d_ff=16",
        "--model.n_kv_heads=1",
    )
    losses = [
        selfchecks.initial_loss(wide.parts.make_decoder(), wide.rows, NEXT_TOKEN, fresh=True)
        for _ in range(5)
    ]
    assert all(result.ok for result in losses), losses
    assert any(float(result.figure.split()[0]) > 1.05 * math.log(260) for result in losses)
    few = subject(tmp_path, "--model.init_std=0.1", "--data.sequence_length=2")
    rows = {key: value[:1] for key, value in few.rows.items()}
    results = [
        selfchecks.initial_loss(few.parts.make_decoder(), rows, NEXT_TOKEN, fresh=True)
        for _ in range(50)
    ]
    assert all(result.ok for result in results)
    assert any(float(result.figure.split()[0]) > 1.05 * math.log(260) for result in results)


def test_a_parameter_that_the_optimiser_lacks_is_found(tmp_path: Path) -> None:
    tried = subject(tmp_path)
    decoder = tried.decoder()
    optimizer = torch.optim.AdamW(
        [parameter for name, parameter in decoder.named_parameters() if name != "norm.weight"]
    )
    result = selfchecks.gradients(decoder, optimizer, tried.rows, NEXT_TOKEN)
    assert (result.ok, result.figure.split(",")[0]) == (False, "none for norm.weight")


def test_preferences_begin_at_ln_2(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tried = subject(tmp_path)
    decoder = tried.decoder()
    add_adapters(decoder, LoraConfig(rank=4))
    rows = {
        "input_ids": torch.randint(0, 260, (2, 16)),
        "document_ids": torch.arange(16).div(4, rounding_mode="floor").expand(2, 16),
    }
    rows["labels"] = rows["input_ids"].roll(-1, dims=1)
    objective = Preference(0.1, adapters_off)
    result = selfchecks.initial_loss(decoder, rows, objective, fresh=False)
    assert (result.ok, result.figure) == (True, "0.693 nats, ln 2 is 0.693")
    optimizer = make_optimizer(decoder, OptimizerConfig(lr=1e-2), "fp32")
    assert selfchecks.gradients(decoder, optimizer, rows, objective, adapters=True).ok
    assert selfchecks.overfit_one_batch(decoder, optimizer, rows, objective, share=0.5).ok
    nn.init.normal_(decoder.layers[0].attention.q_proj.lora_B, std=3)
    assert selfchecks.initial_loss(decoder, rows, objective, fresh=False).ok is False


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the command in this process; the check `resume` starts processes of its own."""
    monkeypatch.setattr(sys, "argv", ["selfcheck", *arguments])
    main()


@pytest.mark.usefixtures("starts_processes")
def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(monkeypatch, "--config", str(config_file(tmp_path)), "--data.document_mask=true")
    forecast, *lines = capsys.readouterr().out.splitlines()
    assert "this will take about" in forecast
    assert [text[:5] for text in lines] == ["ok   "] * 7
    assert lines[-1].startswith(
        "ok   a resume is exact: identical: the batches and numbers of 4 steps, every tensor of "
    )
    assert not (tmp_path / "run").exists(), "the run's own folder is left alone"


@pytest.mark.usefixtures("takes_seconds")
def test_a_finetuning_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base is untrained, so its loss is that of chance and only this check fails."""
    base = config_file(tmp_path)
    parts = parts_of(load_config(base))
    torch.manual_seed(0)
    trained = write_trained(
        tmp_path, parts.make_decoder(), parts.tokenizer, parts.config.model_dump(mode="json")
    )
    tuning = {"base": str(trained), "method": "lora"}
    values = json.loads(
        json.dumps(
            {
                "finetune": tuning,
                "trainer": {"max_steps": 5, "batch_size": 4},
                "optimizer": {"warmup_steps": 1},
            }
        )
    )
    values["data"] = {
        "source": {"format": "txt", "files": str(tmp_path / "corpus.txt")},
        "val_fraction": 0.3,
        "cache_dir": str(tmp_path),
    }
    (tmp_path / "tune.yaml").write_text(json.dumps(values))
    with pytest.raises(CheckFailed, match=r"^1 of 6 checks failed: loss$") as caught:
        run_command(
            monkeypatch,
            "--config",
            str(tmp_path / "tune.yaml"),
            *(f"--only={name}" for name in QUICK),
            "--json",
        )
    assert caught.value.exit_code == 6
    found = {each["check"]: each["ok"] for each in json.loads(capsys.readouterr().out)}
    assert found == dict.fromkeys(QUICK, True) | {"documents": None, "loss": False}


@pytest.mark.long
@pytest.mark.usefixtures("starts_processes")
def test_a_resume_that_forgets_the_optimiser_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from lm.checkpoints import train_state as t\nwhole = t.TrainState.restore\n"
        "def restore(self, optimizer, average):\n    state = whole(self, optimizer, average)\n   "
        " optimizer.state.clear()\n    return state\nt.TrainState.restore = restore\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CheckFailed, match=r"^1 of 1 checks failed: resume$"):
        run_command(monkeypatch, "--config", str(config_file(tmp_path)), "--only=resume")
    _, verdict, where = capsys.readouterr().out.splitlines()
    assert verdict.startswith(
        "FAIL a resume is exact: not identical; the first difference is in step "
    )
    assert where.startswith("     look at lm/checkpoints/train_state.py")


@pytest.mark.usefixtures("starts_processes")
def test_a_signal_leaves_nothing_behind(tmp_path: Path) -> None:
    """The command, the proof that it starts and the run that this one starts are three processes,
    and only the first gets the signal.
    """
    config, temporary = config_file(tmp_path), tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "tools.selfcheck", "--config", str(config), "--only=resume"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    run = ""
    while process.poll() is None and not run:
        run = "".join(
            path.read_text().strip() for path in temporary.glob("resume-proof-*/straight/.lock")
        )
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert (process.returncode, said.splitlines()[-1]) == (
        143,
        "stopped by SIGTERM; what it had made so far is removed",
    )
    assert [*temporary.iterdir()] == []
    assert run.isdigit() and not Path(f"/proc/{run}").exists()


def test_a_run_of_one_step_has_nothing_to_resume(tmp_path: Path) -> None:
    assert (
        resume(
            load_config(
                config_file(tmp_path, trainer={"max_steps": 1}, optimizer={"warmup_steps": 0})
            ).config
        ).ok
        is None
    )


def test_text_that_is_prepared_first_is_not_counted_for_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = subject(tmp_path)
    rows, now = tried.rows, time.perf_counter()
    del tried.rows

    def slowly(self: Subject) -> dict[str, Tensor]:
        nonlocal later
        later = 1e6
        return rows

    later = 0.0
    monkeypatch.setattr(Subject, "rows", property(slowly))
    monkeypatch.setattr("lm.checks.subject.time.perf_counter", lambda: now + later)
    monkeypatch.setattr("lm.checks.subject.try_out", lambda *_: Trial(0, 1.0, 1.0))
    assert "this will take about 1 min 48 s" in tried.forecast(["resume"], now)


def test_colour_is_for_terminals() -> None:
    result = selfchecks.Result(False, "3", "there")
    assert (
        line("cache", result, False)
        == "FAIL the KV cache gives the same logits as a full forward pass: 3\n     look at there"
    )
    assert line("cache", result, True).startswith("\x1b[31mFAIL\x1b[0m the KV cache")


def test_a_shortened_run_keeps_what_it_is(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path), ["--trainer.batch_size=32"]).config
    short = shortened(config)
    assert (
        short.trainer.batch_size,
        short.trainer.accumulation,
        short.trainer.validation_rows,
    ) == (8, 2, 4)
    assert (short.model, short.data, short.optimizer) == (
        config.model,
        config.data,
        config.optimizer,
    )
