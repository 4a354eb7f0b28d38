"""Fine-tuning runs for tests, with nothing of their own but the decoder: a base, and adapters trained on the same small text. Run alone:

python -m tests.adapted CONFIG [KEY=VALUE ...] [--resume auto]
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import yaml

from lm import errors
from lm.base import open_base, tokenizer_of, with_base
from lm.config import load
from lm.launch import launch
from lm.origin import Origin
from lm.run import RunFolder
from lm.schema import Config
from lm.stopping import StopSignals
from tests.runs import config_file


def config_of(folder: Path, base: Path, **lora: object) -> Path:
    """A YAML file for adapters of 12 steps, that trains on the text that `base` was trained on."""
    file = config_file(folder)
    values = yaml.safe_load(file.read_text())
    values["model"] = {"dropout": 0.1}
    values["finetune"] = {"base": str(base), "method": "lora", "lora": {"rank": 2, "alpha": 8, "dropout": 0.1} | lora}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def finetune(file: Path, *overrides: str, resume: str | None = None) -> None:
    config = with_base(load(file, list(overrides)).config)
    assert config.finetune is not None
    launch(config, resume, None if resume else config.finetune.base, functools.partial(train_from, config))


def train_from(config: Config, origin: Origin, run: RunFolder | None, signals: StopSignals) -> None:
    from data import PackedDataModule
    from lm.adapters import load_whole
    from lm.lora import add_adapters
    from lm.session import Session
    from model import Decoder

    assert config.finetune is not None
    settings = config.finetune
    tokenizer = tokenizer_of(config)

    def make_decoder() -> Decoder:
        decoder = Decoder(config.model)
        load_whole(decoder, open_base(config).folder)
        if settings.method != "full":
            add_adapters(decoder, settings.lora, four_bits=settings.method == "qlora")
        return decoder

    def silent(*_: object) -> None: ...

    Session(config, tokenizer, PackedDataModule(config, tokenizer, silent), make_decoder, origin, run, signals).train()


def main() -> None:
    file, *rest = sys.argv[1:]
    resume = rest[-1] if "--resume" in rest else None
    finetune(Path(file), *(word for word in rest if word.startswith("--") and word != "--resume"), resume=resume)


if __name__ == "__main__":
    errors.run(main)
