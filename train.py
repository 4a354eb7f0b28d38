"""Pretrain a decoder on text.

python train.py --config config_smoke.yaml
python train.py --config config_smoke.yaml --optimizer.lr 1e-3 --trainer.max_steps 200
python train.py --config config_smoke.yaml --resume auto
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from lm import errors
from lm.config import Loaded, load
from lm.config_keys import help_text
from lm.config_text import describe
from lm.errors import ConfigError
from lm.launch import launch
from lm.origin import Origin
from lm.processes import is_first
from lm.run import RunFolder
from lm.schema import Config
from lm.stopping import StopSignals
from lm.stored import read_tokenizer

if TYPE_CHECKING:
    from lm.session import Session
    from lm.tokenizer import Tokenizer


def main() -> None:
    """Read the command line; refuse or answer what needs no model; then train."""
    arguments, overrides = parser().parse_known_args()
    loaded = load(arguments.config, overrides)
    if arguments.print_config:
        print(describe(loaded.config, loaded.origins), end="")
    elif arguments.plan and (arguments.resume or arguments.init_from):
        raise ConfigError("command line: --plan plans the whole run, from its first step; leave out --resume and --init-from")
    elif arguments.plan:
        with StopSignals(speaks=True) as signals:
            build_session(loaded.config, Origin(), None, signals, print).plan(print)
    else:
        launch(loaded.config, arguments.resume, arguments.init_from, functools.partial(train_from, loaded))


def parser() -> argparse.ArgumentParser:
    """The flags; any key of the configuration is one more."""
    epilog = help_text() if {"-h", "--help"} & set(sys.argv) else ""
    result = argparse.ArgumentParser(
        prog="train.py", description=__doc__, epilog=epilog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--config", required=True, metavar="FILE", help="the run's YAML file, such as config_smoke.yaml")
    start = result.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        metavar="auto|CKPT",
        help="continue a run: auto takes the newest whole checkpoint in checkpoint.directory, or starts one",
    )
    start.add_argument("--init-from", metavar="CKPT", help="start a new run from a checkpoint's weights")
    result.add_argument("--plan", action="store_true", help="try one micro-batch and say what the run would take: memory, disk, time")
    result.add_argument("--print-config", action="store_true", help="print the effective configuration and where each value came from")
    return result


def train_from(loaded: Loaded, origin: Origin, run: RunFolder | None, signals: StopSignals) -> None:
    """One session."""
    config = loaded.config
    if origin.init_from is not None and origin.meta is not None and loaded.origins["tokenizer.name"] == "default":
        config = config.with_tokenizer(str(origin.meta["tokenizer"].get("name")))
    build_session(config, origin, run, signals, print if is_first() else lambda *_: None).train()


def build_session(config: Config, origin: Origin, run: RunFolder | None, signals: StopSignals, say: Callable[[str], None]) -> Session:
    """Everything heavy: torch and Lightning take seconds to import, and nothing before needs them."""
    from data import PackedDataModule
    from lm.session import Session
    from model import Decoder

    tokenizer = choose_tokenizer(config.tokenizer.name, origin)
    shape = config.with_vocabulary(tokenizer.vocab_size).model
    data = PackedDataModule(config, tokenizer, say, origin.revisions)
    return Session(config, tokenizer, data, lambda: Decoder(shape), origin, run, signals)


def choose_tokenizer(name: str, origin: Origin) -> Tokenizer:
    """The configured one. A checkpoint brings its own, so a run goes on without the network; any other name must mean the same."""
    from lm.tokenizer import load_tokenizer, require_same

    if origin.path is None or origin.meta is None:
        return load_tokenizer(name)
    stored = read_tokenizer(origin.path, origin.meta)
    trained_with = origin.meta["config"].get("tokenizer")
    if name not in (origin.meta["tokenizer"]["name"], trained_with.get("name") if isinstance(trained_with, dict) else None):
        require_same(load_tokenizer(name), stored)
    return stored


if __name__ == "__main__":
    errors.run(main)
