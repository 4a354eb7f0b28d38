"""Runs of adapters, and their checkpoints next to a base: python -m pytest
tests/checkpoints/test_adapters.py.
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
import yaml
from safetensors.torch import load_file

import eval_val
import finetune as command
from lm import load
from lm.checkpoints.folder import MERGED, ORDINARY, Checkpoint, required
from lm.checkpoints.meta import Meta
from lm.commands import load_config
from lm.config.schema.finetune import LoraConfig
from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.optimizers import trained
from lm.surgery.lora import Adapted, add_adapters
from lm.system.errors import CheckpointError, ConfigError
from lm.training.forecast import footprint
from model import Decoder
from tests.support.faults import sealed
from tests.support.runs import config_file, launched, train
from tools import merge_lora
from train import train as train_command

IDS = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(1))
FILES = ("model.safetensors", "ema.safetensors", "train_state.pt")


@pytest.fixture(scope="module")
def base(smoke_run: Path) -> Path:
    return (smoke_run / "run" / "final.ckpt").resolve()


@pytest.fixture(scope="module", params=["lora", "qlora"])
def run(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a run that never stopped."""
    folder = tmp_path_factory.mktemp(request.param)
    finetune(config_of(folder, base), f"--finetune.method={request.param}")
    return folder / "run"


@pytest.fixture(scope="module")
def lora_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    shutil.copytree(base, folder / "base" / base.name)
    finetune(config_of(folder, folder / "base" / base.name))
    return folder / "run"


@pytest.fixture
def family(lora_run: Path, tmp_path: Path) -> Path:
    """Yield a folder with a base and a run of its adapters, moved from where they were written."""
    copied, away = tmp_path / "copied", lora_run.parent
    shutil.copytree(away, copied, symlinks=True)
    (away / "base").rename(away / "hidden")
    yield copied
    (away / "hidden").rename(away / "base")


def config_of(folder: Path, base: Path, **lora: object) -> Path:
    """Write a configuration of adapters that train for 12 steps on the text of `base`."""
    file = config_file(folder)
    values = yaml.safe_load(file.read_text())
    values["model"] = {"dropout": 0.1}
    values["finetune"] = {
        "base": str(base),
        "method": "lora",
        "lora": {"rank": 2, "alpha": 8, "dropout": 0.1} | lora,
        "report_prompts": 0,
    }
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def finetune(file: Path, *overrides: str, resume: str | None = None) -> None:
    """Train as `python finetune.py` does once its arguments are parsed."""
    loaded = load_config(file, list(overrides))
    assert loaded.config.finetune is not None
    train_command(loaded, command.assemble, resume, loaded.config.finetune.base)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(IDS)
    return result


def by_hand(checkpoint: Path, base: Path) -> Decoder:
    """Return the decoder with its adapters kept separate, as in training, with averaged weights."""
    decoder, meta = load(base)[0], Checkpoint(checkpoint).meta
    add_adapters(
        decoder, LoraConfig(rank=2, alpha=8), four_bits=meta["adapters"]["method"] == "qlora"
    )
    with torch.no_grad():
        for name, tensor in load_file(checkpoint / "ema.safetensors").items():
            decoder.get_parameter(name).copy_(tensor)
    return decoder


def merged(checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Path:
    """Run `python -m tools.merge_lora` and return the merged checkpoint."""
    monkeypatch.setattr(
        sys, "argv", ["merge_lora", "--ckpt", str(checkpoint), "--out", str(out), *arguments]
    )
    merge_lora.main()
    return out / f"step-{Checkpoint(checkpoint).meta['step']:08d}.ckpt"


def refusal(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_holds_adapters_alone_and_says_of_what(run: Path, base: Path) -> None:
    checkpoint = (run / "final.ckpt").resolve()
    meta = Checkpoint(checkpoint).meta
    tensors = load_file(checkpoint / "model.safetensors")
    assert len(tensors) == 28 and all(
        name.rpartition(".")[2] in ("lora_A", "lora_B") for name in tensors
    )
    assert load_file(checkpoint / "ema.safetensors").keys() == tensors.keys()
    states = torch.load(checkpoint / "train_state.pt", weights_only=True)["optimizer"]["state"]
    assert len(states) == 28
    n_trained = sum(tensor.numel() for tensor in tensors.values())
    assert meta["n_parameters"] == Checkpoint(base).meta["n_parameters"]
    assert meta["adapters"] == {
        "method": run.parent.name.rstrip("0"),
        "lora": {"rank": 2, "alpha": 8.0, "dropout": 0.1, "targets": ["layers.*"]},
        "n_parameters": n_trained,
        "base": {
            "path": str(base),
            "from_run": meta["adapters"]["base"]["from_run"],
            "manifest_sha256": Checkpoint(base).sha256,
        },
    }
    assert (run / meta["adapters"]["base"]["from_run"]).resolve() == base
    assert meta["parent"]["manifest_sha256"] == Checkpoint(base).sha256
    assert "adapters" not in Checkpoint(base).meta
    taken = footprint(by_hand(checkpoint, base), OptimizerConfig(ema_decay=0.5))
    files = sum(
        file["bytes"] for name, file in Checkpoint(checkpoint).files.items() if name in FILES
    )
    assert (
        taken.gradients == taken.averages == 4 * n_trained
        and taken.checkpoint <= files <= 2 * taken.checkpoint
    )


def test_adapters_learn(run: Path) -> None:
    losses = [
        json.loads(line)["loss"] for line in (run / "evaluations.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0]


def test_stopped_and_resumed_it_is_bit_for_bit_the_same(
    run: Path, base: Path, tmp_path: Path
) -> None:
    file, method = config_of(tmp_path, base), f"--finetune.method={run.parent.name.rstrip('0')}"
    finetune(file, method, "--trainer.max_minutes=1e-9")
    while not (tmp_path / "run" / "final.ckpt").exists():
        finetune(file, method, "--trainer.max_minutes=1e-9", resume="auto")
    assert len(list((tmp_path / "run").glob("step-*"))) == 12
    for name in FILES[:2]:
        assert (tmp_path / "run" / "final.ckpt" / name).read_bytes() == (
            run / "final.ckpt" / name
        ).read_bytes()
    one, other = (
        torch.load(folder / "final.ckpt" / "train_state.pt", weights_only=True)
        for folder in (tmp_path / "run", run)
    )
    for number, state in one["optimizer"]["state"].items():
        assert all(
            torch.equal(value, other["optimizer"]["state"][number][key])
            for key, value in state.items()
        )


def test_loaded_it_is_what_was_trained(
    run: Path, base: Path, figure: Callable[[str], None]
) -> None:
    checkpoint = run / "final.ckpt"
    decoder, tokenizer, meta = load(checkpoint)
    assert not decoder.training and tokenizer.name == "byte" and meta["step"] == 12
    assert not [layer for layer in decoder.modules() if isinstance(layer, Adapted)]
    apart = (logits(decoder) - logits(by_hand(checkpoint, base))).abs().max().item()
    assert apart < 1e-5 < (logits(decoder) - logits(load(base)[0])).abs().max()
    figure(
        f"{Checkpoint(checkpoint).meta['adapters']['method']}: merged logits differ by at most"
        f" {apart:.1e} after a run"
    )


def test_every_command_takes_it(
    run: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "eval_val",
            "--ckpt",
            str(run / "final.ckpt"),
            "--config",
            str(config_file(tmp_path)),
            "--json",
        ],
    )
    eval_val.main()
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(last["loss"], abs=1e-5)


def test_merged_it_is_an_ordinary_checkpoint(
    run: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = (run / "final.ckpt").resolve()
    path = merged(checkpoint, tmp_path / "out", monkeypatch)
    Checkpoint(path).verify()
    assert (
        load_file(path / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    )
    assert torch.equal(logits(load(path)[0]), logits(load(checkpoint)[0]))
    meta = Checkpoint(path).meta
    assert "adapters" not in meta and meta["n_parameters"] == Checkpoint(base).meta["n_parameters"]
    assert meta["parent"] == {
        "path": str(checkpoint),
        "step": 12,
        "manifest_sha256": Checkpoint(checkpoint).sha256,
    }
    assert not list((tmp_path / "out").glob(".*"))
    with pytest.raises(
        CheckpointError, match="is there already; remove it, or name another folder with --out"
    ):
        merged(checkpoint, tmp_path / "out", monkeypatch)
    with pytest.raises(
        CheckpointError, match="holds a whole model already: there is nothing to merge"
    ):
        merged(path, tmp_path / "again", monkeypatch)


@pytest.mark.usefixtures("trains")
def test_a_merged_one_begins_runs_and_resumes_none(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = merged(run / "final.ckpt", tmp_path / "out", monkeypatch)
    child = tmp_path / "child"
    child.mkdir()
    finetune(config_of(child, path))
    assert torch.isfinite(logits(load(child / "run" / "final.ckpt")[0])).all()
    started = f"--checkpoint.directory={tmp_path / 'started'}"
    train(config_file(tmp_path, trainer={"max_steps": 3}), started, init_from=str(path))
    for resume in ("auto", str(path)):
        with pytest.raises(CheckpointError) as caught:
            train(
                config_file(tmp_path), f"--checkpoint.directory={tmp_path / 'out'}", resume=resume
            )
        assert str(caught.value).startswith(
            f"{path} was merged (python -m tools.merge_lora) and holds weights alone: no run can"
            " go on"
        )


def test_adapters_on_adapters(run: Path, tmp_path: Path) -> None:
    """The base of a second run, as in sft and then dpo, is the first run's adapters with their
    base.
    """
    second = tmp_path / "second"
    second.mkdir()
    finetune(config_of(second, run / "final.ckpt", targets=["*.q_proj"]), "--trainer.max_steps=4")
    path = second / "run" / "final.ckpt"
    assert len(load_file(path / "model.safetensors")) == 4
    decoder = load(run / "final.ckpt")[0]
    add_adapters(decoder, LoraConfig(rank=2, alpha=8, targets=["*.q_proj"]))
    with torch.no_grad():
        for name, tensor in load_file(path / "ema.safetensors").items():
            trained(decoder)[name].copy_(tensor)
    torch.testing.assert_close(logits(load(path)[0]), logits(decoder), atol=1e-5, rtol=1e-5)


def test_moved_together_they_find_each_other(family: Path, lora_run: Path) -> None:
    load(family / "run" / "final.ckpt")
    (family / "base").rename(family / "elsewhere")
    checkpoint = (family / "run" / "final.ckpt").resolve()
    was = Checkpoint(checkpoint).meta["adapters"]["base"]["path"]
    assert (
        refusal(checkpoint)
        == f"{checkpoint} holds adapters alone, and their base is not at {was} and"
        f" {family / 'base' / Path(was).name}; say where it is: `python -m tools.merge_lora"
        f" --ckpt {checkpoint} --base CKPT --out DIR`"
    )


def test_a_base_that_is_named_is_taken(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = logits(load(family / "run" / "final.ckpt")[0])
    [base] = (family / "base").iterdir()
    moved = base.rename(family / base.name)
    path = merged(family / "run" / "final.ckpt", family / "out", monkeypatch, "--base", str(moved))
    assert torch.equal(logits(load(path)[0]), before)


def test_a_damaged_tokenizer_is_not_merged(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merged checkpoint gets a new manifest, in which the damaged tokenizer would look whole."""
    file = (family / "run" / "final.ckpt").resolve() / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        merged(file.parent, family / "out", monkeypatch)
    assert not (family / "out").exists()


def test_another_base_is_refused(
    family: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = (family / "run" / "final.ckpt").resolve()
    [base] = (family / "base").iterdir()
    old = Checkpoint(base).sha256
    other = sealed(base, meta__json=json.dumps(Checkpoint(base).meta | {"seconds": 1.5}).encode())
    new = Checkpoint(other).sha256
    said = refusal(checkpoint)
    assert said.startswith(
        f"{checkpoint} holds adapters of the base with the manifest {old[:12]}, and {other} has"
        f" {new[:12]}; "
    )
    with pytest.raises(CheckpointError, match=f"{old[:12]}, and {other} has {new[:12]}"):
        merged(checkpoint, tmp_path / "out", monkeypatch, "--base", str(other))
    assert not (tmp_path / "out").exists()


def test_a_damaged_base_is_refused(family: Path) -> None:
    [base] = (family / "base").iterdir()
    content = bytearray((base / "ema.safetensors").read_bytes())
    content[-3] ^= 4
    (base / "ema.safetensors").write_bytes(content)
    assert (
        refusal(family / "run" / "final.ckpt")
        == f"{base}/ema.safetensors is damaged: its content is not what was saved"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "ia3"}, "adapters.method"),
        ({"lora": {"rank": 10**9}}, "adapters.lora.rank"),
        ({"lora": {"rnak": 2}}, "adapters.lora.rnak"),
        (
            {"lora": {"rank": 3}},
            "is torch.float32 (2, 32), where the configured model has torch.float32 (3, 32)",
        ),
        ({"lora": {"targets": ["*.q_proj"], "rank": 2}}, "is not a weight of the model"),
        (
            {"lora": {"targets": ["*.query"]}},
            "meta.json: finetune.lora.targets: '*.query' matches no layer",
        ),
        ({"base": {}}, "adapters.base.path: Field required"),
        ({"base": {"path": "a\0b", "from_run": "x", "manifest_sha256": ""}}, "adapters.base.path"),
        (
            {"base": {"path": "x" * 5000, "from_run": "y" * 5000, "manifest_sha256": ""}},
            "holds adapters alone, and their base is not at",
        ),
        ({"base": 3}, "adapters.base"),
    ],
)
def test_hostile_adapters_are_refused(family: Path, change: dict[str, Any], said: str) -> None:
    checkpoint = (family / "run" / "final.ckpt").resolve()
    meta = Checkpoint(checkpoint).meta
    path = sealed(
        checkpoint, meta__json=json.dumps(meta | {"adapters": meta["adapters"] | change}).encode()
    )
    assert said in refusal(path)


def test_a_shape_takes_no_memory_before_the_bases_weights_prove_it(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding of this shape alone would take 4 TB."""
    checkpoint = (family / "run" / "final.ckpt").resolve()
    meta = Checkpoint(checkpoint).meta
    meta["model"] |= {"d_model": 2**16, "vocab_size": 2**24}
    path = sealed(checkpoint, meta__json=json.dumps(meta).encode())
    assert "where the configured model has torch.float32 (16777216, 65536)" in refusal(path)
    with pytest.raises(CheckpointError, match="where the configured model has"):
        merged(path, family / "out", monkeypatch)


@pytest.mark.parametrize("adapters", [None, 3, [], "lora", {}])
def test_adapters_that_are_none_are_refused(adapters: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="adapters"):
        _ = Meta(tmp_path, {"adapters": adapters}).adapters
    assert Meta(tmp_path, {}).adapters is None


def test_a_run_goes_on_with_its_own_base_only(family: Path, base: Path) -> None:
    """The run accepts its own base at a new path and refuses another base."""
    file = family / "config.yaml"
    values = yaml.safe_load(file.read_text())
    for step in (9, 12):
        shutil.rmtree(family / "run" / f"step-{step:08d}.ckpt")
    [moved] = (family / "base").iterdir()
    there = [f"--checkpoint.directory={family / 'run'}", f"--data.cache_dir={family / 'cache'}"]
    assert values["finetune"]["base"] != str(moved)
    finetune(file, *there, f"--finetune.base={moved}", resume="auto")
    assert Checkpoint(family / "run" / "final.ckpt").meta["adapters"]["base"]["path"] == str(moved)
    shutil.rmtree(family / "run" / "step-00000012.ckpt")
    other = sealed(moved, meta__json=json.dumps(Checkpoint(moved).meta | {"seconds": 1.5}).encode())
    with pytest.raises(
        CheckpointError,
        match=rf"^finetune\.base: {other} is not the checkpoint that the run started from",
    ):
        finetune(file, *there, f"--finetune.base={other}", resume="auto")
    with pytest.raises(ConfigError, match=r"finetune\.lora\.rank"):
        finetune(file, *there, f"--finetune.base={other}", "--finetune.lora.rank=3", resume="auto")


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("method", ["lora", pytest.param("qlora", marks=pytest.mark.long)])
def test_shared_out_and_resumed_alone(
    method: str, base: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Adapters of two processes (fsdp) are read, resumed by one process, and merged."""
    file = config_of(tmp_path, base, dropout=0.0)
    same = (f"--finetune.method={method}", "--model.dropout=0.0", "--optimizer.eps=1e-4")
    shared = (
        *same,
        "--trainer.strategy=fsdp",
        "--trainer.devices=2",
        "--trainer.micro_batch_size=4",
    )
    launched(2, "finetune", "--config", str(file), *shared)
    straight = tmp_path / "straight"
    finetune(file, *same, f"--checkpoint.directory={straight}")
    expected = logits(load(straight / "final.ckpt")[0])
    sharded = tmp_path / "run" / "final.ckpt"
    assert (sharded / "model-00002-of-00002.safetensors").exists()
    worst = (logits(load(sharded)[0]) - expected).abs().max().item()
    finetune(file, *same, resume=str(tmp_path / "run" / "step-00000006.ckpt"))
    assert (sharded / "model.safetensors").exists()
    worst = max(worst, (logits(load(sharded)[0]) - expected).abs().max().item())
    assert worst < 1e-4
    figure(f"{method}, fsdp on two processes and then on one: logits within {worst:.1e}")


def test_what_a_whole_checkpoint_is() -> None:
    assert required(MERGED) == set(MERGED) and required(ORDINARY) == set(ORDINARY)
    for files in ({*MERGED, "ema.safetensors"}, {*MERGED} - {"tokenizer.json"}):
        assert "train_state.pt" in required(files)
