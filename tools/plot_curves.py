"""Draw loss, perplexity and learning rate of one or more runs into one picture.

python -m tools.plot_curves checkpoints
python -m tools.plot_curves runs/small runs/large --out comparison.png
"""

from __future__ import annotations

from pathlib import Path

from lm.commands import command_parser, to_path
from lm.display import curves
from lm.system import errors


def main() -> None:
    """Read the runs, draw one picture, and print where each curve ended."""
    parser = command_parser("python -m tools.plot_curves", __doc__)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=to_path, help="a run's folder, or its metrics.csv"
    )
    parser.add_argument(
        "--out",
        type=to_path,
        default=Path("curves.png"),
        help="the picture (default: curves.png, here)",
    )
    arguments = parser.parse_args()
    if arguments.out.suffix.lower() != ".png":
        out = arguments.out
        picture = out.with_suffix(".png") if out.name else out / "curves.png"
        raise errors.ConfigError(f"--out: the picture is a PNG, got {out}; write {picture}")
    curves.draw(arguments.runs, arguments.out)
    for run in arguments.runs:
        print(f"{run}\n{curves.summary(run)}")
    print(f"drawn: {arguments.out}")


if __name__ == "__main__":
    errors.run(main)
