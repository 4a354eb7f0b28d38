"""Show the data that the model will see: rows of real steps, counts, and overlap with validation.

python -m tools.inspect_data --config config_smoke.yaml
python -m tools.inspect_data --config config_smoke.yaml --step 100 --rows 2 --html rows.html
python -m tools.inspect_data --config config_smoke.yaml --against cases.json notes.txt

The command compares the validation text, and each file of --against, with the training text. It
lists the documents that share 13 words in a row with it, regardless of case and punctuation (as in
GPT-3's paper, appendix C). This reads the training text once for each 32 million characters of the
other text, and takes some hundred megabytes of memory; --ngram 0 skips it. Streamed text is not
stored: it is shown, but neither counted nor compared. Its windows up to the step are made, in the
run's cache.

Only the learnt part of conversations is compared. --sample N shows the N-th conversation of the
files instead, in full, with its learnt part marked.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from typing import TYPE_CHECKING

from lm.checkpoints.base import tokenizer_of
from lm.commands import add_flag, command_parser, load_config, to_path
from lm.system import errors
from lm.system.disk import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from data import PackedDataModule
    from lm.checks.overlap import Overlap
    from lm.checks.xray import Row, Stores
    from lm.config.schema.config import Config
    from lm.tokenizer.tokenizer import Tokenizer

NOTHING_STORED = "; overlap with the training text cannot be computed, because none of it is stored"


def main() -> None:
    """Check the arguments, open the data, count, compare, and print."""
    arguments, overrides = parser().parse_known_args()
    config = load_config(arguments.config, overrides, trains=False).config
    check(arguments, config)

    from data import PackedDataModule
    from lm.checks import rendering, xray
    from lm.documents.files import find_files
    from lm.tokens.corpus import named

    against = find_files(arguments.against, "--against")
    tokenizer = tokenizer_of(config)
    if arguments.sample is not None:
        show_sample(config, tokenizer, arguments.sample)
        return
    data = PackedDataModule(config, tokenizer, say=lambda line: print(line, file=sys.stderr))
    rows = rows_of(data, arguments.step, arguments.rows)
    stores = xray.stores_of(data.corpora)
    sources = [
        line
        for split in stores
        for line in xray.SourceStatistics.of(split, stores[split], config.row_length)
    ]
    overlaps = []
    if arguments.ngram and stores["train"]:
        overlaps = compare(stores, data, against, arguments.ngram)
    streamed = [name for name, corpus in named(data.corpora) if len(corpus.stores) < 2]
    counts = xray.RowStatistics.of(rows)
    shown = rows[: arguments.rows]

    tables = {"Sources": xray.source_table(sources), "Counts": xray.row_table(counts)}
    if overlaps:
        tables["Overlap"] = xray.overlap_table(overlaps, arguments.ngram)
    notes = notes_on(overlaps, arguments.ngram)
    if streamed:
        nothing = "" if stores["train"] else NOTHING_STORED
        notes[f"streamed, so neither counted nor compared{nothing}"] = streamed
    if arguments.html:
        title = f"What the model sees: {arguments.config}"
        replace(arguments.html, rendering.html_page(title, tables, shown, tokenizer, notes))
    if arguments.json:
        report = {"sources": sources, "streamed": streamed, "rows": counts, "overlaps": overlaps}
        print(json.dumps(report, default=dataclasses.asdict, indent=1))
    else:
        rendering.show_rows(shown, tokenizer, "no label: the next token is not learnt")
        rendering.show_tables(tables, notes)


def check(arguments: argparse.Namespace, config: Config) -> None:
    """Refuse a step that the run does not have, numbers out of range, and flags without effect."""
    check_step(arguments.step, config)
    for flag, least, most in ("rows", 1, 2**31), ("ngram", 0, 1000), ("sample", 1, 2**31):
        given = getattr(arguments, flag)
        if given is not None and not least <= given <= most:
            size = "small" if given < least else "large"
            raise errors.ConfigError(f"--{flag}: too {size}, got {given}, write {least} to {most}")
    for flag in ("html", "json", "against"):
        if arguments.sample is not None and getattr(arguments, flag):
            raise errors.ConfigError(
                f"--{flag}: --sample shows one conversation on the terminal; leave one of the two"
                " out"
            )


def check_step(step: int, config: Config) -> None:
    """Refuse a step that the run does not have."""
    steps = config.most_steps  # None: the text is not read yet
    if step < 0 or (steps is not None and step >= steps):
        last = f"0 to {steps - 1}" if steps is not None else "from 0"
        raise errors.ConfigError(
            f"--step: the run has the steps {last}, got {step}; write one of them"
        )


def rows_of(data: PackedDataModule, first: int, least: int) -> list[Row]:
    """Return the rows of complete steps from `first` on, at least `least` of them."""
    from lm.checks import xray
    from lm.tokens.corpus import named

    check_step(first, data.sized_config)
    names = [name for name, _ in named(data.trained)]
    rows: list[Row] = []
    data.start_step = first
    loader = data.train_dataloader()
    try:
        for step in loader.sampler:  # not a range: streams must be told of each step
            parts = data.plan.of_step(step, data.config.trainer.batch_size)[:, 0].tolist()
            rows += xray.read_rows(
                loader.dataset[step], data.tokenizer, [names[part] for part in parts]
            )
            if len(rows) >= least:
                break
    finally:
        data.teardown("fit")
    return rows


def compare(stores: Stores, data: PackedDataModule, against: list[str], n: int) -> list[Overlap]:
    """Find the overlap of the validation split and of further files with the training text."""
    from lm.checks.overlap import StoredDocuments, find_overlaps, read_held_out

    train, val = (
        StoredDocuments(split, [store for _, store in stores[split]], data.tokenizer)
        for split in ("train", "val")
    )
    texts = {"validation": val} | {file: read_held_out(file) for file in against}
    return find_overlaps(
        texts, train, n, [corpus.reader for corpus in data.corpora if len(corpus.stores) == 2]
    )


def notes_on(overlaps: Sequence[Overlap], n: int) -> dict[str, list[str]]:
    """Return the lines about each text that has documents in common with the training text."""
    from lm.checks.xray import match_lines

    return {
        f"{overlap.name}: in the training text too": match_lines(overlap, n)
        for overlap in overlaps
        if overlap.matches
    }


def show_sample(config: Config, tokenizer: Tokenizer, number: int) -> None:
    """Show one conversation, counted through the sources from 1."""
    from lm.checks import rendering, xray
    from lm.tokens.sources import readers

    conversations = itertools.chain.from_iterable(
        reader for reader, _ in readers(config.data, tokenizer) if reader.chat
    )
    if (document := next(itertools.islice(conversations, number - 1, None), None)) is None:
        raise errors.ConfigError(
            f"--sample: there are fewer than {number:,} conversations; write a smaller number"
        )
    row = xray.conversation_row(document, tokenizer.eos_id)
    rendering.show_rows([row], tokenizer, "not learnt")
    # the words in one piece, to be read and searched: a vocabulary may cut them into letters
    print(f"as text: {json.dumps(tokenizer.decode(row.ids[1:].tolist()), ensure_ascii=False)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; the configuration's keys are further flags."""
    result = command_parser("python -m tools.inspect_data", __doc__)
    add_flag(result, "--config", help="the YAML file; its keys can be changed, as in train.py")
    result.add_argument(
        "--step",
        type=int,
        default=0,
        metavar="K",
        help="the first optimiser step whose rows are shown (default: 0)",
    )
    result.add_argument(
        "--rows",
        type=int,
        default=4,
        metavar="N",
        help="how many rows, of this and the next steps (default: 4)",
    )
    result.add_argument(
        "--sample", type=int, metavar="N", help="show the N-th conversation instead"
    )
    result.add_argument(
        "--html",
        type=to_path,
        metavar="FILE",
        help="also write everything, with each token's details, into one HTML file",
    )
    result.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="FILE",
        help="more text to search for in the training text",
    )
    result.add_argument(
        "--ngram",
        type=int,
        default=13,
        metavar="N",
        help="how many words in a row (default: 13; 0: compare nothing)",
    )
    add_flag(result, "--json", help="print the numbers as one JSON object, and no rows")
    return result


if __name__ == "__main__":
    errors.run(main)
