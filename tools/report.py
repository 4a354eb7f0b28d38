"""Write a report on a run as one HTML file: numbers, curves, texts, origin and cost.

python -m tools.report checkpoints
python -m tools.report runs/small --out small.html --no-model

The command loads the best checkpoint and scores the validation split once more, as a validation of
the run does. From that come a text coloured by surprisal, and the loss by position in the context.
The text must be at the path of the configuration, so start the command where the run was started.
--no-model skips this part and takes a few seconds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lm.commands import command_parser, to_path
from lm.system import errors
from lm.system.disk import replace
from lm.system.units import in_bytes

if TYPE_CHECKING:
    from data import PackedDataModule
    from lm.display.html import Html
    from lm.evaluation.surprisal import Batch, Surprisal
    from lm.runs.record import RunRecord
    from lm.tokenizer.tokenizer import Tokenizer


def main() -> None:
    """Read the folder, score the model, and write the page."""
    arguments = parser().parse_args()
    if arguments.watts is not None and not 0 < arguments.watts < 1e9:
        raise errors.ConfigError(
            f"--watts: a power above 0, got {arguments.watts:g}; write the machine's power while it"
            " trains"
        )

    from lm.runs.record import read_run

    run = read_run(arguments.run)
    out = arguments.out or arguments.run / "report.html"
    if not out.parent.is_dir():
        raise errors.CheckpointError(
            f"--out: {out.parent} is no folder; name a file in one that is there"
        )

    from lm.reports.run import report

    parts, style = of_model(run, arguments.no_model)
    replace(out, report(run, out, parts, style, arguments.watts))
    for problem in run.problems:
        print(f"left out: {problem}")
    print(f"written: {out} ({in_bytes(out.stat().st_size)})")


def of_model(run: RunRecord, without: bool) -> tuple[dict[str, Html], str]:
    """Return the parts that need the model and their style, or a part that states why they miss."""
    from lm.display.html import element

    try:
        if without:
            raise errors.UserError("--no-model skipped them")
        surprisal, tokenizer, weights, recorded = measured(run)
    except errors.UserError as error:
        print(f"without the model: {error}")
        return {
            "surprise": element(
                "p", f"Not in this report, nor the loss by position: {error}.", class_="quiet"
            )
        }, ""

    from lm.reports import run_model

    parts = {
        "surprise": run_model.surprise(surprisal, tokenizer, weights, recorded),
        "positions": run_model.positions(surprisal),
    }
    if (by_source := run_model.by_source(surprisal)) is not None:
        parts["sources"] = by_source
    return parts, run_model.STYLE


def measured(run: RunRecord) -> tuple[Surprisal, Tokenizer, str, float | None]:
    """Score the best checkpoint on the validation split.

    Returns the result, the tokenizer, the checkpoint's name and the loss that the run recorded for
    it.

    Raises:
        UserError: the checkpoint cannot be loaded, or its text cannot be read.
    """
    from lm.checkpoints.meta import Meta

    if (saved := run.best_checkpoint) is None:
        raise errors.CheckpointError("no checkpoint can be read")
    meta = Meta(saved.path, saved.meta)
    config = meta.config
    if config.finetune is not None and config.finetune.objective == "dpo":
        raise errors.ConfigError(
            "it learnt from preferences, in which no token has a loss of its own"
        )

    from data import PackedDataModule
    from lm import load
    from lm.evaluation.surprisal import measure_surprisal
    from lm.system.device import autocast, choose_device, choose_precision

    device = choose_device("auto")
    decoder, tokenizer, _ = load(saved.path, device)
    data = PackedDataModule(config, tokenizer, lambda line: None, meta.session.revisions)
    with autocast(device, choose_precision(config.trainer.precision, device)):
        surprisal = measure_surprisal(decoder, batches(data), config.row_length)
    losses = [
        v.loss
        for v in run.validations
        if v.manifest_sha256 == saved.manifest_sha256 and math.isfinite(v.loss)
    ]
    return surprisal, tokenizer, saved.path.name, losses[-1] if losses else None


def batches(data: PackedDataModule) -> Iterator[Batch]:
    """Yield the batches of a validation, with the name of each row's source."""
    from data import ValidationBatches
    from lm.tokens.corpus import named

    names = [name for name, corpus in named(data.corpora) if corpus.val.documents]
    dataset = data.val_dataloader().dataset
    assert isinstance(dataset, ValidationBatches)
    for i in range(len(dataset)):
        addresses = dataset.rows.addresses(dataset.numbers[i])
        yield dataset[i], [names[part] for part in addresses[:, 0].tolist()]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = command_parser("python -m tools.report", __doc__)
    result.add_argument(
        "run", metavar="RUN", type=to_path, help="a run's folder, such as checkpoints"
    )
    result.add_argument(
        "--out",
        type=to_path,
        metavar="FILE",
        help="the page (default: report.html in the run's folder)",
    )
    result.add_argument(
        "--no-model",
        action="store_true",
        help="use only the folder's files; load and score nothing",
    )
    result.add_argument(
        "--watts",
        type=float,
        metavar="N",
        help="the machine's power while it trains; the report then shows the energy",
    )
    return result


if __name__ == "__main__":
    errors.run(main)
