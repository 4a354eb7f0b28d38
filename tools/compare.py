"""Compare two runs: configuration, curves by tokens, samples, and which one is better.

python -m tools.compare runs/a runs/b
python -m tools.compare runs/a runs/b --out comparison.html
python -m tools.compare runs/a runs/b --json --no-model

The command scores both best checkpoints on A's validation text and, if B was validated on another
one, on B's too. With the same tokenizer it compares nats per token on the same rows, otherwise bits
per byte on the same passages. The interval of the difference shows what another such text could
have given. --no-model skips the scoring, and needs no torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lm.commands import add_flag, command_parser, to_path
from lm.reports.comparison import Comparison, compare
from lm.reports.comparison_views import as_json, page, terminal
from lm.runs.record import read_run
from lm.system import errors
from lm.system.disk import replace
from lm.system.streams import print_json

if TYPE_CHECKING:
    from data import PackedDataModule
    from lm.evaluation.same_text import Verdict
    from lm.system.device import Device
    from lm.tokenizer.tokenizer import Tokenizer
    from lm.tokens.store import TokenStore
    from model import Decoder


class Contender(NamedTuple):
    """A run's best checkpoint and its data, loaded."""

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    data: PackedDataModule


def main() -> None:
    """Read both folders, score both models, and print what differs."""
    arguments = parser().parse_args()
    # Five rows could all point in one direction by chance (lm/evaluation/intervals.py).
    if arguments.rows < 6:
        raise errors.ConfigError(
            f"--rows: fewer than 6 rows give no interval, got {arguments.rows}; write 6 or more"
        )
    comparison = compare(read_run(arguments.run_a), read_run(arguments.run_b))
    if not arguments.no_model:
        verdicts, notes = score(comparison, arguments.rows, arguments.device)
        comparison = dataclasses.replace(
            comparison, verdicts=verdicts, notes=comparison.notes + notes
        )
    if arguments.json:
        print_json(json.dumps(as_json(comparison), indent=1, ensure_ascii=False))
    else:
        print(*terminal(comparison), sep="\n")
    if arguments.out:
        replace(arguments.out, page(comparison))
        print(f"\nwritten: {arguments.out}", file=sys.stderr)


def score(
    comparison: Comparison, rows: int, device: Device | Literal["auto"]
) -> tuple[list[Verdict], list[str]]:
    """Return the verdicts, and notes on those that are missing.

    A model or text that cannot be opened or scored costs a verdict, not the comparison.
    """
    a, b = (run.best_checkpoint for run in comparison.runs)
    if a is None or b is None:
        return [], [
            f"{name} has no checkpoint to score"
            for name, saved in zip(comparison.names, (a, b), strict=True)
            if saved is None
        ]
    if a.manifest_sha256 == b.manifest_sha256:
        return [], ["both best checkpoints are the same to the byte, so there is nothing to score"]
    try:
        contenders = [
            opened(name, saved.path, rows, device)
            for name, saved in zip(comparison.names, (a, b), strict=True)
        ]
    except errors.UserError as error:
        return [], [f"not scored: {error}"]
    verdicts, notes = [], []
    for owner in contenders[:1] if comparison.yardstick.column else contenders:
        try:
            verdicts.append(verdict_on(owner, contenders[0], contenders[1], rows))
        except errors.UserError as error:
            notes.append(f"not scored on the validation text of {owner.name}: {error}")
    return verdicts, notes


def opened(name: str, folder: Path, rows: int, device: Device | Literal["auto"]) -> Contender:
    """Load a checkpoint and its data, of which `rows` rows are validated."""
    from data import PackedDataModule
    from lm import load
    from lm.checkpoints.meta import Meta
    from lm.system.device import choose_device

    decoder, tokenizer, values = load(folder, choose_device(device, "--device"))
    meta = Meta(folder, values)
    config = meta.config.with_validation_rows(rows)
    data = PackedDataModule(config, tokenizer, lambda line: None, meta.session.revisions)
    return Contender(name, decoder, tokenizer, data)


def verdict_on(owner: Contender, a: Contender, b: Contender, most: int) -> Verdict:
    """Score both models on the validation text of one of them.

    Raises:
        UserError: the text is missing, or the two cannot read it alike.
    """
    from lm.checks.overlap import StoredDocuments
    from lm.evaluation.examples import evenly
    from lm.evaluation.same_text import (
        judge,
        passages_of,
        sums_of_passages,
        sums_of_rows,
    )
    from lm.tokens.summary import bytes_per_token

    data = owner.data
    text = f"the validation text of {owner.name}"
    if data.config.finetune is not None and data.config.finetune.objective == "dpo":
        raise errors.ConfigError("it holds preferences, in which no token has a loss of its own")
    contexts = [contender.decoder.config.context_length for contender in (a, b)]
    stores = [corpus.val for corpus in data.corpora]
    other = b if owner is a else a
    notes = seen_in_training(other, owner.name, stores)
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
            "it holds conversations, which the two models would cut into other tokens or rows"
        )
    documents = StoredDocuments("val", stores, owner.tokenizer)
    texts = [document.text for document in evenly(documents, most)]
    passages = passages_of(texts, round(length * bytes_per_token(stores)), most)
    require_whole(owner, stores, passages)
    require_whole(other, stores, passages)
    first = sums_of_passages(a.decoder, a.tokenizer, passages)
    second = sums_of_passages(b.decoder, b.tokenizer, passages)
    return judge(text, "bits per byte", "passages", first, second, notes)


def seen_in_training(other: Contender, owner: str, stores: Sequence[TokenStore]) -> list[str]:
    """Return the note, if one is due, that a model was trained on the other's validation text."""
    from lm.evaluation.same_text import documents_known
    from lm.tokens.store import TokenStore

    corpora = other.data.trained
    trained = [corpus.train for corpus in corpora if isinstance(corpus.train, TokenStore)]
    known, total = documents_known(stores, trained), sum(store.documents for store in stores)
    words = f"was trained on {known:,} of the {total:,} documents that {owner} is validated on"
    return [f"{other.name} {words}"] if known else []


def require_whole(
    contender: Contender, stores: Sequence[TokenStore], passages: Sequence[str]
) -> None:
    """Raise ConfigError if a tokenizer loses a part of the text: bits per byte need all of it."""
    from lm.tokens.round_trip import MOST_LOST, compare, lost_share

    compared, lost = compare(contender.tokenizer, [passage.strip() for passage in passages])
    share = max(lost_share(stores), lost.sum() / max(1, compared.sum()))
    if share > MOST_LOST:
        raise errors.ConfigError(
            f"the tokenizer of {contender.name} loses {share:.2%} of it, so bits per byte would be"
            " those of another text"
        )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = command_parser("python -m tools.compare", __doc__)
    result.add_argument(
        "run_a", metavar="RUN_A", type=to_path, help="a run's folder, such as checkpoints/"
    )
    result.add_argument("run_b", metavar="RUN_B", type=to_path, help="the other run's folder")
    result.add_argument("--out", metavar="FILE", type=to_path, help="write an HTML page, one file")
    add_flag(result, "--json")
    result.add_argument(
        "--no-model", action="store_true", help="score nothing; use only the folders' files"
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
