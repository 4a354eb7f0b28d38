"""Pretrain a decoder on text.

python train.py --config config_smoke.yaml
python train.py --config config_smoke.yaml --optimizer.lr 1e-3 --trainer.max_steps 200
python train.py --config config_smoke.yaml --resume auto
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lm import errors
from lm.checkpoint import point, step_directories
from lm.config import Loaded, load
from lm.config_keys import help_text
from lm.config_text import describe
from lm.errors import ConfigError, NonFiniteError
from lm.incidents import GoBack
from lm.origin import Origin, find_origin, is_finished
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
    elif arguments.plan:
        with StopSignals(speaks=True) as signals:
            build_session(loaded.config, Origin(), None, signals, print).plan(print)
    else:
        train(loaded, arguments.resume, arguments.init_from)


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


def train(loaded: Loaded, resume: str | None, init_from: str | None) -> None:
    """Claim the run's folder and train in it, again from its newest checkpoint where `trainer.on_nonfinite` says so."""
    config, first = loaded.config, is_first_process()
    started = os.environ.get("WORLD_SIZE", str(config.trainer.devices))
    if started != str(config.trainer.devices):
        raise ConfigError(f"trainer.devices: the launcher started {started} processes, got {config.trainer.devices}; write {started}")
    say = print if first else lambda *_: None
    run = RunFolder(config.checkpoint.directory) if first else None
    errors.keep_tracebacks_in(Path(config.checkpoint.directory))
    try:
        with StopSignals(speaks=first) as signals:
            while True:
                try:
                    return train_session(loaded, resume, init_from, run, signals, say)
                except GoBack as back:
                    if not step_directories(config.checkpoint.directory):
                        raise NonFiniteError(
                            f"{back}; but it has none yet: checkpoint.save_every is {config.checkpoint.save_every}"
                        ) from None
                    say(back)
                    resume, init_from = "auto", None
    finally:
        if run is not None:
            run.close()


def train_session(
    loaded: Loaded, resume: str | None, init_from: str | None, run: RunFolder | None, signals: StopSignals, say: Callable[..., None]
) -> None:
    """Find where to start, load what is heavy, and go."""
    config, folder = loaded.config, Path(loaded.config.checkpoint.directory)
    origin = find_origin(config, folder, resume, init_from, say)
    if origin.resume is not None and is_finished(config, folder, origin.step):
        if run is not None:
            point(folder, "final.ckpt", origin.resume)  # it is not, where the budget was lowered
        more = "a larger budget (trainer.max_steps, max_tokens) or patience (early_stopping) lets it go on"
        say(f"{folder} has finished its {origin.step:,} steps; {more}")
        return
    if origin.init_from is not None and origin.meta is not None and loaded.origins["tokenizer.name"] == "default":
        config = config.with_tokenizer(str(origin.meta["tokenizer"].get("name")))
    build_session(config, origin, run, signals, say).train()


def build_session(config: Config, origin: Origin, run: RunFolder | None, signals: StopSignals, say: Callable[[str], None]) -> Session:
    """Everything heavy: torch and Lightning take seconds to import, and nothing before needs them."""
    from data import PackedDataModule
    from lm.session import Session
    from model import Decoder

    tokenizer = choose_tokenizer(config.tokenizer.name, origin)
    shape = config.with_vocabulary(tokenizer.vocab_size).model
    return Session(config, tokenizer, PackedDataModule(config, tokenizer, say), lambda: Decoder(shape), origin, run, signals)


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


def is_first_process() -> bool:
    """Of a run on many devices; the launchers say so in the environment."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


if __name__ == "__main__":
    errors.run(main)
