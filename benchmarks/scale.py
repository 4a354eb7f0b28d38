"""Measure the cost of a step's data in a corpus of 10^12 tokens: `python benchmarks/scale.py`.

Exits with 1 if a limit is exceeded. The shards are sparse files of the real size and number. They
occupy no space on the disk, but every file is opened and read.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from data import Rows, TrainingSteps  # noqa: E402
from lm.tokens.plan import Plan  # noqa: E402
from lm.tokens.rows import PackedRows  # noqa: E402
from lm.tokens.store import SHARD_TOKENS, TokenStore  # noqa: E402

TOKENS, LENGTH, BATCH, STEPS = 10**12, 1024, 16, 2000


def main() -> None:
    """Print a Markdown table of medians, the growth of memory, and the limit of open files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    # 1,024 open files is the usual limit.
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    with tempfile.TemporaryDirectory() as scratch:
        n_shards = -(-TOKENS // SHARD_TOKENS)
        for shard in range(n_shards):
            with (Path(scratch) / f"train-{shard:05d}.bin").open("wb") as file:
                file.truncate(2 * SHARD_TOKENS)
        entry = {
            "tokens": TOKENS,
            "documents": 0,
            "text_tokens": TOKENS,
            "text_bytes": TOKENS,
            "sha256": "",
            "shard_tokens": SHARD_TOKENS,
        }
        store = TokenStore(Path(scratch), "train", {"dtype": "uint16", "splits": {"train": entry}})
        rows = Rows([PackedRows(store, LENGTH, LENGTH)], 0, False)
        plan = Plan((len(rows),), seed=1)
        steps = TrainingSteps(rows, plan, BATCH, BATCH, 0, 1)
        planned, read = [], []
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for step in np.random.default_rng(0).integers(0, len(rows) // BATCH, STEPS).tolist():
            started = time.perf_counter()
            plan.of_step(step, BATCH)
            planned.append(time.perf_counter() - started)
            started = time.perf_counter()
            steps[step]
            read.append(time.perf_counter() - started)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        print(
            f"{TOKENS:.0e} tokens in {n_shards:,} shards, {BATCH} rows of {LENGTH:,} a step,"
            f" {STEPS:,} steps anywhere in them\n"
        )
        print("| | median, ms | 99th percentile, ms |\n|---|---|---|")
        for name, seconds in (
            ("which rows (the plan)", planned),
            ("the rows themselves, with the plan", read),
        ):
            print(
                f"| {name} | {1000 * np.median(seconds):.3f} |"
                f" {1000 * np.percentile(seconds, 99):.3f} |"
            )
        print(f"\nmemory grew by {grown / 1024:.1f} MB; at most {limit:,} files may be open")
    sys.exit(bool(np.median(planned) > 1e-3 or grown > 50 * 1024))


if __name__ == "__main__":
    main()
