"""What is in a run's folder, one line for each checkpoint.

python list.py [FOLDER] [--json] [--sort val_loss]

Reads the JSON files with the standard library alone: no torch, and no weights, whose damage only
those find who load them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.checkpoints import folder as checkpoint
from lm.runs import results
from lm.system import errors
from lm.system.units import in_bytes, short

COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {  # key -> heading, how it is shown
    "step": ("step", str),
    "epoch": ("epoch", "{:.2f}".format),
    "tokens": ("tokens", short),
    "val_loss": ("val loss", "{:.4f}".format),
    "parameters": ("parameters", short),
    "adapters": ("in adapters", short),
    "size": ("size", in_bytes),
    "date": ("date (UTC)", lambda date: date[:16].replace("T", " ")),
    "links": ("links", lambda links: ", ".join(links) or "-"),
    "parent": ("parent", str),
}
SORT_KEYS = [key for key in COLUMNS if key not in ("links", "parent")]


def main() -> None:
    """Print the table, or with --json a list of objects with raw numbers (sizes in bytes, losses in
    nats per token).
    """
    parser = argparse.ArgumentParser(
        description="List the checkpoints in a run's folder.", allow_abbrev=False
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=Path("checkpoints"),
        help="default: checkpoints",
    )
    parser.add_argument("--json", action="store_true", help="a list of objects with raw numbers")
    parser.add_argument(
        "--sort",
        metavar="KEY",
        default="step",
        help=f"smallest first, by {', '.join(SORT_KEYS)} (default: step)",
    )
    arguments = parser.parse_args()
    if arguments.sort not in SORT_KEYS:
        raise errors.ConfigError(
            f"--sort: there is no key {arguments.sort!r}; write one of {', '.join(SORT_KEYS)}"
        )
    if not arguments.folder.is_dir():
        raise errors.CheckpointError(
            f"{arguments.folder}: no such folder; name the one that a run has written to"
        )

    rows = read_rows(arguments.folder)
    rows.sort(key=lambda row: (row[arguments.sort] is None, row[arguments.sort] or 0))
    if arguments.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        print(table(rows) if rows else f"{arguments.folder} holds no checkpoints")
    for row in rows:
        if row["damage"]:
            print(f"damaged: {row['damage']}", file=sys.stderr)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """One row for each checkpoint, oldest first. What is unknown is None; `damage` says why a
    damaged one has little else.
    """
    validations = results.read_by_checkpoint(folder)
    rows = []
    for path in checkpoint.step_directories(folder):
        step, links = checkpoint.step_of(path), checkpoint.links_to(path)
        row: dict[str, Any] = {
            "path": str(path),
            **dict.fromkeys(COLUMNS),
            "step": step,
            "links": links,
            "damage": None,
        }
        try:
            opened = checkpoint.Checkpoint(path)
            meta, files = opened.meta, opened.files
            validation = validations.get((step, opened.sha256))
            row |= {
                "epoch": float(meta["epoch"]),
                "tokens": count(meta["tokens"]),
                "val_loss": results.finite(validation.loss) if validation else None,
                "parameters": count(meta["n_parameters"]),
                "adapters": count(meta["adapters"]["n_parameters"]) if "adapters" in meta else None,
                "size": count(sum(file["bytes"] for file in files.values())),
                "date": str(meta["saved_at"]),
                "parent": meta["parent"] and str(meta["parent"]["path"]),
            }
        except errors.CheckpointError as error:
            row["damage"] = str(error)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            row["damage"] = (
                f"{path}: a value in meta.json or manifest.json is missing or wrong: {error}"
            )
        rows.append(row)
    return rows


def count(value: Any) -> int:
    """A number of things. Raises ValueError or OverflowError where it cannot be one: such a number
    could not even be shown.
    """
    number = int(value)
    if not 0 <= number < 2**63:
        raise ValueError("a count is negative or too large")
    return number


def table(rows: list[dict[str, Any]]) -> str:
    """Aligned columns: numbers to the right, words to the left. That of the adapters only where
    there are any.
    """
    columns = []
    for key, (heading, show) in COLUMNS.items():
        if key == "adapters" and all(row[key] is None for row in rows):
            continue
        # every checkpoint has a date, unless its meta.json is damaged
        unknown = "damaged" if key == "date" else "-"
        cells = [
            heading,
            *(unknown if row[key] is None else errors.printable(show(row[key])) for row in rows),
        ]
        width = max(map(len, cells))
        columns.append(
            [
                cell.ljust(width) if key in ("date", "links", "parent") else cell.rjust(width)
                for cell in cells
            ]
        )
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


if __name__ == "__main__":
    errors.run(main)
