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
from lm.checkpoint import point, read_tokenizer
from lm.config import Loaded, load
from lm.config_keys import help_text
from lm.config_text import describe
from lm.origin import Origin, find_origin, is_finished
from lm.processes import check_launcher, first_decides, is_first
from lm.run import RunFolder
from lm.schema import Config

if TYPE_CHECKING:
    from lm.session import Session
    from lm.tokenizer import Tokenizer


def main() -> None:
    """Read the command line; refuse or answer what needs no model; then train."""
    arguments, overrides = parser().parse_known_args()
    loaded = load(arguments.config, overrides)
    if arguments.print_config:
        print(describe(loaded.config, loaded.origins), end="")
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
    result.add_argument("--print-config", action="store_true", help="print the effective configuration and where each value came from")
    return result


def train(loaded: Loaded, resume: str | None, init_from: str | None) -> None:
    """Claim the run's folder, find where to start, load what is heavy, and go."""
    config = loaded.config
    check_launcher(config.trainer)
    run: RunFolder | None = None

    def claim() -> Origin | None:
        nonlocal run
        run = RunFolder(Path(config.checkpoint.directory))
        return where_to_start(config, run.path, resume, init_from)

    try:
        origin = first_decides(claim, config.trainer)
        if origin is None:
            return
        if origin.init_from is not None and origin.meta is not None and loaded.origins["tokenizer.name"] == "default":
            config = config.with_tokenizer(origin.meta["tokenizer"]["name"])
        build_session(config, origin, run, print if is_first() else lambda *_: None).train()
    finally:
        if run is not None:
            run.close()


def where_to_start(config: Config, folder: Path, resume: str | None, init_from: str | None) -> Origin | None:
    """Where the weights come from; None for a run that has reached its end already. Says what was decided."""
    origin = find_origin(config, folder, resume, init_from, print)
    if origin.resume is None or not is_finished(config, folder, origin.step):
        return origin
    point(folder, "final.ckpt", origin.resume)  # a kill may have come just before that
    more = "a larger budget (trainer.max_steps, max_tokens) or patience (early_stopping) lets it go on"
    print(f"{folder} has finished its {origin.step:,} steps; {more}")
    return None


def build_session(config: Config, origin: Origin, run: RunFolder | None, say: Callable[[str], None]) -> Session:
    """Everything heavy: torch and Lightning take seconds to import, and nothing before needs them."""
    from data import PackedDataModule
    from lm.session import Session
    from model import Decoder

    tokenizer = choose_tokenizer(config.tokenizer.name, origin)
    shape = config.with_vocabulary(tokenizer.vocab_size).model
    return Session(config, tokenizer, PackedDataModule(config, tokenizer, say), lambda: Decoder(shape), origin, run)


def choose_tokenizer(name: str, origin: Origin) -> Tokenizer:
    """The configured one. A checkpoint brings its own, so a run goes on without the network; any other name must mean the same."""
    from lm.tokenizer import load_tokenizer, require_same

    if origin.path is None or origin.meta is None:
        return load_tokenizer(name)
    stored = read_tokenizer(origin.path, origin.meta)
    if name != origin.meta["config"]["tokenizer"]["name"]:
        require_same(load_tokenizer(name), stored)
    return stored


if __name__ == "__main__":
    errors.run(main)
