"""The door for scripts: python -m pytest tests/generation/test_load.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lm import load
from lm.config.schema.model import ModelConfig
from lm.system.errors import ConfigError
from lm.tokenizer.tokenizer import ByteTokenizer
from model import Decoder
from tests.support import runs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = {"vocab_size": 260, "context_length": 32, "n_layers": 1, "d_model": 16, "n_heads": 2}
    decoder = Decoder(ModelConfig(**shape, init_std=0.3))  # type: ignore[arg-type]
    return runs.write_trained(tmp_path_factory.mktemp("run"), decoder, ByteTokenizer(), {}, 3)


def test_greedy_text_is_the_likeliest_token_after_token(checkpoint: Path) -> None:
    model = load(checkpoint)
    ids = [model.tokenizer.eos_id, *b"Once"]
    for _ in range(9):
        with torch.no_grad():
            ids.append(int(model.decoder(torch.tensor([ids]))[0, -1].argmax()))
    written = model.generate("Once", max_new_tokens=9, temperature=0)
    assert written == model.tokenizer.decode(ids[5:])


def test_equal_seeds_write_equal_texts(checkpoint: Path) -> None:
    model = load(checkpoint)
    first = model.generate("", max_new_tokens=20, seed=1)
    assert model.generate("", max_new_tokens=20, seed=1) == first
    assert model.generate("", max_new_tokens=20, seed=2) != first


def test_a_text_ends_before_a_stop_string(checkpoint: Path) -> None:
    model = load(checkpoint)
    whole = model.generate("a", max_new_tokens=20, temperature=0)
    stop = whole[3:5]
    assert model.generate("a", 20, stops=[stop], temperature=0) == whole[: whole.index(stop)]


def test_it_unpacks_and_checks_its_options(checkpoint: Path) -> None:
    decoder, tokenizer, meta = model = load(checkpoint)
    assert (decoder, tokenizer, meta["step"]) == (model.decoder, model.tokenizer, 3)
    with pytest.raises(ConfigError, match="temperature -1"):
        model.generate("a", temperature=-1)
