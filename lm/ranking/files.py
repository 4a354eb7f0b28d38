"""The files of a ranking: Markdown and a picture for people, CSV and JSON for programs.

All have the numbers of the terminal's table.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.display.curves import save
from lm.display.style import COLOURS, DASHES, LIGHT, MATPLOTLIB
from lm.display.tables import markdown_table, safe
from lm.evaluation.intervals import RESAMPLES
from lm.ranking.candidates import Failure
from lm.ranking.ranking import CONFIDENCE, Ranking
from lm.ranking.results import CaseResult
from lm.ranking.words import columns, general_notes, heading, notes, sentence, shown, table
from lm.system.disk import replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS_ABREAST = 2
TALLEST = 400  # inches of the picture; matplotlib refuses 2^16 pixels, or 437 inches


def write(folder: Path, rankings: Sequence[Ranking], failed: Sequence[Failure]) -> None:
    """Write ranking.md, ranking.csv, ranking.png and ranking.json into a folder, each atomically.
    Raises CheckpointError.
    """
    save(picture(rankings), folder / "ranking.png")
    replace(folder / "ranking.md", markdown(rankings, failed))
    replace(folder / "ranking.csv", as_csv(rankings))
    replace(folder / "ranking.json", as_json(rankings, failed) + "\n")


def markdown(rankings: Sequence[Ranking], failed: Sequence[Failure]) -> str:
    """Return the ranking as a Markdown page, without the single cases."""
    parts = ["# Ranking\n"]
    for ranking in rankings:
        parts += [
            f"## {safe(heading(ranking))}\n",
            *([safe(ranking.cases.about) + "\n"] if ranking.cases else []),
        ]
        sentences = [sentence(ranking, pair) for pair in ranking.order.pairs]
        parts += [
            markdown_table(table(ranking)),
            "".join(f"- {safe(line)}\n" for line in [*sentences, *notes(ranking)]),
        ]
        if ranking.tags and ranking.cases:
            lines = [
                [
                    f"{ranking.by.label} by tag",
                    "cases",
                    *(ranking.entrants[i].name for i in ranking.order.best_first),
                ]
            ]
            for tag, (count, values) in ranking.tags.items():
                lines.append(
                    [
                        tag,
                        f"{count:,}",
                        *(shown(ranking.by.kind, values[i]) for i in ranking.order.best_first),
                    ]
                )
            parts.append(markdown_table(lines))
    parts += [
        "".join(f"- {safe(note)}\n" for note in general_notes(rankings)),
        "".join(f"- not ranked: {safe(f'{f.name}: {f.reason}')}\n" for f in failed),
    ]
    return "\n".join(part for part in parts if part)


def as_csv(rankings: Sequence[Ranking]) -> str:
    """Return CSV with a line for each checkpoint and set. Shares are between 0 and 1."""
    rows = [
        {"set": " + ".join(ranking.parts), **row} for ranking in rankings for row in _rows(ranking)
    ]
    file = io.StringIO()
    writer = csv.DictWriter(
        file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return file.getvalue()


def as_json(rankings: Sequence[Ranking], failed: Sequence[Failure]) -> str:
    """Return JSON with all results, including those on each case. Shares are between 0 and 1, and
    unknown values are null.
    """
    facts = {
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "rankings": [_ranking(ranking) for ranking in rankings],
        "notes": list(general_notes(rankings)),
        "failed": [failure._asdict() for failure in failed],
    }
    return json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)


def _ranking(ranking: Ranking) -> dict[str, Any]:
    cases = ranking.cases
    names = [entrant.name for entrant in ranking.entrants]
    facts: dict[str, Any] = {
        "sets": list(ranking.parts),
        "by": ranking.by.key,
        "chance": ranking.chance,
        "asked": ranking.n_cases,
    }
    if cases is not None:
        facts |= {
            "path": str(cases.path),
            "sha256": cases.sha256,
            "about": cases.about,
            "cases": len(cases.cases),
        }
    facts["checkpoints"] = list(_rows(ranking))
    facts["pairs"] = [
        {
            "first": names[pair.first],
            "second": names[pair.second],
            "told_apart": pair.told_apart,
            "difference": pair.difference.value,
            "low": _known(pair.difference.low),
            "high": _known(pair.difference.high),
            "words": sentence(ranking, pair),
        }
        for pair in ranking.order.pairs
    ]
    facts["tags"] = {
        tag: {"cases": count, "values": dict(zip(names, values, strict=True))}
        for tag, (count, values) in ranking.tags.items()
    }
    facts["notes"] = list(notes(ranking))
    if cases is not None:
        results = dict(zip(names, ranking.results, strict=True))
        facts["longest_copied_text"] = {
            name: result.memorised.longest_text
            for name, result in results.items()
            if result.memorised
        }
        facts["answers"] = [
            {
                "prompt": case.prompt,
                "checkpoints": {
                    name: _answer(result.results[i]) for name, result in results.items()
                },
            }
            for i, case in enumerate(cases.cases)
        ]
    return facts


def _rows(ranking: Ranking) -> Iterator[dict[str, Any]]:
    """Yield a flat object for each entrant, the best first."""
    for rank, number in enumerate(ranking.order.best_first, start=1):
        entrant = ranking.entrants[number]
        best, worst = ranking.order.ranks[number]
        row: dict[str, Any] = {
            "checkpoint": entrant.name,
            "path": str(entrant.path),
            "links": " ".join(entrant.links),
            "step": entrant.step,
            "parameters": entrant.parameters,
            "tokenizer": entrant.tokenizer,
            "rank": rank,
            "rank_best": best,
            "rank_worst": worst,
            "by": ranking.by.key,
        }
        for column in columns(ranking):
            row[column.key] = column.values[number]
            if column.limits is not None:
                row |= {
                    f"{column.key}_low": _known(column.limits[number].low),
                    f"{column.key}_high": _known(column.limits[number].high),
                }
        yield row


def _cell(value: Any) -> Any:
    """Return the value of a CSV cell. An apostrophe keeps a spreadsheet from reading text as a
    formula.
    """
    return (
        f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
    )


def _answer(result: CaseResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if key != "ids"}


def _known(limit: float) -> float | None:
    return limit if math.isfinite(limit) else None


def picture(rankings: Sequence[Ranking]) -> Figure:
    """Draw a panel for each ranking, with a dot and an interval for each checkpoint, the best on
    top. A checkpoint has the same colour in all panels.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = list(
        dict.fromkeys(entrant.name for ranking in rankings for entrant in ranking.entrants)
    )
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    across = min(PANELS_ABREAST, len(rankings))
    down = math.ceil(len(rankings) / across)
    height = min(1.1 + 0.32 * max(len(ranking.entrants) for ranking in rankings), TALLEST / down)
    with matplotlib.rc_context(MATPLOTLIB):
        figure = Figure(figsize=(6.2 * across, height * down))
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel, ranking in zip(panels, rankings, strict=False):
            _draw(panel, ranking, colours)
        for panel in panels[len(rankings) :]:
            panel.set_axis_off()
    return figure


def _draw(panel: Any, ranking: Ranking, colours: dict[str, str]) -> None:
    scale = 100 if ranking.by.kind == "share" else 1
    for height, number in enumerate(ranking.order.best_first):
        name = ranking.entrants[number].name
        value, low, high = (scale * share for share in ranking.scores[ranking.by.key][number])
        if math.isfinite(low):
            panel.plot([low, high], [height, height], color=colours[name], linewidth=2, alpha=0.6)
        panel.plot(value, height, "o", color=colours[name], markersize=7)
        panel.annotate(
            f"{value:.1f}" if scale == 100 else f"{value:.3f}",
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    if ranking.by.key.endswith("accuracy") and ranking.chance is not None:
        panel.axvline(scale * ranking.chance, color=LIGHT["quiet"], linestyle=DASHES, linewidth=1.2)
        panel.annotate(
            " chance",
            (scale * ranking.chance, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            fontsize=8,
            color=LIGHT["quiet"],
        )
    panel.set_yticks(
        range(len(ranking.entrants)),
        [ranking.entrants[number].name for number in ranking.order.best_first],
    )
    panel.set_ylim(len(ranking.entrants) - 0.5, -0.5)
    if scale == 100:  # one scale for all panels of shares; a centred one may be below 0
        panel.set_xlim(min(0, panel.get_xlim()[0]), 100)
    panel.grid(axis="y", visible=False)
    title = panel.set_title(
        ranking.cases.name if ranking.cases else f"mean of {len(ranking.parts)} sets"
    )
    better = "" if ranking.by.higher else ", lower is better"
    panel.set_xlabel(f"{ranking.by.key.replace('_', ' ')}{', %' if scale == 100 else ''}{better}")
    for text in (title, *panel.get_yticklabels()):
        text.set_parse_math(False)  # A dollar sign in a name does not begin a formula.
