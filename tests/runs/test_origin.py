"""Test where a run starts from, and which settings may change when it goes on: python -m pytest
tests/runs/test_origin.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lm.checkpoints.folder import Checkpoint, step_directories, step_name, step_of
from lm.checkpoints.meta import Meta, read_meta
from lm.checkpoints.write import point
from lm.config.reader import Loaded
from lm.config.schema.config import Config
from lm.runs.changes import HARMLESS, INEXACT, SETTLED_LATER, changes, machine_changes
from lm.runs.folder import RunFolder
from lm.runs.origin import Origin, find_origin, is_finished, make_room
from lm.runs.results import RecordedValidation, read_validations
from lm.system.errors import CheckpointError, ConfigError
from lm.system.mark import set_mark
from tests.support.faults import ROOT, save, sealed

INEXACT_END = " (from here on the weights are not bit for bit those of an unchanged run)"


def config(**overrides: Any) -> Config:
    """Return a valid configuration; `trainer__max_steps=3` sets a key."""
    values: dict[str, Any] = {
        "data": {"source": {"format": "txt", "files": "corpus.txt"}},
        "trainer": {"max_steps": 1000, "max_minutes": 60.0},
    }
    for key, value in overrides.items():
        *sections, last = key.split("__")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return Config.model_validate(values)


def trained(folder: Path, *steps: int, **meta: Any) -> Path:
    """Return a run's folder with checkpoints at `steps`, as training leaves it."""
    run = RunFolder(folder)
    saved_config = config().model_dump(mode="json")
    for step in steps:
        path = save(
            folder, step, f"weights of {step}".encode(), config=saved_config, parent=None, **meta
        )
        point(folder, "last.ckpt", path)
        run.record(
            RecordedValidation(step, Checkpoint(path).sha256, 5 - step / 1000, 1.0, 1.0, 1, 1.0)
        )
    run.close()
    return folder


class Started:
    """The decision and the messages of `find_origin`, with the folder locked as in train.py."""

    def __init__(
        self,
        folder: Path,
        resume: str | None = None,
        init_from: str | None = None,
        now: Config | None = None,
    ):
        self.said: list[str] = []
        run = RunFolder(folder)
        try:
            self.origin = find_origin(
                Loaded(now or config(), {}), folder, resume, init_from, self.said.append
            )
            if (moved := make_room(run, self.origin, now or config())) is not None:
                self.said.append(moved)
        finally:
            run.close()


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in step_directories(folder)]


def refusal(kind: type[Exception], folder: Path, **arguments: Any) -> str:
    before = sorted(
        path.relative_to(folder.parent) for path in folder.parent.rglob("*") if path.name != ".lock"
    )
    with pytest.raises(kind) as caught:
        Started(folder, **arguments)
    after = sorted(
        path.relative_to(folder.parent) for path in folder.parent.rglob("*") if path.name != ".lock"
    )
    assert after == before, "what is refused changes nothing"
    return str(caught.value)


# A fresh start


def test_a_fresh_start(tmp_path: Path) -> None:
    started = Started(tmp_path / "run")
    assert started.origin == Origin() and started.said == []
    assert (started.origin.path, started.origin.step, started.origin.parent) == (None, 0, None)


def test_a_fresh_start_moves_a_run_aside_and_says_so(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 500)
    started = Started(folder)
    assert started.origin == Origin() and len(started.said) == 1
    assert started.said[0].startswith(
        f"{folder} held another run (1 checkpoint, the last at step 500); it is now {folder}-1 "
    )


def test_processes_other_than_the_first_only_look(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 500, 600)
    for resume in (None, "auto", str(folder / "step-00000500.ckpt")):
        find_origin(Loaded(config(), {}), folder, resume, None, print)
    assert steps(folder) == [500, 600] and not (tmp_path / "run-1").exists()


# --resume auto


def test_auto_with_nothing_there_starts_from_nothing(tmp_path: Path) -> None:
    started = Started(tmp_path / "run", resume="auto")
    assert started.origin == Origin(again=True)
    assert started.said == [
        f"{tmp_path / 'run'} holds no checkpoint to resume: starting from step 0"
    ]


def test_auto_moves_logs_aside_that_may_be_of_another_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.csv").write_text("")
    set_mark(folder)
    started = Started(folder, resume="auto")
    assert (
        started.origin == Origin(again=True)
        and started.said[1]
        == f"{folder} held another run, without checkpoints; it is now {folder}-1"
    )


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["not UTF-8", "a folder"])
def test_an_unreadable_name_of_the_start_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Without it a run would silently begin again from random weights."""
    folder = tmp_path / "run"
    file = folder / "init-from.txt"
    file.parent.mkdir()
    set_mark(folder)
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    message = refusal(CheckpointError, folder, resume="auto")
    assert message.startswith(f"{file} cannot be read: ")
    assert "remove it and give --init-from (or finetune.base) again" in message


def test_a_folder_is_not_resumed_from_its_best_checkpoint(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 500, 600)
    message = refusal(ConfigError, folder, resume=str(folder))
    assert f"this is a run's folder; write --resume auto --checkpoint.directory {folder}" in message
    assert step_directories(folder)[-1].name == "step-00000600.ckpt"


def test_auto_takes_the_newest(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 500, 600)
    point(folder, "last.ckpt", folder / "step-00000500.ckpt")
    started = Started(folder, resume="auto")
    assert started.origin.resume == started.origin.path == folder / "step-00000600.ckpt"
    assert (
        started.origin.step == 600
        and started.origin.meta == read_meta(Checkpoint(folder / "step-00000600.ckpt"))
        and started.said == []
    )


def test_auto_passes_over_what_is_damaged_and_says_so(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 400, 500, 600)
    (folder / "step-00000600.ckpt" / "model.safetensors").write_bytes(b"damaged")
    (folder / "step-00000500.ckpt" / "manifest.json").unlink()
    started = Started(folder, resume="auto")
    assert started.origin.step == 400
    assert started.said == [
        (
            f"passed over: {folder}/step-00000600.ckpt/model.safetensors is damaged: its content is"
            " not what was saved"
        ),
        f"passed over: {folder}/step-00000500.ckpt/manifest.json is missing",
        f"2 later checkpoints and 2 later results moved to {folder}/after-step-00000400-1",
    ]
    assert (folder / "last.ckpt").readlink() == Path("step-00000400.ckpt")


@pytest.mark.parametrize(
    ("saved", "count"), [((500,), "its one checkpoint is"), ((500, 600), "its 2 checkpoints are")]
)
def test_auto_with_nothing_whole_is_an_error(
    tmp_path: Path, saved: tuple[int, ...], count: str
) -> None:
    folder = trained(tmp_path / "run", *saved)
    for path in step_directories(folder):
        (path / "train_state.pt").unlink()
    assert (
        refusal(CheckpointError, folder, resume="auto")
        == f"{folder}: {count} damaged; train again without --resume (what is there is kept, in a"
        " folder beside it)"
    )


# --resume PATH


def test_a_named_one_rewinds_the_run(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 400, 500, 600)
    started = Started(folder, resume=str(folder / "step-00000500.ckpt"))
    assert started.origin.resume == folder / "step-00000500.ckpt" and steps(folder) == [400, 500]
    assert started.said == [
        f"1 later checkpoint and 1 later result moved to {folder}/after-step-00000500-1"
    ]


def test_a_link_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = trained(Path("run"), 400, 500)
    assert Started(folder, resume="run/best.ckpt").origin.resume == folder / "step-00000500.ckpt"


@pytest.mark.parametrize("file", ["model.safetensors", "train_state.pt", "meta.json"])
def test_a_named_one_that_is_damaged_is_an_error_without_a_way_round(
    tmp_path: Path, file: str
) -> None:
    folder = trained(tmp_path / "run", 400, 500)
    with (folder / "step-00000500.ckpt" / file).open("ab") as stream:
        stream.write(b" ")
    assert f"{file} is damaged" in refusal(
        CheckpointError, folder, resume=str(folder / "step-00000500.ckpt")
    )


def test_a_named_one_that_is_missing_is_an_error(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 400)
    path = folder / "step-00000500.ckpt"
    assert (
        refusal(CheckpointError, folder, resume=str(path))
        == f"{path}: no such checkpoint; {folder} holds step-00000400.ckpt"
    )


def test_a_named_one_of_another_run_is_an_error_that_knows_the_way(tmp_path: Path) -> None:
    other = trained(tmp_path / "other", 500) / "step-00000500.ckpt"
    trained(tmp_path / "run", 100)
    assert (
        refusal(ConfigError, tmp_path / "run", resume=str(other))
        == f"command line: --resume {other}: that run is in {tmp_path / 'other'}, but"
        f" checkpoint.directory is {tmp_path / 'run'}; write --checkpoint.directory"
        f" {tmp_path / 'other'} to continue it, or --init-from {other} to start a new run from"
        " its weights"
    )


# What may change


def test_an_unchanged_configuration_says_nothing(tmp_path: Path) -> None:
    assert (
        list(changes(config(), Meta(tmp_path, {"config": config().model_dump(mode="json")}))) == []
    )
    given = config(model__vocab_size=320)
    assert list(changes(given, Meta(tmp_path, {"config": given.model_dump(mode="json")}))) == []
    through_a_file = json.loads(json.dumps(config().model_dump(mode="json")))
    assert list(changes(config(), Meta(tmp_path, {"config": through_a_file}))) == []


def test_refused_changes_are_told_all_at_once(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 500)
    now = config(
        model__n_layers=8,
        model__vocab_size=512,
        tokenizer__name="gpt2",
        data__val_fraction=0.1,
        trainer__seed=7,
        trainer__batch_size=64,
        optimizer__lr=1e-4,
    )
    message = refusal(ConfigError, folder, resume="auto", now=now)
    path = folder / "step-00000500.ckpt"
    assert message.splitlines() == [
        "model.vocab_size: the run to resume has null, got 512",
        "model.n_layers: the run to resume has 4, got 8",
        'tokenizer.name: the run to resume has "byte", got "gpt2"',
        "data.val_fraction: the run to resume has 0.05, got 0.1",
        "trainer.seed: the run to resume has 1337, got 7",
        "trainer.batch_size: the run to resume has 32, got 64",
        (
            f"write what it has to resume it, or --init-from {path} --checkpoint.directory NEW to"
            " start a new run from its weights"
        ),
    ]


def test_another_kind_of_source_and_a_validation_of_its_own(tmp_path: Path) -> None:
    now = config(
        data__source__format="jsonl",
        data__validation={"format": "txt", "files": "val.txt"},
        model__n_kv_heads=2,
    )
    with pytest.raises(ConfigError) as caught:
        list(changes(now, Meta(tmp_path, {"config": config().model_dump(mode="json")})))
    lines = str(caught.value).splitlines()
    assert 'data.source.format: the run to resume has "txt", got "jsonl"' in lines
    assert 'data.source.unit: the run to resume has "paragraph", got nothing' in lines
    assert 'data.source.text_key: the run to resume has nothing, got "text"' in lines
    assert 'data.validation.format: the run to resume has nothing, got "txt"' in lines
    assert "model.n_kv_heads: the run to resume has null, got 2" in lines


RATES_OF_GROUPS = ("optimizer.embedding_lr", "optimizer.head_lr")


@pytest.mark.parametrize("name", RATES_OF_GROUPS)
def test_a_rate_may_change_but_neither_come_nor_go(tmp_path: Path, name: str) -> None:
    """The checkpoint's groups of weights follow from the rates that are not null."""
    key = name.replace(".", "__")
    configs = {rate: config(**{key: rate}, model__tie_embeddings=False) for rate in (None, 1, 2)}
    stored = {
        rate: Meta(tmp_path, {"config": run.model_dump(mode="json")})
        for rate, run in configs.items()
    }
    [line] = changes(configs[2], stored[1])
    assert line == f"changed since {tmp_path.name}: {name} 1.0 -> 2.0{INEXACT_END}"
    for before, after in ((None, 1), (1, None)):
        with pytest.raises(ConfigError, match=f"^{name}: the run to resume has "):
            list(changes(configs[after], stored[before]))


CHANGES = {  # every changeable key -> another value than the default's
    "model__kernels": "fused",
    "optimizer__lr": 3e-5,
    "optimizer__muon_lr": 0.03,
    "optimizer__muon_momentum": 0.9,
    "optimizer__muon_momentum_warmup": 20,
    "optimizer__schedule": "linear",
    "optimizer__schedule_by": "time",
    "optimizer__warmup_steps": 7,
    "optimizer__final_lr_fraction": 0.5,
    "optimizer__decay_fraction": 0.5,
    "optimizer__weight_decay": 0.2,
    "optimizer__cautious_decay": True,
    "optimizer__betas": (0.8, 0.9),
    "optimizer__eps": 1e-6,
    "optimizer__grad_clip": 0.5,
    "optimizer__ema_decay": 0.9,
    "trainer__max_steps": 2000,
    "trainer__max_tokens": 10**9,
    "trainer__max_epochs": 2.5,
    "trainer__max_minutes": 3.5,
    "trainer__on_nonfinite": "skip",
    "trainer__nonfinite_limit": 7,
    "trainer__micro_batch_size": 4,
    "trainer__device": "cpu",
    "trainer__devices": 2,
    "trainer__num_nodes": 2,
    "trainer__strategy": "fsdp",
    "trainer__deterministic": True,
    "trainer__compile": "off",
    "trainer__threads": 3,
    "trainer__validate_every": 7,
    "trainer__validation_rows": 7,
    "trainer__early_stopping": 7,
    "checkpoint__directory": "elsewhere",
    "checkpoint__save_every": 7,
    "checkpoint__keep": 7,
    "logging__every": 7,
    "logging__tensorboard": False,
    "logging__sample_prompt": "Once",
    "logging__sample_tokens": 7,
    "logging__sample_temperature": 0.5,
    "data__on_bad_row": "skip",
    "data__cache_dir": "elsewhere",
    "data__workers": 2,
    "model__gradient_checkpointing": True,
}
EXACT = {
    "trainer__on_nonfinite",
    "trainer__nonfinite_limit",
    "trainer__max_minutes",
    "trainer__validate_every",
    "trainer__early_stopping",
}


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("key", CHANGES)
def test_allowed_changes_are_said_and_where_exactness_ends(key: str, tmp_path: Path) -> None:
    stored = config().model_dump(mode="json")
    said = list(
        changes(
            config(**{key: CHANGES[key]}), Meta(tmp_path / "step-00000500.ckpt", {"config": stored})
        )
    )
    section, name = key.split("__")
    old, new = json.dumps(stored[section][name]), json.dumps(CHANGES[key])
    inexact = section == "optimizer" or key == "model__kernels"
    inexact = inexact or (section == "trainer" and key not in EXACT)
    line = (
        f"changed since step-00000500.ckpt: {section}.{name} {old} -> {new}{INEXACT_END * inexact}"
    )
    assert said == ([] if f"{section}.{name}" in SETTLED_LATER else [line])


def test_a_new_key_of_the_schema_is_decided_on_here() -> None:
    """Every key that is not known to be harmless makes it another run."""
    changeable, refused = {key.replace("__", ".") for key in CHANGES}, set()
    for section, keys in config().model_dump().items():
        for key in keys or ():  # train.py's configuration has no finetune section
            if f"{section}.{key}" not in changeable:
                refused.add(f"{section}.{key}")
    hashed = {
        "data.source.files",
        "data.source.parts[].source.files",
        "data.validation.files",
        "finetune.base",
    }
    # these take effect after the training
    reported = {f"finetune.{key}" for key in ("choices", "report_prompts", "report_tokens")}
    assert hashed | reported < {*HARMLESS}
    named = {name for name in HARMLESS + INEXACT if "." in name} - hashed - reported
    changeable |= {*RATES_OF_GROUPS}
    assert named == {key for key in changeable if key.split(".")[0] not in HARMLESS}
    assert {key for key in refused - changeable if key.startswith(("optimizer", "trainer"))} == {
        "optimizer.name",
        "trainer.seed",
        "trainer.batch_size",
        "trainer.precision",
    }


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [("auto", "fp32", True), ("bf16", "auto", True), ("fp32", "bf16", False)],
)
def test_precision_may_be_named_but_not_changed(
    tmp_path: Path, old: str, new: str, allowed: bool
) -> None:
    """`machine_changes` later compares the precision that `auto` selects with the checkpoint. Its
    advice must not be refused here.
    """
    stored = config(trainer__precision=old).model_dump(mode="json")
    if allowed:
        assert list(
            changes(config(trainer__precision=new), Meta(tmp_path / "x", {"config": stored}))
        ) == [f'changed since x: trainer.precision "{old}" -> "{new}"']
    else:
        with pytest.raises(
            ConfigError, match=r'^trainer\.precision: the run to resume has "fp32", got "bf16"'
        ):
            list(changes(config(trainer__precision=new), Meta(tmp_path, {"config": stored})))


def test_a_key_that_is_newer_than_the_checkpoint_has_its_default(tmp_path: Path) -> None:
    stored = config().model_dump(mode="json")
    del stored["model"]["qk_norm"], stored["logging"]
    assert list(changes(config(), Meta(tmp_path, {"config": stored}))) == []
    with pytest.raises(ConfigError, match=r"model\.qk_norm: the run to resume has false, got true"):
        list(changes(config(model__qk_norm=True), Meta(tmp_path, {"config": stored})))


@pytest.mark.parametrize(
    "stored", [{}, {"trainer": 3}, config().model_dump(mode="json") | {"later": 1}]
)
def test_a_stored_configuration_of_another_version(tmp_path: Path, stored: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        list(changes(config(), Meta(tmp_path, {"config": stored})))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/meta.json: config.") and message.endswith(
        "; another version of the project wrote it"
    )
    assert "\n" not in message


def test_a_refused_resume_leaves_later_checkpoints_where_they_are(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 500, 600)
    refusal(
        ConfigError, folder, resume=str(folder / "step-00000500.ckpt"), now=config(trainer__seed=7)
    )
    assert steps(folder) == [500, 600]


MACHINE = {
    "precision": "fp32",
    "data_sha256": "aa",
    "device": "cpu",
    "threads": 2,
    "versions": {"torch": "2.13.0", "numpy": "2.0"},
}


def test_what_only_a_session_knows(tmp_path: Path) -> None:
    path = tmp_path / "step-00000500.ckpt"
    assert (
        list(machine_changes(Meta(path, MACHINE), MACHINE))
        == list(machine_changes(Meta(path, {}), MACHINE))
        == []
    )
    now = MACHINE | {
        "device": "cuda",
        "threads": 4,
        "versions": {"torch": "2.14.0", "numpy": "2.1"},
    }
    assert list(machine_changes(Meta(path, MACHINE), now)) == [
        f"changed since step-00000500.ckpt: device cpu -> cuda{INEXACT_END}",
        f"changed since step-00000500.ckpt: threads 2 -> 4{INEXACT_END}",
        f"changed since step-00000500.ckpt: torch 2.13.0 -> 2.14.0{INEXACT_END}",
    ]
    with pytest.raises(
        ConfigError,
        match=(
            r"trainer\.precision: .* computes in fp32, this session would in bf16; write"
            r" --trainer\.precision fp32"
        ),
    ):
        list(machine_changes(Meta(path, MACHINE), MACHINE | {"precision": "bf16"}))
    with pytest.raises(
        ConfigError,
        match=r"data\.source: the text is not the one that .*step-00000500\.ckpt was trained on",
    ):
        list(machine_changes(Meta(path, MACHINE), MACHINE | {"data_sha256": "bb"}))


# --init-from


def test_a_new_run_from_a_parent_needs_no_equal_configuration(tmp_path: Path) -> None:
    parent = trained(tmp_path / "base", 500)
    started = Started(
        tmp_path / "run",
        init_from=str(parent / "best.ckpt"),
        now=config(trainer__seed=7, data__val_fraction=0.2),
    )
    path = parent / "step-00000500.ckpt"
    assert (
        started.origin.init_from,
        started.origin.path,
        started.origin.resume,
        started.origin.step,
    ) == (path, path, None, 0)
    assert started.origin.parent == {
        "path": str(path),
        "step": 500,
        "manifest_sha256": Checkpoint(path).sha256,
    }
    assert started.said == [f"starting from the weights of {parent / 'best.ckpt'} (step 500)"]
    assert steps(parent) == [500]


def test_a_resumed_run_keeps_its_parent(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 500)
    parent = {"path": "x", "step": 9, "manifest_sha256": "ab"}
    meta = Checkpoint(folder / "step-00000500.ckpt").meta | {"parent": parent}
    sealed(folder / "step-00000500.ckpt", meta__json=json.dumps(meta).encode())
    assert Started(folder, resume="auto").origin.parent == parent


def test_a_parent_makes_room_like_any_new_run(tmp_path: Path) -> None:
    parent, folder = trained(tmp_path / "base", 500), trained(tmp_path / "run", 100)
    started = Started(folder, init_from=str(parent / "last.ckpt"))
    assert (
        steps(tmp_path / "run-1") == [100]
        and steps(folder) == []
        and f"it is now {folder}-1" in started.said[1]
    )


@pytest.mark.parametrize(
    "name", ["last.ckpt", "step-00000500.ckpt", "after-step-00000500-1/step-00000600.ckpt"]
)
def test_a_parent_in_the_folder_of_the_new_run_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent would be moved aside before it is read."""
    folder = trained(tmp_path / "run", 500, 600)
    RunFolder(folder).rewind(500)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_origin(Loaded(config(), {}), Path("run"), None, f"run/{name}", print)
    assert (
        str(caught.value)
        == f"command line: --init-from run/{name} lies in checkpoint.directory (run), which the new"
        " run would move aside; write --checkpoint.directory with a new folder, or --resume"
        f" run/{name} to continue that run"
    )


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_parent_that_is_missing_or_damaged(tmp_path: Path, damage: str) -> None:
    path = trained(tmp_path / "base", 500) / "step-00000500.ckpt"
    if damage == "missing":
        shutil.rmtree(path)
    else:
        (path / "model.safetensors").write_bytes(b"x")
    folder = trained(tmp_path / "run", 100)
    message = refusal(CheckpointError, folder, init_from=str(path))
    assert message.startswith(str(path)) and steps(folder) == [100]


# The end


def result(step: int, loss: float = 1.0) -> RecordedValidation:
    return RecordedValidation(step, None, loss, 1.0, 1.0, 1, 1.0)


@pytest.mark.parametrize(
    ("step", "losses", "patience", "finished"),
    [
        (1000, {1000: 1.0}, None, True),
        (1000, {}, None, False),  # killed before the last validation, so it is still to do
        (1000, {500: 1.0}, None, False),
        (999, {999: 1.0}, None, False),
        (1001, {}, None, True),  # the budget was lowered
        (500, {100: 1.0, 300: 2.0, 500: 2.0}, 2, True),
        (500, {100: 1.0, 300: 2.0, 500: 2.0}, 3, False),
        (500, {100: 3.0, 300: 2.0, 500: 1.0}, 1, False),
        (500, {100: 1.0, 300: 2.0}, 1, False),
        # a run that goes on from here has not made the later ones
        (100, {100: 1.0, 300: 2.0, 500: 2.0}, 2, False),
    ],
)
def test_finished(
    tmp_path: Path, step: int, losses: dict[int, float], patience: int | None, finished: bool
) -> None:
    run = RunFolder(tmp_path)
    for at, loss in losses.items():
        run.record(result(at, loss))
    asked = config(trainer__early_stopping=patience), tmp_path, step
    # killed before the curves were drawn and final.ckpt was set
    assert is_finished(*asked) is (step > 1000)
    point(tmp_path, "final.ckpt", tmp_path / step_name(step))
    assert is_finished(*asked) is finished


def test_a_run_of_so_many_passes_is_finished_after_their_steps(tmp_path: Path) -> None:
    by_epochs = config(trainer__max_steps=None, trainer__max_epochs=2.0)
    RunFolder(tmp_path).record(result(40))
    point(tmp_path, "final.ckpt", tmp_path / step_name(40))
    asked = tmp_path, 40
    assert is_finished(by_epochs.with_epochs(0.05), *asked)
    assert is_finished(by_epochs.with_epochs(0.06), *asked), "the budget was lowered"
    assert not is_finished(by_epochs.with_epochs(0.04), *asked)
    assert not is_finished(by_epochs, *asked), "a checkpoint that does not say how long a pass is"


def test_the_text_may_lie_elsewhere(tmp_path: Path) -> None:
    """`machine_changes` reads the text and checks that it is the same."""
    [line] = changes(
        config(data__source__files=["elsewhere.txt"]),
        Meta(tmp_path / "x", {"config": config().model_dump(mode="json")}),
    )
    assert line == 'changed since x: data.source.files ["corpus.txt"] -> ["elsewhere.txt"]'


def mixture(*parts: dict[str, Any], when_one_ends: str = "repeat") -> Config:
    return config(
        data__source={"format": "mixture", "parts": list(parts), "when_one_ends": when_one_ends}
    )


def part(weight: int = 1, files: str = "a.txt", **source: Any) -> dict[str, Any]:
    return {"weight": weight, "source": {"format": "txt", "files": files, **source}}


def test_the_text_of_a_mixture_may_lie_elsewhere(tmp_path: Path) -> None:
    stored = mixture(part(3), part(files="b.txt")).model_dump(mode="json")
    assert (
        list(
            changes(mixture(part(3), part(files="b.txt")), Meta(tmp_path / "x", {"config": stored}))
        )
        == []
    )
    [line] = changes(
        mixture(part(3), part(files="elsewhere.txt")), Meta(tmp_path / "x", {"config": stored})
    )
    assert (
        line == 'changed since x: data.source.parts[1].source.files ["b.txt"] -> ["elsewhere.txt"]'
    )
    both = changes(
        mixture(part(3, files="c"), part(files="d")), Meta(tmp_path / "x", {"config": stored})
    )
    assert [line.split()[3] for line in both] == [
        "data.source.parts[0].source.files",
        "data.source.parts[1].source.files",
    ]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (
            mixture(part(2), part(1)),
            ["data.source.parts[0].weight: the run to resume has 3, got 2"],
        ),
        (
            mixture(part(3), part(1), when_one_ends="stop"),
            ['data.source.when_one_ends: the run to resume has "repeat", got "stop"'],
        ),
        (
            mixture(part(3), part(1, unit="line", filter={"min_length": 5, "deduplicate": True})),
            [
                'data.source.parts[1].source.unit: the run to resume has "paragraph", got "line"',
                "data.source.parts[1].source.filter.min_length: the run to resume has 0, got 5",
                (
                    "data.source.parts[1].source.filter.deduplicate: the run to resume has false,"
                    " got true"
                ),
            ],
        ),
        (
            mixture(part(3)),
            [
                "data.source.parts[1].weight: the run to resume has 1, got nothing",
                'data.source.parts[1].source.format: the run to resume has "txt", got nothing',
                'data.source.parts[1].source.unit: the run to resume has "paragraph", got nothing',
            ],
        ),
        (
            mixture(part(3), part(1), part(1)),
            ["data.source.parts[2].weight: the run to resume has nothing, got 1"],
        ),
        (config(), ['data.source.format: the run to resume has "mixture", got "txt"']),
    ],
)
def test_what_else_a_mixture_is_made_of_may_not_change(
    tmp_path: Path, now: Config, expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        list(
            changes(
                now, Meta(tmp_path, {"config": mixture(part(3), part(1)).model_dump(mode="json")})
            )
        )
    lines = str(caught.value).splitlines()
    assert lines[: len(expected)] == expected
    assert not any(".files" in line for line in lines), "their text is compared by its hash"


@pytest.mark.parametrize(
    "key", ["max_documents", "max_tokens", "min_length", "ascii_only", "deduplicate"]
)
def test_what_is_left_out_of_the_text_may_not_change(tmp_path: Path, key: str) -> None:
    now = config(data__source__filter={key: True if key in ("ascii_only", "deduplicate") else 7})
    with pytest.raises(
        ConfigError,
        match=(
            rf"^data\.source\.filter\.{key}: the run to resume has (null|0|false), got (7|true)\n"
        ),
    ):
        list(changes(now, Meta(tmp_path, {"config": config().model_dump(mode="json")})))


def test_a_finished_run_that_goes_on_has_no_final_checkpoint(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", 500, 1000)
    point(folder, "final.ckpt", folder / "step-00001000.ckpt")
    longer = Started(folder, resume="auto", now=config(trainer__max_steps=2000))
    assert not (folder / "final.ckpt").is_symlink() and longer.origin.step == 1000
    assert longer.said == [
        f"changed since step-00001000.ckpt: trainer.max_steps 1000 -> 2000{INEXACT_END}"
    ]
    assert [line.step for line in read_validations(folder)[0]] == [500, 1000]


@pytest.mark.usefixtures("starts_processes")
def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, lm.runs.origin; print(*sorted({name.split('.')[0] for name in sys.modules} -"
        " sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {
        "torch",
        "numpy",
        "lightning",
        "transformers",
        "datasets",
        "tokenizers",
        "matplotlib",
        "yaml",
    } & {*done.stdout.split()}
