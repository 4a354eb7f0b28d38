"""Pretrain a decoder on text.

python train.py --config config_smoke.yaml
python train.py --config config_smoke.yaml --optimizer.lr 1e-3 --trainer.max_steps 200
python train.py --config config_smoke.yaml --resume auto
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lm import errors
from lm.checkpoint import point, step_directories
from lm.config import Loaded, load
from lm.config_keys import help_text
from lm.config_text import describe
from lm.errors import NonFiniteError
from lm.incidents import GoBack
from lm.origin import Origin, find_origin, is_finished
from lm.processes import check_launcher, first_decides, is_first
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
    config, folder = loaded.config, Path(loaded.config.checkpoint.directory)
    check_launcher(config.trainer)
    errors.keep_tracebacks_in(folder)
    run: RunFolder | None = None

    def claim() -> Origin | None:
        nonlocal run
        run = run or RunFolder(folder)
        return where_to_start(config, folder, resume, init_from)

    try:
        with StopSignals(speaks=is_first()) as signals:
            while (origin := first_decides(claim, config.trainer)) is not None:
                try:
                    return train_from(origin, loaded, run, signals)
                except GoBack as back:
                    if not step_directories(folder):
                        raise NonFiniteError(
                            f"{back}; but it has none yet: checkpoint.save_every is {config.checkpoint.save_every}"
                        ) from None
                    if run is not None:
                        print(back, flush=True)
                    resume, init_from = "auto", None
    finally:
        if run is not None:
            run.close()


def where_to_start(config: Config, folder: Path, resume: str | None, init_from: str | None) -> Origin | None:
    """Where the weights come from; None for a run that has reached its end already. Says what was decided."""
    origin = find_origin(config, folder, resume, init_from, print)
    if origin.resume is None or not is_finished(config, folder, origin.step):
        return origin
    point(folder, "final.ckpt", origin.resume)  # it is not, where the budget was lowered
    more = "a larger budget (trainer.max_steps, max_tokens) or patience (early_stopping) lets it go on"
    print(f"{folder} has finished its {origin.step:,} steps; {more}")
    return None


def train_from(origin: Origin, loaded: Loaded, run: RunFolder | None, signals: StopSignals) -> None:
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


if __name__ == "__main__":
    errors.run(main)
