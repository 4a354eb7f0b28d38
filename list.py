"""List the checkpoints in a run's folder, or one checkpoint.

python list.py [FOLDER] [--json] [--sort val_loss]

It reads the JSON files with the standard library alone: neither torch nor the weights. Damaged
weights are found when they are loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.checkpoints.folder import pointed, step_of
from lm.commands import add_flag, command_parser, to_path
from lm.display.tables import terminal_table
from lm.runs.results import read_by_checkpoint
from lm.runs.saved import saved_checkpoint, saved_checkpoints
from lm.system import errors
from lm.system.json_values import finite
from lm.system.streams import print_json
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
    parser = command_parser("list.py", __doc__)
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=to_path,
        default=Path("checkpoints"),
        help="default: checkpoints",
    )
    add_flag(parser, "--json", help="a list of objects with raw numbers")
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
    rows = read_rows(arguments.folder)
    rows.sort(key=lambda row: (row[arguments.sort] is None, row[arguments.sort] or 0))
    if arguments.json:
        print_json(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        print(table(rows) if rows else f"{arguments.folder} holds no checkpoints")
    for row in rows:
        if row["damage"]:
            print(f"damaged: {row['damage']}", file=sys.stderr)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return one row for each checkpoint in a folder, oldest first, or the row of one checkpoint.
    An unknown value is None; `damage` says why a damaged checkpoint has few values.

    Raises:
        CheckpointError: there is no such folder.
    """
    one = pointed(path.parent, path.name)
    if one is None and (step_of(path) >= 0 or (path / "meta.json").exists()):
        one = path.resolve()
    if one is None and not path.is_dir():
        raise errors.CheckpointError(
            f"{path}: no such folder; name the one that a run has written to"
        )
    validations = read_by_checkpoint(path if one is None else one.parent)
    rows = []
    for saved in saved_checkpoints(path) if one is None else [saved_checkpoint(one)]:
        row: dict[str, Any] = {
            "path": str(saved.path),
            **dict.fromkeys(COLUMNS),
            "step": saved.step,
            "links": [name.removesuffix(".ckpt") for name in saved.links],
            "damage": saved.problem,
        }
        rows.append(row)
        if saved.problem is not None:
            continue
        meta = saved.meta
        validation = validations.get((meta["step"], str(saved.manifest_sha256)))
        try:
            row |= {
                "epoch": float(meta["epoch"]),
                "tokens": count(meta["tokens"]),
                "val_loss": finite(validation.loss) if validation else None,
                "parameters": count(meta["n_parameters"]),
                "adapters": count(meta["adapters"]["n_parameters"]) if "adapters" in meta else None,
                "size": count(sum(file["bytes"] for file in saved.files.values())),
                "date": str(meta["saved_at"]),
                "parent": meta["parent"] and str(meta["parent"]["path"]),
            }
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            row["damage"] = (
                f"{saved.path}: a value in meta.json or manifest.json is missing or wrong: {error}"
            )
    return rows


def count(value: Any) -> int:
    """Return a number of things. Raise ValueError or OverflowError if it cannot be one."""
    number = int(value)
    if not 0 <= number < 2**63:
        raise ValueError("a count is negative or too large")
    return number


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as an aligned table. Only a run of adapters has their column."""
    keys = [key for key in COLUMNS if key != "adapters" or any(row[key] for row in rows)]
    headings = [COLUMNS[key][0] for key in keys]
    words = [i for i, key in enumerate(keys) if key in ("date", "links", "parent")]
    return terminal_table(
        [headings, *([cell(key, row[key]) for key in keys] for row in rows)], words
    )


def cell(key: str, value: Any) -> str:
    """Return the text of a cell. Every whole checkpoint has a date."""
    if value is None:
        return "damaged" if key == "date" else "-"
    return errors.printable(COLUMNS[key][1](value))


if __name__ == "__main__":
    errors.run(main)
