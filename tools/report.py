"""A run as one HTML file that needs nothing else: numbers, curves, what it wrote, where it comes
from, what it took.

python -m tools.report checkpoints
python -m tools.report runs/small --out small.html --no-model

With the model (the best checkpoint), the validation split is scored once more, as a validation of
the run does it: for a text that is coloured by surprisal, and the loss by place in the context. The
text has to be where the configuration says: run it where the run was started. --no-model leaves
that out and takes a second.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lm.commands import command_parser
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
    """Read the folder, ask the model, write the page."""
    arguments = parser().parse_args()
    if arguments.watts is not None and not 0 < arguments.watts < 1e9:
        raise errors.ConfigError(
            f"--watts: a power above 0, got {arguments.watts:g}; write what the machine draws while"
            " it trains"
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
    """The parts for which the model is needed, and their style; or one that says why they are
    missing.
    """
    from lm.display.html import element

    try:
        if without:
            raise errors.UserError("--no-model left them out")
        found, tokenizer, weights, recorded = measured(run)
    except errors.UserError as error:
        print(f"without the model: {error}")
        return {
            "surprise": element(
                "p", f"Not in this report, nor the loss by position: {error}.", class_="quiet"
            )
        }, ""

    from lm.reports import run_model

    parts = {
        "surprise": run_model.surprise(found, tokenizer, weights, recorded),
        "positions": run_model.positions(found),
    }
    if (by_source := run_model.by_source(found)) is not None:
        parts["sources"] = by_source
    return parts, run_model.STYLE


def measured(run: RunRecord) -> tuple[Surprisal, Tokenizer, str, float | None]:
    """The best checkpoint on what the run validates on, its name, and the loss that the run
    recorded for it. Raises UserError.
    """
    from lm.checkpoints.meta import Meta

    if (saved := run.best_checkpoint) is None:
        raise errors.CheckpointError("no checkpoint can be read")
    config = Meta(saved.path, saved.meta).config
    if config.finetune is not None and config.finetune.objective == "dpo":
        raise errors.ConfigError(
            "it learnt from preferences, of which no token has a loss of its own"
        )

    from data import PackedDataModule
    from lm import load
    from lm.evaluation.surprisal import measure
    from lm.system.device import autocast, choose_device, choose_precision

    device = choose_device("auto")
    decoder, tokenizer, _ = load(saved.path, device)
    data = PackedDataModule(config, tokenizer, lambda line: None, saved.meta.get("revisions", {}))
    with autocast(device, choose_precision(config.trainer.precision, device)):
        found = measure(decoder, batches(data), config.row_length)
    losses = [
        v.loss
        for v in run.validations
        if v.manifest_sha256 == saved.manifest_sha256 and math.isfinite(v.loss)
    ]
    return found, tokenizer, saved.path.name, losses[-1] if losses else None


def batches(data: PackedDataModule) -> Iterator[Batch]:
    """What a validation scores, with the name of each row's source."""
    from data import ValidationBatches
    from lm.checks.xray import named

    names = [name for name, corpus in named(data.corpora) if corpus.val.documents]
    dataset = data.val_dataloader().dataset
    assert isinstance(dataset, ValidationBatches)
    for i in range(len(dataset)):
        addresses = dataset.rows.addresses(dataset.numbers[i])
        yield dataset[i], [names[part] for part in addresses[:, 0].tolist()]


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = command_parser("python -m tools.report", __doc__)
    result.add_argument("run", metavar="RUN", type=Path, help="a run's folder, such as checkpoints")
    result.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: report.html in the run's folder)",
    )
    result.add_argument(
        "--no-model",
        action="store_true",
        help="only what the folder's files say: nothing is loaded and scored",
    )
    result.add_argument(
        "--watts",
        type=float,
        metavar="N",
        help="what the machine draws while it trains, for the energy estimate",
    )
    return result


if __name__ == "__main__":
    errors.run(main)
