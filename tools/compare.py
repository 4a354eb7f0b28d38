"""Hold two runs against each other: what was set differently, their curves by tokens, what they
wrote, and which is better.

python -m tools.compare runs/a runs/b
python -m tools.compare runs/a runs/b --out comparison.html
python -m tools.compare runs/a runs/b --json --no-model

The best checkpoint of each is scored on the same text, which is A's validation text and, where B
was validated on another, B's too: in nats per token on the same rows where both have the same
tokenizer, else in bits per byte on the same passages. The interval of the difference says what
another such text could have shown. --no-model leaves that out, and needs no torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lm.commands import add_flag, command_parser
from lm.reports.comparison import Comparison, compare
from lm.reports.comparison_views import as_json, page, terminal
from lm.runs.record import read_run
from lm.system import errors
from lm.system.disk import replace

if TYPE_CHECKING:
    from data import PackedDataModule
    from lm.evaluation.same_text import Verdict
    from lm.system.device import Device
    from lm.tokenizer.tokenizer import Tokenizer
    from model import Decoder


class Model(NamedTuple):
    """A run's best checkpoint, opened."""

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    data: PackedDataModule


def main() -> None:
    """Read both folders, score both models, and show what differs."""
    arguments = parser().parse_args()
    # lm/evaluation/intervals.py: five could all point in one direction by chance
    if arguments.rows < 6:
        raise errors.ConfigError(
            f"--rows: fewer than 6 rows give no interval, got {arguments.rows}; write 6 or more"
        )
    found = compare(read_run(arguments.run_a), read_run(arguments.run_b))
    if not arguments.no_model:
        verdicts, notes = score(found, arguments.rows, arguments.device)
        found = dataclasses.replace(found, verdicts=verdicts, notes=found.notes + notes)
    if arguments.json:
        print(json.dumps(as_json(found), indent=1, ensure_ascii=False))
    else:
        print(*terminal(found), sep="\n")
    if arguments.out:
        replace(arguments.out, page(found))
        print(f"\nwritten: {arguments.out}", file=sys.stderr)


def score(
    found: Comparison, rows: int, device: Device | Literal["auto"]
) -> tuple[list[Verdict], list[str]]:
    """The verdicts, and why there are not more: what cannot be opened or scored costs a verdict,
    not the comparison.
    """
    a, b = (run.best_checkpoint for run in found.runs)
    if a is None or b is None:
        return [], [
            f"{name} has no checkpoint to score"
            for name, saved in zip(found.names, (a, b), strict=True)
            if saved is None
        ]
    if a.manifest_sha256 == b.manifest_sha256:
        return [], ["both best checkpoints are the same to the byte, so there is nothing to score"]
    try:
        models = [
            opened(name, saved.path, rows, device)
            for name, saved in zip(found.names, (a, b), strict=True)
        ]
    except errors.UserError as error:
        return [], [f"not scored: {error}"]
    verdicts, notes = [], []
    for owner in models[:1] if found.yardstick.column else models:
        try:
            verdicts.append(verdict_on(owner, models[0], models[1], rows))
        except errors.UserError as error:
            notes.append(f"not scored on the validation text of {owner.name}: {error}")
    return verdicts, notes


def opened(name: str, folder: Path, rows: int, device: Device | Literal["auto"]) -> Model:
    """A checkpoint for use, and the data that it was trained and is validated on, so many rows of
    it.
    """
    from data import PackedDataModule
    from lm import load
    from lm.checkpoints.meta import Meta
    from lm.system.device import choose_device

    decoder, tokenizer, meta = load(folder, choose_device(device, "--device"))
    typed = Meta(folder, meta)
    config, revisions = typed.config, typed.session.revisions
    # of a stream, what the run validates on is the whole split
    if not (config.data.streams and config.data.validation is None):
        config = config.model_copy(
            update={"trainer": config.trainer.model_copy(update={"validation_rows": rows})}
        )
    return Model(
        name,
        decoder,
        tokenizer,
        PackedDataModule(config, tokenizer, lambda line: None, revisions),
    )


def verdict_on(owner: Model, a: Model, b: Model, most: int) -> Verdict:
    """Both on the validation text of one of them. Raises UserError where it is not there or both
    cannot read it.
    """
    from lm.checks.overlap import StoredDocuments
    from lm.evaluation.same_text import (
        documents_known,
        judge,
        passages_of,
        sums_of_passages,
        sums_of_rows,
    )
    from lm.tokens.store import TokenStore

    data, text = owner.data, f"the validation text of {owner.name}"
    if data.config.finetune is not None and data.config.finetune.objective == "dpo":
        raise errors.ConfigError("it is of preferences, in which no token has a loss of its own")
    contexts, stores = (
        [each.decoder.config.context_length for each in (a, b)],
        [corpus.val for corpus in data.corpora],
    )
    other, notes = b if owner is a else a, list[str]()
    trained = [
        corpus.train for corpus in other.data.trained if isinstance(corpus.train, TokenStore)
    ]
    if known := documents_known(stores, trained):
        of = sum(store.documents for store in stores)
        notes.append(
            f"{other.name} was trained on {known:,} of the {of:,} documents that {owner.name} is"
            " validated on"
        )
    length = data.config.row_length
    if a.tokenizer.sha256 == b.tokenizer.sha256 and length <= min(contexts):
        if contexts[0] != contexts[1]:
            notes.append(
                f"both read rows of {length:,} tokens there; their contexts are {contexts[0]:,} and"
                f" {contexts[1]:,}"
            )
        batches = list(data.val_dataloader())
        return judge(
            text,
            "nats per token",
            "rows",
            sums_of_rows(a.decoder, batches),
            sums_of_rows(b.decoder, batches),
            notes,
        )
    if any(store.flagged for store in stores):
        raise errors.ConfigError(
            "it is of conversations, and the two models would cut them into other tokens or rows"
        )
    documents = StoredDocuments("val", stores, owner.tokenizer)
    n = min(most, len(documents))
    texts = [documents[i * len(documents) // n].text for i in range(n)]
    passages = passages_of(texts, round(length * data.text_bytes_per_token), most)
    first, second = (sums_of_passages(each.decoder, each.tokenizer, passages) for each in (a, b))
    return judge(text, "bits per byte", "passages", first, second, notes)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = command_parser("python -m tools.compare", __doc__)
    result.add_argument(
        "run_a", metavar="RUN_A", type=Path, help="a run's folder, such as checkpoints/"
    )
    result.add_argument("run_b", metavar="RUN_B", type=Path, help="another one's")
    result.add_argument("--out", metavar="FILE", type=Path, help="write an HTML page, one file")
    add_flag(result, "--json")
    result.add_argument(
        "--no-model", action="store_true", help="score nothing: only what the folders tell"
    )
    result.add_argument(
        "--rows",
        type=int,
        default=500,
        metavar="N",
        help="score at most N rows or passages (default: 500)",
    )
    add_flag(result, "--device")
    return result


if __name__ == "__main__":
    errors.run(main)
