"""Pretrain a decoder on text.

python train.py --config config_smoke.yaml
python train.py --config config_smoke.yaml --optimizer.lr 1e-3 --trainer.max_steps 200
python train.py --config config_smoke.yaml --resume auto
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lm.checkpoints.meta import read_tokenizer
from lm.commands import load_config
from lm.config.reader import Loaded
from lm.runs.folder import RunFolder
from lm.runs.origin import Origin
from lm.system import errors
from lm.system.errors import ConfigError
from lm.system.signals import StopSignals
from lm.training.command import run_command, training_parser

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer
    from lm.training.record import Session


def main() -> None:
    """Read the command line; refuse or answer what needs no model; then train."""
    arguments, overrides = training_parser("train.py", __doc__, init_from=True).parse_known_args()
    loaded = load_config(arguments.config, overrides)
    if loaded.config.finetune is not None:
        raise ConfigError(
            f"{arguments.config}: finetune: this configuration is for finetune.py; run it with"
            " that, or remove the section"
        )
    run_command(arguments, loaded, build_session, arguments.init_from)


def build_session(
    loaded: Loaded,
    origin: Origin,
    run: RunFolder | None,
    signals: StopSignals,
    say: Callable[[str], None],
) -> Session:
    """Everything heavy: torch and Lightning take seconds to import, and nothing before needs them."""
    from data import PackedDataModule
    from lm.checkpoints.adapters import load_whole
    from lm.training.record import Session
    from model import Decoder

    config = loaded.config
    if (
        origin.init_from is not None
        and origin.meta is not None
        and loaded.origins["tokenizer.name"] == "default"
    ):
        config = config.with_tokenizer(str(origin.meta["tokenizer"].get("name")))
    tokenizer = choose_tokenizer(config.tokenizer.name, origin)
    shape = config.with_vocabulary(tokenizer.vocab_size).model
    data = PackedDataModule(config, tokenizer, say, origin.revisions)

    def make_decoder() -> Decoder:
        decoder = Decoder(shape)
        if origin.init_from is not None:
            load_whole(decoder, origin.init_from)
        return decoder

    return Session(config, tokenizer, data, make_decoder, origin, run, signals)


def choose_tokenizer(name: str, origin: Origin) -> Tokenizer:
    """The configured one. A checkpoint brings its own, so a run goes on without the network; any
    other name must mean the same.
    """
    from lm.tokenizer.tokenizer import load_tokenizer, require_same

    if origin.path is None or origin.meta is None:
        return load_tokenizer(name)
    stored = read_tokenizer(origin.path, origin.meta)
    trained_with = origin.meta["config"].get("tokenizer")
    if name not in (
        origin.meta["tokenizer"]["name"],
        trained_with.get("name") if isinstance(trained_with, dict) else None,
    ):
        require_same(load_tokenizer(name), stored)
    return stored


if __name__ == "__main__":
    errors.run(main)
