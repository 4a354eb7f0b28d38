"""Measure the commands that should feel instant, and the smoke run: `python benchmarks/times.py`.

Exits with 1 if a limit is exceeded. The times are those of complete processes. The best of several
runs counts, because other work on the machine can only add time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lm.checkpoints.folder import ORDINARY, step_name  # noqa: E402
from lm.checkpoints.write import write_checkpoint, write_json  # noqa: E402


def main() -> None:
    """Print a Markdown table of seconds and limits."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        many = Path(scratch) / "many"
        many.mkdir()
        for step in range(1, 101):
            meta = {
                "format": 1,
                "step": step,
                "model": {},
                "tokenizer": {"name": "byte"},
                "config": {},
                "seconds": 1.0,
            }
            writers = dict.fromkeys(ORDINARY, lambda path: path.write_bytes(b"weights"))
            write_checkpoint(
                many / step_name(step),
                {**writers, "meta.json": lambda path, meta=meta: write_json(path, meta)},
            )
        smoke = [
            "train.py",
            "--config",
            "config_smoke.yaml",
            "--checkpoint.directory",
            str(Path(scratch) / "run"),
        ]
        rows = [
            ("train.py --help", ["train.py", "--help"], 5, 0.6),
            (
                "a wrong key in the configuration",
                ["train.py", "--config", "config_smoke.yaml", "--optimizer.lrr", "1"],
                5,
                0.6,
            ),
            ("list.py, 100 checkpoints", ["list.py", str(many)], 5, 0.5),
            ("the smoke run", smoke, 1, 60.0),
        ]
        print("| command | best, s | limit, s |\n|---|---|---|")
        broken = False
        for name, command, repeat, limit in rows:
            best = min(seconds(command) for _ in range(repeat))
            broken = broken or best > limit
            print(f"| {name} | {best:.2f} | {limit:g} |", flush=True)
    sys.exit(broken)


def seconds(command: list[str]) -> float:
    """Return the wall time of one run, with any exit code."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, check=False, env=os.environ
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
