"""A run as one HTML file: how good it is, how it was made, its curves, texts, and what it took.

Every number comes from the run's files, and the page marks numbers that are not recorded. The
caller passes the parts that need the model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from lm.checkpoints.meta import Meta
from lm.display import charts
from lm.display.html import Html, document, element, joined
from lm.display.tables import EVERY, MISSING, NOT_RECORDED, html_table
from lm.reports import run_texts
from lm.reports.run_config import configuration, lineage
from lm.reports.run_cost import cost
from lm.reports.run_curves import curves, perplexity_text, sources
from lm.reports.run_ranking import ranking
from lm.runs.ancestors import Ancestor, ancestors
from lm.runs.record import RunRecord
from lm.system.errors import CheckpointError
from lm.system.json_values import count, lookup, number, text
from lm.system.units import duration, in_bytes, short

STYLE = """
.lead { font-size: 1.06em; max-width: 44em }
.state { font-weight: 600 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6em, 1fr)); gap: 1px;
  margin: 1.6em 0; background: var(--line); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden }
.tiles div { background: var(--paper); padding: .8em 1em .7em }
.tiles dt { color: var(--quiet); font-size: .8125em }
.tiles dd { margin: 0; font-size: 1.5em; line-height: 1.3;
  font-family: Charter, "Bitstream Charter", Georgia, serif;
  font-variant-numeric: lining-nums tabular-nums }
.tiles small { display: block; font: .5em/1.4 system-ui, sans-serif; color: var(--quiet);
  white-space: normal }
nav { display: flex; flex-wrap: wrap; gap: .2em 1.1em; font-size: .9375em; padding: .7em 0;
  border-bottom: 1px solid var(--line) }
section { scroll-margin-top: 1em }
.problems { border-left: 3px solid var(--mark); padding: .1em 0 .1em 1em; margin: 1.2em 0 }
footer { margin-top: 3.5em; padding-top: .8em; border-top: 1px solid var(--line);
  color: var(--quiet); font-size: .875em }
@media (max-width: 480px) {
  .tiles dd { font-size: 1.3em }
  .tiles div { padding: .6em .8em }
}
@media print {
  nav { display: none }
  .tiles { border-radius: 0 }
}
"""
PARTS = {  # the headings, in order
    "curves": "Curves",
    "sources": "Sources",
    "samples": "What it wrote on the way",
    "answers": "Fine-tuning: before and after",
    "ranking": "Ranking",
    "surprise": "A validation text, by surprise",
    "positions": "Loss by position in the context",
    "config": "Configuration",
    "lineage": "Where it comes from",
    "cost": "Time, speed and memory",
    "checkpoints": "Checkpoints",
    "incidents": "Incidents",
}


def report(
    run: RunRecord,
    out: Path,
    model: Mapping[str, Html],
    style: str = "",
    watts: float | None = None,
) -> str:
    """Return the page.

    Args:
        run: the record of the run's folder.
        out: the page's file; links are relative to it.
        model: the parts that were made with the model, by their name in `PARTS`, or a part that
            states why they are missing.
        style: CSS of those parts.
        watts: the power of the machine; None shows no energy.
    """
    line = list(ancestors(run.folder, run.meta))
    parts: dict[str, Html | None] = {
        "curves": curves(run),
        "sources": (
            joined(part for part in (sources(run), model.get("sources")) if part is not None)
            or None
        ),
        "samples": run_texts.timeline(run),
        "answers": run_texts.answers(run),
        "ranking": ranking(run),
        "surprise": model.get("surprise"),
        "positions": model.get("positions"),
        "config": configuration(run, line),
        "lineage": lineage(run, line),
        "cost": cost(run, watts),
        "checkpoints": checkpoints(run, out),
        "incidents": incidents(run, out),
    }
    shown = {key: part for key in PARTS if (part := parts[key]) is not None}
    links = (element("a", PARTS[key], href=f"#{key}") for key in shown)
    made = f"Made from {run.folder} on {_date(datetime.now(UTC))}. Losses: {run.unit}."
    return document(
        f"Report: {run.name}",
        _header(run, line),
        element("nav", *links, aria_label="Parts of this report"),
        *(element("section", element("h2", PARTS[key]), shown[key], id=key) for key in shown),
        element("footer", made),
        style=charts.STYLE + STYLE + run_texts.STYLE + style,
    )


def _header(run: RunRecord, line: Sequence[Ancestor]) -> Html:
    return element(
        "header",
        element("p", "Training report", class_="quiet small"),
        element("h1", run.name),
        *_lead(run, line),
        _tiles(run),
        *_problems(run),
    )


def checkpoints(run: RunRecord, out: Path) -> Html:
    """Return a line for each checkpoint in the folder, with the loss of exactly its bytes."""
    if not run.checkpoints:
        return element("p", "There is no checkpoint in the folder.", class_="quiet")
    losses = {
        validation.manifest_sha256: validation.loss
        for validation in run.validations
        if math.isfinite(validation.loss)
    }
    lines: list[Sequence[str]] = [
        ["checkpoint", "tokens", "validation loss", "size", "saved (UTC)", "links", "manifest"]
    ]
    for saved in run.checkpoints:
        link = element("a", saved.path.name, href=_relative(saved.path, out))
        if saved.problem is not None:
            lines.append([link, element("span", "damaged", class_="mark"), *[""] * 5])
            continue
        tokens = count(saved.meta, "tokens")
        loss = losses.get(saved.manifest_sha256)
        lines.append(
            [
                link,
                f"{tokens:,}" if tokens is not None else MISSING,
                f"{loss:.4f}" if loss is not None else MISSING,
                in_bytes(saved.size) if saved.size is not None else MISSING,
                (text(saved.meta, "saved_at") or MISSING)[:16].replace("T", " "),
                ", ".join(name.removesuffix(".ckpt") for name in saved.links) or MISSING,
                element("code", (saved.manifest_sha256 or "")[:12]),
            ]
        )
    return html_table(lines, f"{MISSING}: no validation of exactly these bytes is recorded")


def incidents(run: RunRecord, out: Path) -> Html | None:
    """Return the recorded incidents, reports and tracebacks; None if there are none."""
    if not run.incidents and not run.traces:
        return None
    parts = []
    if run.incidents:
        lines = [
            ["step", "kind", "what"],
            *([f"{step + 1:,}", kind, message] for step, kind, message in run.incidents),
        ]
        parts.append(html_table(lines, "As incidents.jsonl has them", words=EVERY))
    links = [
        element("li", element("a", path.name, href=_relative(path, out))) for path in run.traces
    ]
    return joined(
        [*parts, *([element("p", "In the folder:"), element("ul", *links)] if links else [])]
    )


def _lead(run: RunRecord, line: Sequence[Ancestor]) -> Iterator[Html]:
    """Yield what the model is, then how far the run came."""
    parameters = count(run.meta, "n_parameters")
    trained = count(run.meta, "adapters", "n_parameters")
    kind = f"A model of {parameters:,} parameters" if parameters is not None else "A model"
    kind += (
        f" and {trained:,} in adapters, the only ones that were trained"
        if trained is not None
        else ""
    )
    base = text(run.config, "finetune", "base") or (
        line[0].path if line else None if run.meta else run.start
    )
    how = (
        f"fine-tuned from {base}"
        if lookup(run.config, "finetune")
        else f"started from {base}"
        if base
        else "trained from random weights"
    )
    yield element("p", f"{kind}, {how}. {_shape(run)}", class_="lead")
    yield element("p", *_state(run), class_="lead")


def _shape(run: RunRecord) -> str:
    known = [
        (count(run.meta, "model", key), words)
        for key, words in (("n_layers", "{:,} layers"), ("d_model", "width {:,}"))
    ]
    known.append((count(run.meta, "model", "context_length"), "context of {:,} tokens"))
    parts = [words.format(value) for value, words in known if value is not None]
    parts += (
        [f"{'tokenizer' if parts else 'Tokenizer'} {name}"]
        if (name := text(run.meta, "tokenizer", "name"))
        else []
    )
    return f"{', '.join(parts)}." if parts else ""


def _state(run: RunRecord) -> Iterator[str]:
    planned, step = _planned(run), f"step {run.step:,}"
    total = f" of {planned:,}" if planned is not None else ""
    if run.going:
        yield element("span", "Still going", class_="state")
        yield f" when this was written: {step}{total}."
    elif run.finished:
        yield element("span", "Finished", class_="state")
        yield f" after {step}{total}."
    else:
        yield element("span", "Not finished", class_="state")
        yield (
            f": it stands at {step}{total}; --resume auto continues from its last checkpoint."
            if run.checkpoints
            else f": {step}{total}."
        )
    stamps = sorted(str(row["timestamp"]) for row in run.rows if row["timestamp"])
    if stamps:
        first, last = (stamp[:16].replace("T", " ") for stamp in (stamps[0], stamps[-1]))
        yield (
            f" Its records go from {first} to {last[11:] if last[:10] == first[:10] else last} UTC."
        )
    if run.best is not None:
        saved = run.checkpoint_of(run.best)
        place = (
            f", {saved.path.name}"
            if saved is not None
            else " (its checkpoint is no longer in the folder)"
            if run.best.step
            else ""
        )
        yield f" The lowest validation loss was at step {run.best.step:,}{place}."


def _tiles(run: RunRecord) -> Html:
    best = run.best
    tokens = run.tokens
    seconds = run.seconds
    parameters = count(run.meta, "n_parameters")
    finite = best is not None and math.isfinite(best.bits_per_byte)
    scored = (
        f"the lowest; {best.tokens:,} {'pairs' if run.of_pairs else 'tokens'} scored"
        if best is not None and best.tokens is not None
        else "the lowest"
    )
    tiles = [
        (
            "validation loss",
            f"{best.loss:.4f}" if best else MISSING,
            f"{run.unit}, {scored}" if best else NOT_RECORDED,
        ),
        (
            "bits per byte",
            f"{best.bits_per_byte:.4f}" if best and finite else MISSING,
            "of the text, any tokenizer" if finite else NOT_RECORDED,
        ),
        (
            ("perplexity", perplexity_text(best.perplexity), "per token")
            if best and best.perplexity is not None and not run.of_pairs
            else ("perplexity", MISSING, NOT_RECORDED)
        ),
        (
            "trained on",
            short(tokens) if tokens is not None else MISSING,
            f"{tokens:,} tokens" if tokens is not None else NOT_RECORDED,
        ),
        (
            "parameters",
            short(parameters) if parameters else MISSING,
            f"{parameters:,}" if parameters else NOT_RECORDED,
        ),
        (
            "training time",
            duration(seconds) if seconds is not None else MISSING,
            "without validating and saving" if seconds is not None else NOT_RECORDED,
        ),
    ]
    return element(
        "dl",
        *(
            element("div", element("dt", a), element("dd", b, element("small", c)))
            for a, b, c in tiles
        ),
        class_="tiles",
    )


def _problems(run: RunRecord) -> Iterator[Html]:
    if run.problems:
        items = (element("li", problem) for problem in run.problems)
        yield element(
            "div",
            element("p", "Missing or damaged in the folder, and therefore not in this report:"),
            element("ul", *items),
            class_="problems",
        )


def _planned(run: RunRecord) -> int | None:
    try:
        config = Meta(run.folder, {"config": run.config}).config
        return config.with_epochs(number(run.meta, "epochs_per_step") or 0.0).most_steps
    except CheckpointError:
        return count(run.config, "trainer", "max_steps")


def _relative(path: Path, out: Path) -> str:
    """Return a relative link, quoted so that no file name can be an address."""
    return quote(os.path.relpath(path.absolute(), out.absolute().parent))


def _date(when: datetime) -> str:
    return f"{when.day} {when:%B %Y, %H:%M} UTC"
