"""The charts of a report: losses, learning rate, gradient norm and speed, and their tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lm.display.charts import Chart, Point, Series, chart
from lm.display.curves import smooth
from lm.display.html import Html, element, folded, joined
from lm.display.tables import MISSING, html_table
from lm.runs.record import RunRecord
from lm.runs.results import RecordedValidation
from lm.system.json_values import count, number

TALL = 12  # lines of a table that is not folded
MOST_LINES = 500  # lines of a folded table


def curves(run: RunRecord) -> Html:
    """Return the loss over tokens and over time, and the other columns of metrics.csv."""
    drawn = [
        chart(content)
        for content in (*_losses(run), *_rates(run))
        if any(series.points for series in content.series)
    ]
    parts = (
        [element("div", *drawn, class_="charts")]
        if drawn
        else [element("p", "Nothing to draw is recorded yet.", class_="quiet")]
    )
    return joined([*parts, *_notes(run), *_validations(run)])


def sources(run: RunRecord) -> Html | None:
    """Return the validation loss of each source; None if it was not measured."""
    measured = [v for v in run.validations if v.losses_by_source]
    if not measured:
        return None
    last, per_step = measured[-1], _tokens_per_step(run)
    names = list(dict.fromkeys(name for v in measured for name in v.losses_by_source))
    lines = [["source", "loss", "lowest", "perplexity", "tokens scored"]]
    series = []
    for colour, name in enumerate(names):
        points = [
            (v.step * (per_step or 1), v.losses_by_source[name][0])
            for v in measured
            if name in v.losses_by_source
        ]
        lowest = min(points, key=lambda point: point[1])
        series.append(Series(name, points, "dots", colour, lowest))
        if name in last.losses_by_source:
            loss, tokens = last.losses_by_source[name]
            lines.append(
                [
                    name,
                    f"{loss:.4f}",
                    f"{lowest[1]:.4f}",
                    MISSING if run.of_pairs else perplexity_text(math.exp(min(700, loss))),
                    f"{tokens:,}",
                ]
            )
    content = Chart(
        "Validation loss of each source", "tokens" if per_step else "steps", run.unit, series
    )
    return joined(
        [
            element("div", chart(content), class_="charts"),
            html_table(lines, f"At step {last.step:,}, and the lowest of all validations"),
        ]
    )


def perplexity_text(value: float) -> str:
    """Format a perplexity: 4.69, 311, 5,346."""
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}" if value < 1e9 else f"{value:.2e}"


def validation_points(run: RunRecord, over: str) -> list[Point]:
    """Return the validation loss over tokens or seconds, from metrics.csv.

    Without that file, evaluations.jsonl gives the loss over tokens.
    """
    recorded = run.points("val", "loss", over)
    if recorded or over != "tokens" or (per_step := _tokens_per_step(run)) is None:
        return recorded
    return [(v.step * per_step, v.loss) for v in run.validations if math.isfinite(v.loss)]


def _losses(run: RunRecord) -> Iterator[Chart]:
    for over, label in (("tokens", "tokens"), ("seconds", "training time")):
        train, validation = run.points("train", "loss", over), validation_points(run, over)
        smoothed = list(zip([x for x, _ in train], smooth([y for _, y in train]), strict=True))
        series = [
            Series("train, each row", train, "faint"),
            Series("train, smoothed", smoothed),
            Series(
                "validation",
                validation,
                "dots",
                1,
                min(validation, key=lambda point: point[1], default=None),
            ),
        ]
        yield Chart(f"Loss by {label}", label, run.unit, series, seconds=over == "seconds")


def _rates(run: RunRecord) -> Iterator[Chart]:
    norms = run.points("train", "grad_norm")
    speeds = run.points("train", "tokens_per_second")
    above = [norm for _, norm in norms if norm > 0]
    yield Chart(
        "Learning rate",
        "tokens",
        "",
        [Series("learning rate", run.points("train", "lr"), colour=2)],
        zero=True,
    )
    wide = bool(above) and max(above) > 30 * min(above)
    yield Chart(
        "Gradient norm, before clipping",
        "tokens",
        "",
        [Series("gradient norm", norms, colour=4)],
        zero=True,
        y_log=wide,
    )
    yield Chart(
        "Speed",
        "tokens",
        "tokens per second",
        [Series("tokens per second", speeds, colour=5)],
        zero=True,
    )


def _notes(run: RunRecord) -> Iterator[Html]:
    best, vocabulary = run.best, count(run.meta, "model", "vocab_size")
    if best is not None:
        yield element(
            "p",
            f"The filled dot is the lowest validation loss: {best.loss:.4f} at step {best.step:,}.",
            class_="quiet small",
        )
    if vocabulary and not run.of_pairs:
        guess = (
            f"Uniform guessing among the {vocabulary:,} tokens has a loss of ln"
            f" {vocabulary:,} = {math.log(vocabulary):.3f}."
        )
        yield element("p", guess, class_="quiet small")
    norms = [norm for _, norm in run.points("train", "grad_norm")]
    limit = number(run.config, "optimizer", "grad_clip")
    if norms and limit:
        clipped = sum(norm > limit for norm in norms)
        yield element(
            "p",
            f"Gradients are clipped to a norm of {limit:g}: {clipped:,} of {len(norms):,} logged"
            " steps exceeded it.",
            class_="quiet small",
        )


def _validations(run: RunRecord) -> Iterator[Html]:
    if not run.validations:
        return
    best = run.best
    lines: list[Sequence[str]] = [
        [
            "step",
            "loss",
            "perplexity",
            "bits per byte",
            "pairs scored" if run.of_pairs else "tokens scored",
        ]
    ]
    every = math.ceil(len(run.validations) / MOST_LINES)
    shown = [
        v
        for i, v in enumerate(run.validations)
        if i % every == 0 or v is best or v is run.validations[-1]
    ]
    lines += [_line(validation, validation is best, run.of_pairs) for validation in shown]
    made = html_table(lines, f"Validations from evaluations.jsonl; {run.unit}")
    yield (
        made
        if len(lines) <= TALL + 1
        else folded(
            (
                f"{len(shown):,} of {len(run.validations):,} validations"
                if every > 1
                else f"All {len(shown):,} validations"
            ),
            made,
        )
    )


def _line(v: RecordedValidation, best: bool, of_pairs: bool) -> Sequence[str]:
    loss = f"{v.loss:.4f}" if math.isfinite(v.loss) else "not finite"
    cells = [
        loss,
        MISSING if of_pairs or v.perplexity is None else perplexity_text(v.perplexity),
        f"{v.bits_per_byte:.4f}" if math.isfinite(v.bits_per_byte) else MISSING,
    ]
    step = element("span", f"{v.step:,}", " · lowest", class_="mark") if best else f"{v.step:,}"
    return [step, *cells, f"{v.tokens:,}" if v.tokens is not None else MISSING]


def _tokens_per_step(run: RunRecord) -> float | None:
    tokens, step = number(run.meta, "tokens"), number(run.meta, "step")
    if tokens and step:
        return tokens / step
    return next(
        (row["tokens"] / row["step"] for row in run.rows if row["tokens"] and row["step"]), None
    )
