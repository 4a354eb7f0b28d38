"""The door `from lm import load`, and the old one, which names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lm
from lm.config.schema.model import ModelConfig
from lm.system import errors
from lm.tokenizer.tokenizer import ByteTokenizer
from model import Decoder
from tests.support import runs


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = ByteTokenizer()
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=16, n_layers=1, n_heads=2, context_length=8
    )
    return runs.write_trained(tmp_path, Decoder(shape), tokenizer, {}, 3)


def test_an_opened_checkpoint_has_names_and_unpacks_as_a_triple(checkpoint: Path) -> None:
    model = lm.load(checkpoint)
    decoder, tokenizer, meta = model
    assert (model.decoder, model.tokenizer, model.meta) == (decoder, tokenizer, meta)
    assert isinstance(decoder, Decoder) and not decoder.training
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b" and meta["step"] == 3
    assert decoder(torch.tensor([[1, 2]])).shape == (1, 2, tokenizer.vocab_size)


@pytest.mark.usefixtures("starts_processes")
def test_the_package_is_light_until_load_is_asked_for() -> None:
    program = "import lm, sys; print({m for m in sys.modules if m == 'torch' or m[:3] == 'lm.'})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        getattr(lm, "loads")  # noqa: B009


def test_the_old_door_names_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        from model import load  # type: ignore[attr-defined]

        print(load)

    with pytest.raises(ImportError, match=r"`from lm import load`") as refusal:
        command()
    assert "\n" not in str(refusal.value)
    with pytest.raises(SystemExit) as ended:
        errors.run(command)
    message = capsys.readouterr().err
    assert ended.value.code and message.count("\n") == 1 and "`from lm import load`" in message
