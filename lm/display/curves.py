"""Learning curves: a PNG picture, and a line of blocks for the terminal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.display.style import COLOURS, DASHES, LIGHT, MATPLOTLIB
from lm.runs import metrics
from lm.system.disk import refusals, replacing
from lm.system.errors import CheckpointError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCKS = "▁▂▃▄▅▆▇█"
GREY = LIGHT["quiet"]
MOST_DRAWN = 20  # nats: a perplexity beyond exp(20) would flatten all others
LARGEST_EXPONENT = 709  # of a float's exp
VALIDATION: dict[str, Any] = {
    "linewidth": 1.2,
    "linestyle": DASHES,
    "marker": "o",
    "markersize": 5,
    "markerfacecolor": "white",
}

Points = tuple[list[int], list[float]]  # tokens trained on, values
Panels = dict[str, Any]  # matplotlib's axes, by name


def draw(runs: Sequence[Path], out: Path) -> None:
    """Draw loss, perplexity and learning rate over the tokens trained on, as one PNG of all runs.

    Args:
        runs: folders that hold a metrics.csv, or such files.
        out: the picture's file, which is replaced if it exists.

    Raises:
        CheckpointError: a run has no loss to draw or cannot be read, or the picture cannot be
            written.
    """
    save(figure(runs), out)


def save(picture: Figure, out: Path) -> None:
    """Write a picture as PNG, completely or not at all; an existing file is replaced.

    Raises:
        CheckpointError: the file cannot be written.
    """
    with refusals(out), replacing(out) as new:
        picture.savefig(new, format="png", dpi=150)


def figure(runs: Sequence[Path]) -> Figure:
    """Return the picture that `draw` saves, for a notebook."""
    rows_of_runs = [_rows(run) for run in runs]

    import matplotlib
    from matplotlib.figure import Figure

    # Not pyplot and matplotlib.use("Agg"), which would change the backend under a notebook that
    # calls this.
    with matplotlib.rc_context(MATPLOTLIB):
        picture = Figure(figsize=(11, 5.8))
        picture.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
        panels: Panels = picture.subplot_mosaic(
            [["loss", "perplexity"], ["loss", "rate"]], width_ratios=[1.6, 1], sharex=True
        )
        names = _names(runs)
        handles = [
            _draw_run(panels, name, rows, colour)
            for name, rows, colour in zip(
                names, rows_of_runs, itertools.cycle(COLOURS), strict=False
            )
        ]
        _label(panels, handles)
        title = names[0] if len(names) == 1 else f"{len(names)} runs"
        picture.suptitle(title, x=0.01, ha="left", fontsize=13, parse_math=False)
    return picture


def summary(run: Path) -> str:
    """Return the course of training and validation loss, each as one line for the terminal.

    The training loss is smoothed.

    Raises:
        CheckpointError: the run has no loss yet, or cannot be read.
    """
    rows = _rows(run)
    per_token = _has_perplexity(rows)
    lines = []
    for label, split in (("train", "train"), ("validation", "val")):
        tokens, losses = points(rows, split, "loss")
        if losses:
            course = smooth(losses) if split == "train" else losses
            perplexity = f" (perplexity {_perplexity(course[-1]):.4g})" if per_token else ""
            ended = f"{course[0]:.3f} -> {course[-1]:.3f}{perplexity} after {tokens[-1]:,} tokens"
            lines.append(
                f"{label:<10} {sparkline(course):<32} {ended}"
                + (f", lowest {min(losses):.3f}" if split == "val" else "")
            )
    return "\n".join(lines)


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """Return the course of the values as at most `width` blocks.

    A block's height is the mean of its share of the values. Values that are not finite are skipped;
    without values, the result is empty.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    n = min(width, len(finite))
    shares = [finite[i * len(finite) // n : (i + 1) * len(finite) // n] for i in range(n)]
    means = [sum(share) / len(share) for share in shares]
    low, height = min(means), max(means) - min(means)
    return "".join(
        BLOCKS[round((mean - low) / height * (len(BLOCKS) - 1)) if height else 0] for mean in means
    )


def smooth(values: Sequence[float]) -> list[float]:
    """Return a centred running mean over about a fifteenth of the values.

    Unlike an exponential average, it does not lag. At the start the window shrinks on both sides,
    which keeps the steep first descent; at the end the window is cut.
    """
    n, widest = len(values), len(values) // 30
    sums = [0.0, *itertools.accumulate(values)]
    means = []
    for i in range(n):
        low, high = max(0, i - widest), min(n, i + min(i, widest) + 1)
        means.append((sums[high] - sums[low]) / (high - low))
    return means


def points(rows: Sequence[dict[str, Any]], split: str, column: str) -> Points:
    """Return a column of one split over the tokens, without rows that lack either."""
    values = [
        (row["tokens"], row[column])
        for row in rows
        if row["split"] == split
        and row["tokens"] is not None
        and row[column] is not None
        and math.isfinite(row[column])
    ]
    return [x for x, _ in values], [y for _, y in values]


def _rows(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.csv" if run.is_dir() else run
    rows = metrics.read(file)
    if not points(rows, "train", "loss")[0] and not points(rows, "val", "loss")[0]:
        raise CheckpointError(f"{file} holds no loss yet; there is nothing to draw")
    return rows


def _names(runs: Sequence[Path]) -> list[str]:
    """Return each run's folder name, or its path if another run's folder has the same name."""
    folders = [run.resolve() if run.is_dir() else run.resolve().parent for run in runs]
    names = [folder.name for folder in folders]
    return [
        name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)
    ]


def _draw_run(panels: Panels, name: str, rows: list[dict[str, Any]], colour: str) -> Any:
    """Draw one run into all panels and return its line for the legend."""
    tokens, losses = points(rows, "train", "loss")
    val_tokens, val_losses = points(rows, "val", "loss")
    # Nothing was measured between step 0 and the next validation, and a scale that holds both
    # would leave no room for the rest.
    if val_tokens[:1] == [0] and (losses or val_losses[1:]):
        del val_tokens[0]
        _mark_start(panels["loss"], val_losses.pop(0), colour)
    (line,) = panels["loss"].plot(tokens, smooth(losses), color=colour, linewidth=2)
    panels["loss"].plot(tokens, losses, color=colour, linewidth=0.8, alpha=0.3)
    panels["loss"].plot(val_tokens, val_losses, color=colour, **VALIDATION)
    if _has_perplexity(rows):
        panels["perplexity"].plot(
            tokens, _drawn_perplexity(smooth(losses)), color=colour, linewidth=1.6
        )
        panels["perplexity"].plot(
            val_tokens, _drawn_perplexity(val_losses), color=colour, **VALIDATION
        )
    panels["rate"].plot(*points(rows, "train", "lr"), color=colour, linewidth=1.6)
    line.set_label(name)
    if val_losses:
        lowest = val_losses.index(min(val_losses))
        panels["loss"].plot(
            val_tokens[lowest], val_losses[lowest], color=colour, marker="o", markersize=7, zorder=4
        )
        line.set_label(f"{name}: lowest validation loss {val_losses[lowest]:.3f}")
    return line


def _mark_start(axes: Any, loss: float, colour: str) -> None:
    """Write the loss before training at the upper edge, below those of earlier runs."""
    axes.annotate(
        f"\N{UPWARDS ARROW} {loss:.3f} before training",
        xy=(0.01, 0.99),
        xycoords="axes fraction",
        xytext=(0, -13 * len(axes.texts)),
        textcoords="offset points",
        va="top",
        color=colour,
        fontsize=9,
    )


def _has_perplexity(rows: list[dict[str, Any]]) -> bool:
    """Return whether the losses are those of tokens: the loss of a preference has no perplexity."""
    return all(row["perplexity"] is not None for row in rows if row["split"] == "val")


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < LARGEST_EXPONENT else math.inf


def _drawn_perplexity(losses: Sequence[float]) -> list[float]:
    return [_perplexity(min(loss, MOST_DRAWN)) for loss in losses]


def _label(panels: Panels, handles: list[Any]) -> None:
    """Set titles, scales, ticks and the legend: the runs' colours, then the kinds of line."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    kinds = [
        Line2D([], [], color=GREY, linewidth=2, label="train, smoothed"),
        Line2D([], [], color=GREY, linewidth=0.8, alpha=0.5, label="train, each row"),
        Line2D([], [], color=GREY, label="validation (filled: the lowest)", **VALIDATION),
    ]
    lines = [*handles, *kinds]
    legend = panels["loss"].legend(lines, [line.get_label() for line in lines], loc="upper right")
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a folder's name is a dollar sign
    for key, title in {
        "loss": "Loss (nats per token)",
        "perplexity": "Perplexity",
        "rate": "Learning rate",
    }.items():
        panels[key].set_title(title)
        panels[key].tick_params(labelbottom=True)
    for key in ("loss", "rate"):
        panels[key].set_xlabel("tokens trained on")
    panels["loss"].xaxis.set_major_formatter(EngFormatter(sep=""))
    low, high = panels["perplexity"].dataLim.intervaly
    if high > 10 * low:
        panels["perplexity"].set_yscale("log")
        panels["perplexity"].yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,))
        )
        panels["perplexity"].yaxis.set_minor_locator(NullLocator())
        panels["perplexity"].yaxis.set_major_formatter(EngFormatter(sep=""))
    panels["rate"].set_ylim(bottom=0)
    highest = panels["rate"].dataLim.ymax
    if 0 < highest < math.inf:  # infinite where no run has training rows
        exponent = math.floor(math.log10(highest))
        panels["rate"].set_title(rf"Learning rate ($\times\,10^{{{exponent}}}$)")
        panels["rate"].yaxis.set_major_formatter(lambda rate, _: f"{rate / 10**exponent:.3g}")
