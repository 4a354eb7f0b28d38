"""Train a byte-level BPE vocabulary on the text of a configuration, and measure it.

python -m tools.train_tokenizer --config config.yaml --vocab-size 16000 --out runs/bpe16000
python train.py --config config.yaml --tokenizer.name runs/bpe16000/tokenizer.json

It reads only the training side of the split. --out NAME.json writes one file. Any other name is a
folder, which also gets the tokenizer_config.json that transformers' AutoTokenizer needs. Any key of
the configuration can be changed, as in train.py. The chat template chatml needs
--special '<|im_start|>' --special '<|im_end|>'.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lm.commands import add_flag, command_parser, load_config, to_path
from lm.system import disk, errors

if TYPE_CHECKING:
    from lm.documents.reader import Reader
    from lm.tokens.prepare import Split

# The texts of each source, by its key; each can be read again.
Texts = dict[str, Callable[[], Iterator[str]]]

SAMPLE = 10_000_000  # bytes of each side of each source that the report measures in some seconds


def main() -> None:
    """Check the arguments, then train, write and measure the vocabulary."""
    arguments, overrides = parser().parse_known_args()
    data = load_config(arguments.config, overrides, trains=False).config.data

    from lm.tokenizer.learn import SETTINGS
    from lm.tokens import sources, vocabulary

    check(arguments)
    file, settings = free_paths(arguments.out, arguments.force)
    started = time.perf_counter()
    budget = arguments.bytes or vocabulary.BUDGET
    try:
        learnt = vocabulary.learn_from(data, arguments.vocab_size, arguments.special, budget)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; nothing was written", file=sys.stderr, flush=True)
        sys.exit(130)
    if settings is not None:
        disk.replace(settings, json.dumps(SETTINGS, indent=2) + "\n")
    disk.replace(file, learnt.definition)
    skipped = learnt.skipped
    print(
        f"{file}: trained on {learnt.text_bytes:,} bytes of the training text in"
        f" {time.perf_counter() - started:.0f} s",
        end="",
    )
    print(
        "; left out: " + ", ".join(f"{count:,} x {kind}" for kind, count in skipped.items())
        if skipped
        else ""
    )
    report(file, arguments.vocab_size, *sides(sources.readers(data)))


def check(arguments: argparse.Namespace) -> None:
    """Refuse special tokens that cannot be learnt, and sizes that are out of range."""
    from lm.tokenizer.learn import LEAST_VOCABULARY, MOST_BYTES, check_specials

    check_specials(arguments.special)
    sizes = (
        ("--vocab-size", arguments.vocab_size, LEAST_VOCABULARY + len(arguments.special), 2**20),
        ("--bytes", 1 if arguments.bytes is None else arguments.bytes, 1, MOST_BYTES),
    )
    for flag, value, least, most in sizes:
        if not least <= value <= most:
            raise errors.ConfigError(
                f"{flag}: {value:,} is out of range; write {least:,} to {most:,}"
            )


def report(file: Path, asked: int, train: Texts, val: Texts) -> None:
    """Load the written file as a run does, and print how it encodes both sides of the split.

    Raises:
        UserError: a text is not the same after encoding and decoding.
    """
    from lm.tokenizer.learn import excerpt, measure, usage_report
    from lm.tokenizer.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(file))
    fewer = (
        f", not {asked:,}: no pair of tokens occurs twice in this text"
        if tokenizer.vocab_size < asked
        else ""
    )
    print(
        f"{tokenizer.vocab_size:,} tokens{fewer}; the first {SAMPLE:,} bytes of each text become:"
    )
    usages = {
        f"{name}, {split}": measure(tokenizer, excerpt(texts(), SAMPLE))
        for split, side in (("training", train), ("validation", val))
        for name, texts in side.items()
    }
    print(*usage_report(tokenizer, usages), sep="\n")
    if any(usage.changed for usage in usages.values()):
        raise errors.UserError(f"{file}: it does not give back every text; do not train with it")


def parser() -> argparse.ArgumentParser:
    """Return the parser; any key of the configuration is one more flag."""
    result = command_parser("python -m tools.train_tokenizer", __doc__)
    add_flag(result, "--config", help="the YAML file that names the text and its split")
    result.add_argument(
        "--vocab-size",
        required=True,
        type=int,
        metavar="N",
        help="256 bytes, the merges, and the special tokens",
    )
    result.add_argument(
        "--out", required=True, type=to_path, metavar="PATH", help="a folder, or a file NAME.json"
    )
    budget = "train on the first N bytes of the training text (200,000,000)"
    result.add_argument("--bytes", type=int, metavar="N", help=budget)
    special = "another special token, such as '<|im_end|>'; may be given several times"
    result.add_argument("--special", action="append", default=[], metavar="TOKEN", help=special)
    result.add_argument("--force", action="store_true", help="replace existing files")
    return result


def free_paths(out: Path, force: bool) -> tuple[Path, Path | None]:
    """Return the paths of tokenizer.json and, if `out` is a folder, of tokenizer_config.json.

    The folder is created.

    Raises:
        ConfigError: a file exists, and `force` is false.
    """
    alone = out.suffix == ".json" and not out.is_dir()
    file, settings = (
        (out, None) if alone else (out / "tokenizer.json", out / "tokenizer_config.json")
    )
    for path in (file, settings):
        if path is not None and path.exists() and not force:
            raise errors.ConfigError(
                f"--out: {path} is there already; name another, or write over it with --force"
            )
    with disk.refusals(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    return file, settings


def sides(readers: list[tuple[Reader, Split]]) -> tuple[Texts, Texts]:
    """Return the texts to train on and those to validate on, split as train.py splits them."""
    from lm.tokens.vocabulary import texts_of

    def part(reader: Reader, split: Split, side: str) -> Callable[[], Iterator[str]]:
        return lambda: texts_of(reader, split, side)

    train = {
        reader.key: part(reader, split, "train") for reader, split in readers if split.kind != "all"
    }
    return train, {
        reader.key: part(reader, split, "val") for reader, split in readers if split.kind != "none"
    }


if __name__ == "__main__":
    errors.run(main)
