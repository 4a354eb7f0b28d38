"""Tokenise the text of a configuration before its run, so that train.py starts at once and offline.

python -m tools.prepare --config config.yaml
python -m tools.prepare --config config.yaml --processes 4 --verify
python -m tools.prepare --config config.yaml --ray

Any key of the configuration can be given as --section.key VALUE. If the command is stopped, start
it again, and it continues where it was.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lm.commands import add_flag, command_parser, load_config
from lm.system import errors
from lm.system.signals import StopSignals
from lm.system.streams import outlive_stdout
from lm.system.units import in_bytes

if TYPE_CHECKING:
    from lm.config.schema.config import Config
    from lm.documents.reader import Piece
    from lm.tokenizer.tokenizer import Tokenizer
    from lm.tokens.corpus import Corpus
    from lm.tokens.tokenise import Engine, Tokenise, Tokens


def main() -> None:
    """Parse the arguments, tokenise sources that have no tokens yet, and print what there is."""
    arguments, overrides = parser().parse_known_args()
    config = load_config(arguments.config, overrides, trains=False).config
    if streamed := [
        key for key, part in config.data.parts if getattr(part.source, "streaming", False)
    ]:
        # The parts of a mixture cannot be changed by a flag.
        flag = " (--data.source.streaming false)" if streamed == ["data.source"] else ""
        raise errors.ConfigError(
            f"{streamed[0]}: what is streamed is tokenised as training goes, not ahead; write"
            " streaming: false, here and for train.py, to read the dataset once and keep its"
            f" tokens{flag}"
        )
    outlive_stdout()  # the product is the cache
    with StopSignals(speaks=False, advice="start it again, and it goes on where it was"):
        from lm.checkpoints.base import tokenizer_of

        tokenizer = tokenizer_of(config)
        engine = _engine(arguments.ray, arguments.processes)
        make(config, tokenizer, engine, arguments.verify)


def _engine(ray: bool, processes: int | None) -> Engine:
    if ray:
        from lm.tokens.ray_engine import on_ray

        return on_ray
    from lm.tokens.engines import on_this_machine

    return functools.partial(on_this_machine, processes=processes)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = command_parser("python -m tools.prepare", __doc__)
    add_flag(result, "--config")
    where = result.add_mutually_exclusive_group()
    where.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="processes that tokenise (default: one per core); with 1 only this process",
    )
    where.add_argument(
        "--ray",
        action="store_true",
        help="tokenise on the Ray cluster that RAY_ADDRESS names, or on this machine",
    )
    result.add_argument(
        "--verify",
        action="store_true",
        help="read all tokens, as training does first, and make damaged ones again",
    )
    return result


def positive(text: str) -> int:
    """Parse a number of processes. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1,024")
    return int(text)


def make(config: Config, tokenizer: Tokenizer, engine: Engine, verify: bool) -> None:
    """Open the tokens of all sources, make those that are missing, and print what there is."""
    from lm.tokens.corpus import open_corpora

    made = set()

    def noting(function: Tokenise, pieces: Iterator[Piece]) -> Iterator[Tokens]:
        made.add(function.reader.key)
        return engine(function, pieces)

    start = time.perf_counter()
    corpora = open_corpora(config, tokenizer, _say, noting, verify=verify)
    seconds = time.perf_counter() - start
    for corpus in corpora:
        _say("; ".join([f"{corpus.key}: {_amount(corpus)}", *corpus.facts]))
    if text := sum(
        store.text_bytes for corpus in corpora if corpus.key in made for store in corpus.stores
    ):
        _say(f"made in {seconds:,.1f} s, {in_bytes(text / seconds)} of text a second")
    elif not made:
        _say("everything was there already" + (", and is as it was written" if verify else ""))


def _amount(corpus: Corpus) -> str:
    amounts = [
        f"{store.split} {store.documents:,} documents, {store.tokens:,} tokens"
        for store in corpus.stores
        if store.documents
    ]
    size = sum(path.stat().st_size for path in corpus.folder.iterdir())
    return ", ".join([*amounts, f"{in_bytes(size)} on disk"])


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    errors.run(main)
