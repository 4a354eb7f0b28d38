"""Make the tokens of a configuration ahead of its run, so that train.py starts at once and without the network.

python -m tools.prepare --config config.yaml
python -m tools.prepare --config config.yaml --processes 4 --verify

Any key of the configuration can be given as --section.key VALUE. What was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lm import errors
from lm.config import load
from lm.disk import refusals

if TYPE_CHECKING:
    from lm.corpus import Corpus
    from lm.schema import Config
    from lm.sources import Piece
    from lm.tokenizer import Tokenizer
    from lm.tokens import Tokenise, Tokens


def main() -> None:
    """Read the command line, make what is missing, and say what there is."""
    arguments, overrides = parser().parse_known_args()
    config = load(arguments.config, overrides).config
    from lm.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer.name)
    corpora = make(config, tokenizer, arguments.processes)
    if arguments.verify and remove_damaged(corpora):
        make(config, tokenizer, arguments.processes)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        prog="python -m tools.prepare", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--config", required=True, metavar="FILE", help="the run's YAML file")
    result.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="how many read and tokenise (default: one for each core); with 1 no other is started",
    )
    result.add_argument("--verify", action="store_true", help="also read all that is there, and make again what is damaged")
    return result


def positive(text: str) -> int:
    """A number of processes. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1,024")
    return int(text)


def make(config: Config, tokenizer: Tokenizer, processes: int | None) -> list[Corpus]:
    """Open the tokens of all sources, made first where they are missing, and say what there is."""
    from lm.corpus import open_corpora
    from lm.engines import on_this_machine

    made = set()

    def engine(function: Tokenise, pieces: Iterator[Piece]) -> Iterator[Tokens]:
        made.add(function.reader.key)
        return on_this_machine(function, pieces, processes)

    start = time.perf_counter()
    corpora = open_corpora(config.data, tokenizer, _say, engine)
    seconds = time.perf_counter() - start
    for corpus in corpora:
        _say("; ".join([f"{corpus.key}: {_amount(corpus)}", *corpus.facts]))
    if text := sum(corpus.train.text_bytes + corpus.val.text_bytes for corpus in corpora if corpus.key in made):
        _say(f"made in {seconds:,.1f} s, {text / 1e6 / seconds:,.1f} MB of text a second")
    elif not made:
        _say("everything was there already")
    return corpora


def remove_damaged(corpora: list[Corpus]) -> bool:
    """Whether a file's content is not what was written; its tokens are taken away, to be made again."""
    from lm.cache import damaged, read_manifest

    found = False
    for corpus in corpora:
        manifest = read_manifest(corpus.folder)
        files = damaged(corpus.folder, manifest) if manifest is not None else ["manifest.json"]
        _say(f"{corpus.key}: " + (f"damaged: {', '.join(files)}" if files else "verified"))
        if files:
            found = True
            with refusals(corpus.folder):
                (corpus.folder / "manifest.json").unlink(missing_ok=True)
    return found


def _amount(corpus: Corpus) -> str:
    splits = (("train", corpus.train), ("val", corpus.val))
    amounts = [f"{name} {store.documents:,} documents, {store.tokens:,} tokens" for name, store in splits if store.documents]
    size = sum(path.stat().st_size for path in corpus.folder.iterdir())
    return ", ".join([*amounts, f"{size / 1e6:,.1f} MB on disk"])


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    errors.run(main)
