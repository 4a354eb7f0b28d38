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
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from lm.commands import add_flag, command_parser, load_config, to_path
from lm.system import disk, errors

if TYPE_CHECKING:
    from lm.documents.reader import Reader
    from lm.tokens.prepare import Split

# The texts of each source, by its key; each can be read again.
Texts = dict[str, Callable[[], Iterator[str]]]

# Bytes; they take a minute or two and up to 2 GiB of memory. More gains little: with 16,000 tokens,
# 7 instead of 4 MB of film reviews made held-out text 0.2 % shorter.
BUDGET = 200_000_000
SAMPLE = 10_000_000  # bytes of each side of each source that the report measures in some seconds


def main() -> None:
    """Check the arguments, then train, write and measure the vocabulary."""
    arguments, overrides = parser().parse_known_args()
    data = load_config(arguments.config, overrides).config.data

    from lm.tokenizer.learn import SETTINGS, excerpt, learn
    from lm.tokens import sources

    specials = arguments.special
    check(arguments)
    file, settings = free_paths(arguments.out, arguments.force)
    started = time.perf_counter()
    readers = sources.readers(data)
    train, val = sides(readers)
    weights = {key: part.weight for key, part in data.parts}
    parts = (
        excerpt(texts(), arguments.bytes * weights[key] // sum(weights.values()))
        for key, texts in train.items()
    )
    definition, text_bytes = in_a_thread(
        lambda: learn(itertools.chain.from_iterable(parts), arguments.vocab_size, specials)
    )
    if text_bytes == 0:
        advice = (
            "; a single document needs data.split: tail"
            if data.split == "hash" and data.validation is None
            else ""
        )
        raise errors.DataError(
            f"data.source: there is no text on the training side of the split{advice}"
        )
    if settings is not None:
        disk.replace(settings, json.dumps(SETTINGS, indent=2) + "\n")
    disk.replace(file, definition)
    skipped = sum((reader.skipped for reader, _ in readers), start=Counter())
    print(
        f"{file}: trained on {text_bytes:,} bytes of the training text in"
        f" {time.perf_counter() - started:.0f} s",
        end="",
    )
    print(
        "; left out: " + ", ".join(f"{count:,} x {kind}" for kind, count in skipped.items())
        if skipped
        else ""
    )
    report(file, arguments.vocab_size, train, val)


def check(arguments: argparse.Namespace) -> None:
    """Refuse special tokens that cannot be learnt, and sizes that are out of range."""
    from lm.tokenizer.learn import LEAST_VOCABULARY, MOST_BYTES, check_specials

    check_specials(arguments.special)
    sizes = (
        ("--vocab-size", arguments.vocab_size, LEAST_VOCABULARY + len(arguments.special), 2**20),
        ("--bytes", arguments.bytes, 1, MOST_BYTES),
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
    budget = f"train on the first N bytes of the training text ({BUDGET:,})"
    result.add_argument("--bytes", type=int, default=BUDGET, metavar="N", help=budget)
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
    from lm.tokens.sources import documents_by_split

    def part(reader: Reader, split: Split, side: str) -> Callable[[], Iterator[str]]:
        return lambda: (text for name, text in documents_by_split(reader, split) if name == side)

    train = {
        reader.key: part(reader, split, "train") for reader, split in readers if split.kind != "all"
    }
    return train, {
        reader.key: part(reader, split, "val") for reader, split in readers if split.kind != "none"
    }


def in_a_thread(work: Callable[[], tuple[str, int]]) -> tuple[str, int]:
    """Return the result of `work()`, which runs in a thread.

    `tokenizers` ignores signals. In a thread it does not keep Ctrl-C from ending the command.
    """
    try:
        return ThreadPoolExecutor(1).submit(work).result()
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; nothing was written", file=sys.stderr, flush=True)
        os._exit(130)  # sys.exit would wait for the thread


if __name__ == "__main__":
    errors.run(main)
