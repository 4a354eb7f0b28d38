"""Test that shards which no run could go on from do not become an ordinary checkpoint."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.checkpoints.folder import Checkpoint, shard_count
from lm.checkpoints.weights import write_weights
from lm.checkpoints.write import write_checkpoint
from lm.config.schema.model import ModelConfig
from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.optimizers import make_optimizer
from lm.system.errors import CheckpointError
from lm.tokenizer.tokenizer import ByteTokenizer
from model import Decoder
from tests.support import runs
from tools import consolidate


@dataclasses.dataclass
class Shards:
    """The content of a checkpoint in one shard, to be edited."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


CONFIG: dict[str, object] = {
    "data": {"source": {"format": "txt", "files": "unused"}},
    "trainer": {"max_steps": 200},
}


@pytest.fixture
def consolidated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Checkpoint]:
    """Return a function that edits the shards of a checkpoint and joins them."""
    tokenizer = ByteTokenizer()
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=8, n_layers=1, n_heads=2, context_length=8
    )
    decoder = Decoder(shape)
    source = Checkpoint(runs.write_trained(tmp_path / "run", decoder, tokenizer, CONFIG, 3))
    optimizer = make_optimizer(decoder, OptimizerConfig(), "fp32")
    for parameter in decoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = optimizer.state_dict()

    def join(edit: Callable[[Shards], None]) -> Checkpoint:
        shards = Shards(
            dict(decoder.named_parameters()),
            {f"{n}.{key}": v for n, values in saved["state"].items() for key, v in values.items()},
            {"step": 3, "recent_losses": [1.0], "param_groups": saved["param_groups"]},
        )
        edit(shards)
        path = tmp_path / "sharded" / source.path.name
        path.parent.mkdir()
        meta = json.dumps(source.meta | {"shards": 1})
        name = "{}-00001-of-00001.safetensors".format
        files: dict[str, Callable[[Path], Any]] = {
            name("model"): lambda file: write_weights(file, shards.model),
            name("optimizer"): lambda file: write_weights(file, shards.optimizer),
            "train_state.json": lambda file: file.write_text(json.dumps(shards.state)),
            "tokenizer.json": lambda file: file.write_text(tokenizer.definition),
            "meta.json": lambda file: file.write_text(meta),
        }
        write_checkpoint(path, files)
        monkeypatch.setattr(sys, "argv", ["consolidate", str(path)])
        consolidate.main()
        return Checkpoint(path.parent / "consolidated" / path.name)

    return join


def test_whole_shards_are_joined(consolidated: Callable[..., Checkpoint]) -> None:
    joined = consolidated(lambda shards: None)
    joined.verify()
    assert {"model.safetensors", "train_state.pt"} <= set(joined.files)
    assert shard_count(joined.files) == 0


WRONG: dict[str, tuple[Callable[[Shards], object], str]] = {
    "a number of 5,000 digits": (
        lambda shards: shards.optimizer.update({"9" * 5000 + ".exp_avg": torch.zeros(1)}),
        "which is no state of a weight",
    ),
    "groups in words": (
        lambda shards: shards.state.update(param_groups="x"),
        "optimizer has other groups",
    ),
    "a step in words": (lambda shards: shards.state.update(step="3"), "its step is not 3"),
    "a moment that is not finite": (
        lambda shards: shards.optimizer["0.exp_avg"].fill_(torch.nan),
        "exp_avg holds a number that is not finite",
    ),
    "a weight of another type": (
        lambda shards: shards.model.update(
            {name: value.half() for name, value in shards.model.items()}
        ),
        "where the configured model has torch.float32",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_no_run_could_go_on_from_is_refused(
    kind: str, consolidated: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    edit, message = WRONG[kind]
    with pytest.raises(CheckpointError, match=message):
        consolidated(edit)
    assert not (tmp_path / "sharded" / "consolidated").exists()
