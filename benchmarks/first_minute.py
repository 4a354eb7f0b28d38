"""Measure what `make smoke` trains: the whole command, for several seeds, beside models that count.

    python benchmarks/first_minute.py [--seeds 1 2 3] [--precision fp32]

Each run is `train.py --config config_smoke.yaml` as a process of its own, with an empty cache. Its
wall time goes from the command to its exit. Bits per byte are those of the validation file. The
baselines see the same training text: all n-grams of bytes up to length 6, smoothed by Witten and
Bell (1991, method C), and xz. Exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lm.system.machine import hardware  # noqa: E402

LONGEST = 6  # bytes of an n-gram
MOST_BITS = 1.50  # a byte
MOST_SECONDS = 60.0
LEAST_GAP = 0.25  # bits a byte below the n-grams


def main() -> int:
    """Run the seeds in turn; print one table."""
    arguments = parser().parse_args()
    train, val = (
        (ROOT / f"data/tiny_{name}.txt").read_bytes() for name in ("corpus", "validation")
    )
    counted = ngram_bits(train, val)
    packed = 8 * (len(lzma.compress(train + val)) - len(lzma.compress(train))) / len(val)
    print(hardware("cpu"))
    print(f"byte {LONGEST}-grams {counted:.3f} bits per byte, xz {packed:.3f}")
    print("seed  bits per byte  wall s  CPU s  sample")
    good = True
    for seed in arguments.seeds:
        bits, wall, cpu, sample = run(seed, arguments.precision)
        print(f"{seed:4}  {bits:13.3f}  {wall:6.1f}  {cpu:5.1f}  {sample[:100]}", flush=True)
        good &= bits <= min(MOST_BITS, counted - LEAST_GAP) and wall <= MOST_SECONDS
    return 0 if good else 1


def run(seed: int, precision: str) -> tuple[float, float, float, str]:
    """Train once; return bits per byte, wall and CPU seconds, and the last sample."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "trainer.seed": seed,
            "trainer.precision": precision,
            "checkpoint.directory": f"{folder}/run",
            "data.cache_dir": f"{folder}/cache",
        }
        command = [sys.executable, "train.py", "--config", "config_smoke.yaml"]
        command += [f"--{key}={value}" for key, value in flags.items()]
        before, started = os.times(), time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.perf_counter() - started, os.times()
        cpu = sum(after[2:4]) - sum(before[2:4])
        last = json.loads(Path(folder, "run/evaluations.jsonl").read_text().splitlines()[-1])
        return last["bits_per_byte"], wall, cpu, last["sample"]


def ngram_bits(train: bytes, val: bytes) -> float:
    """Return the bits per byte of `val` under n-grams of `train`, each order backing off to the
    shorter one: (count + kinds * shorter) / (total + kinds).
    """
    counts = [Counter(train[i : i + n] for i in range(len(train) - n + 1)) for n in range(1, 7)]
    totals, kinds = Counter[bytes](), Counter[bytes]()
    for grams in counts:
        for gram, count in grams.items():
            totals[gram[:-1]] += count
            kinds[gram[:-1]] += 1
    bits = 0.0
    for i in range(len(val)):
        chance = 1 / 256
        for length in range(min(i, LONGEST - 1) + 1):
            history = val[i - length : i]
            if seen := kinds[history]:
                count = counts[length][val[i - length : i + 1]]
                chance = (count + seen * chance) / (totals[history] + seen)
        bits -= math.log2(chance)
    return bits / len(val)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    result.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2])
    result.add_argument("--precision", default="auto", help="as trainer.precision")
    return result


if __name__ == "__main__":
    sys.exit(main())
