"""A checkpoint is read once: python -m pytest tests/checkpoints/test_load.py."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from lm import load
from lm.checkpoints.weights import write_weights
from lm.checkpoints.write import write_checkpoint, write_json
from lm.config.schema.model import ModelConfig
from lm.tokenizer.tokenizer import load_tokenizer
from model import Decoder
from tests.support.faults import ROOT

COUNTED = """
import json, runpy, sys
opened = []
sys.addaudithook(lambda event, details: opened.append(str(details[0])) if event == "open" else None)
sys.argv = {arguments!r}
{action}
names = ("meta.json", "manifest.json")
opened = [name.rsplit("/")[-1] for name in opened if name.endswith(names)]
print(json.dumps(opened), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small merged checkpoint with random weights and return its path."""
    path = tmp_path_factory.mktemp("run") / "step-00000001.ckpt"
    tokenizer = load_tokenizer("byte")
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, context_length=16, n_layers=1, n_heads=2, d_model=16
    )
    weights: dict[str, nn.Parameter] = dict(Decoder(shape).named_parameters())
    meta = {
        "format": 1,
        "step": 1,
        "model": shape.model_dump(mode="json"),
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
        },
        "config": {},
        "a key of another version": 1,
    }
    write_checkpoint(
        path,
        {
            "model.safetensors": lambda file: write_weights(file, weights),
            "tokenizer.json": lambda file: file.write_text(tokenizer.definition),
            "meta.json": lambda file: write_json(file, meta),
        },
    )
    return path


def opened(arguments: list[str], action: str) -> collections.Counter[str]:
    """Run a program and count how often it opens meta.json and manifest.json."""
    code = COUNTED.format(arguments=arguments, action=action)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return collections.Counter(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.usefixtures("starts_processes")
def test_infer_reads_each_file_once(checkpoint: Path) -> None:
    arguments = ["infer.py", "--ckpt", str(checkpoint), "--prompt", "a", "--device", "cpu"]
    arguments += ["--max-new-tokens", "2"]
    counts = opened(arguments, 'runpy.run_path("infer.py", run_name="__main__")')
    assert counts == {"meta.json": 1, "manifest.json": 1}


@pytest.mark.usefixtures("starts_processes")
def test_load_reads_each_file_once(checkpoint: Path) -> None:
    action = f"import lm; lm.load({str(checkpoint)!r})"
    assert opened(["-"], action) == {"meta.json": 1, "manifest.json": 1}


def test_load_returns_the_plain_dict_with_keys_that_it_does_not_know(checkpoint: Path) -> None:
    meta = load(checkpoint).meta
    assert type(meta) is dict and meta["a key of another version"] == 1
