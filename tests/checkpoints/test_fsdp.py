"""A sharded model (FSDP2) and its checkpoints equal those of one process: python -m pytest
tests/checkpoints/test_fsdp.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lm import load
from lm.checkpoints import fsdp
from lm.checkpoints.folder import (
    Checkpoint,
    newest_whole,
    required,
    shard_count,
    shard_names,
    step_directories,
    step_of,
)
from lm.checkpoints.weights import write_weights
from lm.checkpoints.write import write_checkpoint, write_json
from lm.system.errors import CheckpointError, ConfigError
from tests.support.runs import config_file, slurm_tasks, train
from tests.support.witnessed import rows, witness
from tools import consolidate

FSDP = ("--trainer.strategy", "fsdp", "--trainer.devices", "2", "--trainer.micro_batch_size", "2")
FILES = ("model.safetensors", "ema.safetensors")


def configured(folder: Path) -> Path:
    """Write a configuration of 12 steps without dropout; its odd vocabulary makes uneven shards.

    Muon trains the layers, and AdamW all other weights, so both have state.
    """
    folder.mkdir(exist_ok=True)
    model = {
        "context_length": 16,
        "n_layers": 2,
        "d_model": 66,
        "n_heads": 3,
        "dropout": 0.0,
        "init_std": 0.1,
        "vocab_size": 261,
    }
    # With the usual eps, AdamW takes a full step for a gradient of pure rounding error, like that
    # of a token that never occurs.
    return config_file(
        folder, data={"val_fraction": 0.4}, model=model, optimizer={"name": "muon", "eps": 1e-4}
    )


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def validation_tokens(run: Path) -> list[int]:
    return [
        json.loads(line)["tokens"] for line in (run / "evaluations.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, trains: None) -> Path:
    """Train on one process without a stop and return the folder of the run."""
    folder = tmp_path_factory.mktemp("straight")
    with witness(folder):
        train(configured(folder))
    return folder / "run"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, starts_processes: None) -> Path:
    """Return the folder of a run on two processes. Its gathered.pt is what they held together
    before the tenth step.
    """
    folder = tmp_path_factory.mktemp("shared")
    codes, said = slurm_tasks(folder, "gather:all:9", "--config", str(configured(folder)), *FSDP)
    assert codes == [0, 0], said
    return folder


def joined(checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run `python -m tools.consolidate` and return the joined checkpoint."""
    monkeypatch.setattr(sys, "argv", ["consolidate", str(checkpoint), "--out", str(out)])
    consolidate.main()
    return out / f"step-{Checkpoint(checkpoint).meta['step']:08d}.ckpt"


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_two_processes_are_one(
    straight: Path,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str], None],
) -> None:
    assert losses(shared / "run") == [
        (step, pytest.approx(loss, abs=1e-5)) for step, loss in losses(straight)
    ]
    worst = {}
    for step in ("step-00000006.ckpt", "step-00000012.ckpt"):
        ordinary = joined(shared / "run" / step, tmp_path, monkeypatch)
        worst[step] = max(
            difference(load_file(ordinary / name), load_file(straight / step / name))
            for name in FILES
        )
    assert max(worst.values()) < 1e-6
    figure(
        "fsdp on two processes: weights within "
        + ", ".join(f"{value:.1e} at {step}" for step, value in worst.items())
    )


def test_joined_shards_are_bit_for_bit_what_the_processes_held(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = torch.load(shared / "gathered.pt", weights_only=True)
    ordinary = joined(shared / "run" / "step-00000009.ckpt", tmp_path, monkeypatch)
    Checkpoint(ordinary).verify()
    state = torch.load(ordinary / "train_state.pt", weights_only=True)
    tensors = {
        f"{number}.{key}": value
        for number, values in state["optimizer"]["state"].items()
        for key, value in values.items()
    }
    for kind, found in (
        ("model", load_file(ordinary / "model.safetensors")),
        ("ema", load_file(ordinary / "ema.safetensors")),
        ("optimizer", tensors),
    ):
        assert found.keys() == held[kind].keys() and len(found) >= 20
        assert all(torch.equal(found[name], held[kind][name]) for name in found), kind
    assert state["step"] == 9
    decoder, tokenizer, meta = load(ordinary)
    assert meta["step"] == 9 and meta["shards"] == 0 and tokenizer.name == "byte"
    assert torch.equal(decoder.embed_tokens.weight, held["ema"]["embed_tokens.weight"])


def test_a_share_is_a_share(shared: Path) -> None:
    """Each process wrote about half of every tensor."""
    checkpoint = shared / "run" / "step-00000012.ckpt"
    assert Checkpoint(checkpoint).meta["shards"] == 2
    parts = [load_file(checkpoint / name) for name in shard_names("model", 2)]
    assert [part["embed_tokens.weight"].shape for part in parts] == [(131, 66), (130, 66)]
    assert (
        sum(tensor.numel() for part in parts for tensor in part.values())
        == Checkpoint(checkpoint).meta["n_parameters"]
    )
    assert not list((shared / "run").glob(".*tmp*"))


@pytest.mark.usefixtures("starts_processes", "trains")
def test_resumed_on_one_process_and_back_on_two(
    straight: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run resumed on one process and then on two, or from a joined checkpoint, ends as the run
    that never stopped.
    """
    config, run = configured(tmp_path), tmp_path / "run"
    shutil.copytree(shared / "run", run, symlinks=True)
    train(config, "--trainer.max_minutes=1e-9", resume=str(run / "step-00000006.ckpt"))
    newest, _ = newest_whole(run)
    assert (
        newest is not None
        and newest.path.name == "step-00000007.ckpt"
        and (newest.path / "train_state.pt").exists()
    )
    codes, said = slurm_tasks(tmp_path, "none", "--config", str(config), *FSDP, "--resume", "auto")
    assert codes == [0, 0], said
    assert shard_count(path.name for path in (run / "final.ckpt").iterdir()) == 2
    whole = tmp_path / "whole"
    joined(run / "step-00000009.ckpt", whole, monkeypatch)
    train(config, "--checkpoint.directory", str(whole), resume="auto")
    expected = dict(losses(straight))
    assert dict(losses(run)) == pytest.approx(expected, abs=1e-5)
    assert dict(losses(whole)) == pytest.approx({12: expected[12]}, abs=1e-5)
    mine, theirs = (
        load_file(folder / "final.ckpt" / "model.safetensors") for folder in (whole, straight)
    )
    assert difference(mine, theirs) < 1e-6


@pytest.mark.usefixtures("starts_processes")
def test_resumed_on_four_processes(
    straight: Path,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str], None],
) -> None:
    """Four processes resume a run of two with the same rows in the same order and the same weights.
    Each validation token is counted once.
    """
    config, run = configured(tmp_path), tmp_path / "run"
    shutil.copytree(shared / "run", run, symlinks=True)
    four = (
        "--trainer.strategy=fsdp",
        "--trainer.devices=4",
        "--trainer.micro_batch_size=2",
        "--resume",
        str(run / "step-00000006.ckpt"),
    )
    codes, said = slurm_tasks(tmp_path, "none", "--config", str(config), *four, count=4)
    assert codes == [0] * 4, said
    assert rows(shared, 2) == rows(straight.parent, 1)
    assert rows(tmp_path, 4) == {
        step: its for step, its in rows(straight.parent, 1).items() if step >= 6
    }
    assert dict(losses(run)) == pytest.approx(dict(losses(straight)), abs=1e-5)
    counted = validation_tokens(straight)
    assert validation_tokens(run) == validation_tokens(shared / "run") == counted
    assert -(-counted[0] // 16) % 8 and counted[0] % 16, (
        "rows and tokens that four processes cannot share evenly"
    )
    assert shard_count(path.name for path in (run / "final.ckpt").iterdir()) == 4
    ordinary = joined(run / "final.ckpt", tmp_path / "whole", monkeypatch)
    worst = max(
        difference(load_file(ordinary / name), load_file(straight / "final.ckpt" / name))
        for name in FILES
    )
    assert worst < 1e-6
    figure(
        "fsdp, saved by two processes, continued by four: the same rows and token counts, weights"
        f" within {worst:.1e}"
    )


@pytest.mark.usefixtures("starts_processes")
def test_a_full_disk_of_one_process_ends_all(tmp_path: Path) -> None:
    """The disk of the second process, which writes only its shards, is full. Nothing half-written
    is left, and the checkpoint before is whole.
    """
    codes, said = slurm_tasks(tmp_path, "full:1:7", "--config", str(configured(tmp_path)), *FSDP)
    run = tmp_path / "run"
    assert codes == [5, 5], said
    assert all(
        "step-00000008.ckpt could not be written: No space left on device" in text for text in said
    )
    assert step_of(step_directories(run)[-1]) == 6 and newest_whole(run) == (
        Checkpoint(run / "step-00000006.ckpt"),
        [],
    )
    assert not list(run.glob(".*tmp*"))


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("kind", ["unwritten", "unscored"])
def test_who_fails_alone_in_the_middle_of_a_validation_ends_all(tmp_path: Path, kind: str) -> None:
    """The others wait for this process's part of a layer, so they end too. The checkpoint of that
    step was saved before.
    """
    codes, said = slurm_tasks(tmp_path, f"{kind}:1:7", "--config", str(configured(tmp_path)), *FSDP)
    assert codes == [1, 1], said
    assert "internal error: RuntimeError: no such kernel" in said[1]
    assert "another process of this run has ended" in said[0]
    assert newest_whole(tmp_path / "run") == (
        Checkpoint(tmp_path / "run" / "step-00000008.ckpt"),
        [],
    )
    assert [step for step, _ in losses(tmp_path / "run")] == [0, 4]


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("kind", "what"), [("unwritten", "the sample"), ("unscored", "validation")]
)
def test_where_all_fail_in_a_validation_the_run_goes_on(
    tmp_path: Path, kind: str, what: str
) -> None:
    codes, said = slurm_tasks(
        tmp_path, f"{kind}:all:7", "--config", str(configured(tmp_path)), *FSDP
    )
    assert codes == [0, 0], said
    assert (
        said[0].count(f"{what} failed, and the run goes on without: RuntimeError: no such kernel")
        == 1
    )
    assert [step for step, _ in losses(tmp_path / "run")] == (
        [0, 4, 8, 12] if kind == "unwritten" else [0, 4, 12]
    )


def test_who_needs_one_file_says_how_to_make_it(shared: Path) -> None:
    checkpoint = shared / "run" / "step-00000012.ckpt"
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    assert (
        str(caught.value)
        == f"{checkpoint}: a sharded checkpoint: run `python -m tools.consolidate {checkpoint}`"
        " first"
    )


def test_what_cannot_be_joined(
    straight: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="is an ordinary checkpoint already"):
        joined(straight / "final.ckpt", tmp_path, monkeypatch)
    joined(shared / "run" / "final.ckpt", tmp_path, monkeypatch)
    with pytest.raises(CheckpointError, match="is there already"):
        joined(shared / "run" / "final.ckpt", tmp_path, monkeypatch)


@pytest.mark.parametrize("damage", ["missing", "flipped", "extra"])
@pytest.mark.parametrize("kind", ["model", "optimizer", "ema"])
def test_a_damaged_shard_is_found(
    shared: Path, tmp_path: Path, kind: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "step-00000012.ckpt"
    shutil.copytree(shared / "run" / "step-00000012.ckpt", checkpoint)
    name = shard_names(kind, 2)[1]
    if damage == "missing":
        (checkpoint / name).unlink()
    elif damage == "extra":
        name = shard_names(kind, 3)[2]
        (checkpoint / name).write_bytes(b"")
    else:
        content = bytearray((checkpoint / name).read_bytes())
        content[-1] ^= 1
        (checkpoint / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        joined(checkpoint, tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out").exists()
    if damage != "extra":
        with pytest.raises(CheckpointError, match=name):
            list(fsdp.read_shards(Checkpoint(checkpoint), kind))


def test_a_manifest_without_a_shard_is_not_whole() -> None:
    names = {
        *shard_names("model", 2),
        *shard_names("optimizer", 2),
        "train_state.json",
        "tokenizer.json",
        "meta.json",
    }
    assert required(names) == names
    assert required(names - {"optimizer-00002-of-00002.safetensors"}) == names
    assert required({*names, "ema-00001-of-00002.safetensors"}) == names | set(
        shard_names("ema", 2)
    )
    assert (
        "train_state.pt" in required({"model.safetensors"})
        and shard_count(["model.safetensors"]) == 0
    )


@pytest.mark.usefixtures("trains")
def test_fsdp_refuses_fp16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm.training import parts

    def half(*_: Any) -> str:
        return "fp16"

    monkeypatch.setattr(parts, "choose_precision", half)
    with pytest.raises(
        ConfigError,
        match=(
            r"^trainer\.strategy: fsdp does not train in fp16; write --trainer\.precision bf16 or"
            r" fp32"
        ),
    ):
        train(configured(tmp_path), "--trainer.strategy", "fsdp")


def one_shard(ordinary: Path, folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """Write an ordinary checkpoint as the only process of FSDP would, with edited parts."""
    state = torch.load(ordinary / "train_state.pt", weights_only=True)
    moments = {
        f"{number}.{key}": value
        for number, values in state["optimizer"]["state"].items()
        for key, value in values.items()
    }
    rest = {key: value for key, value in state.items() if key != "optimizer"}
    parts = {
        "model": load_file(ordinary / "model.safetensors"),
        "optimizer": moments,
        "rest": rest | {"param_groups": state["optimizer"]["param_groups"]},
    }
    edit(parts)
    meta = json.loads((ordinary / "meta.json").read_text()) | {"shards": 1}
    path = folder / ordinary.name
    write_checkpoint(
        path,
        {
            "model-00001-of-00001.safetensors": lambda file: write_weights(file, parts["model"]),
            "optimizer-00001-of-00001.safetensors": lambda file: write_weights(
                file, parts["optimizer"]
            ),
            "train_state.json": lambda file: write_json(file, parts["rest"]),
            "tokenizer.json": lambda file: shutil.copyfile(ordinary / "tokenizer.json", file),
            "meta.json": lambda file: write_json(file, meta),
        },
    )
    return path


NORM = "norm.weight"


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda parts: parts["model"][NORM].fill_(float("nan")), "not finite"),
        (lambda parts: parts["model"].update({NORM: parts["model"][NORM].half()}), "torch.float16"),
        (lambda parts: parts["optimizer"]["0.exp_avg"].fill_(float("inf")), "not finite"),
        (
            lambda parts: parts["optimizer"].update(
                {"0.exp_avg": parts["optimizer"]["0.exp_avg"].long()}
            ),
            "torch.int64",
        ),
        (
            lambda parts: parts["optimizer"].update({f"{'9' * 5000}.exp_avg": torch.zeros(1)}),
            "which is no state of a weight",
        ),
        (lambda parts: parts["rest"].update(step="12"), "its step is not 12"),
        (lambda parts: parts["rest"].update(recent_losses=["1"]), "recent_losses is not"),
        (lambda parts: parts["rest"].update(param_groups="x"), "other groups of weights"),
    ],
)
def test_only_what_a_run_could_go_on_from_is_joined(
    smoke_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edit: Callable[[dict[str, Any]], object],
    problem: str,
) -> None:
    """The hashes hold in each case: somebody has written exactly this."""
    ordinary = (smoke_run / "run" / "final.ckpt").resolve()
    sharded = one_shard(ordinary, tmp_path / "sharded", edit)
    with pytest.raises(CheckpointError, match=problem):
        joined(sharded, tmp_path / "out", monkeypatch)
    assert not [*tmp_path.glob("out/*")]
    whole = one_shard(ordinary, tmp_path / "whole", lambda parts: None)
    assert newest_whole(joined(whole, tmp_path / "out", monkeypatch).parent)[0] is not None
