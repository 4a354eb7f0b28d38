"""Check and measure on one CUDA GPU what no CPU can show, in less than 8 minutes.

    python benchmarks/gpu.py --nanogpt PATH/TO/nanoGPT
    python benchmarks/gpu.py --only flash_attention --only ours_gpt2
    python benchmarks/gpu.py --rehearse

It needs torch 2.11 or newer with CUDA, and no network. Each check has its own process and its own
time; one that fails or takes too long is recorded with the reason, and the next one follows. The
result is one JSON file. Exits with 1 if a check failed. With --rehearse most of it runs on the CPU,
with tiny shapes and five times the time, to test this command; such figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.on_gpu import checks, speed  # noqa: E402
from benchmarks.on_gpu.runs import MissingError, Options  # noqa: E402

# In this order, with the most seconds that each may take.
CHECKS: dict[Callable[[Options], dict[str, Any]], int] = {
    checks.machine: 30,
    checks.flash_attention: 40,
    speed.ours_gpt2: 110,
    speed.nanogpt: 100,
    checks.compiled_graph: 75,
    checks.resume_deterministic: 60,
    checks.fp16_scaler: 40,
    checks.out_of_memory: 50,
    checks.nccl: 60,
    checks.pinned_loader: 30,
    speed.memory_of_a_step: 30,
    speed.ours_llama: 100,
    speed.transformers_trainer: 100,
    checks.resume_compiled: 75,
}
BY_NAME = {check.__name__: check for check in CHECKS}
NEEDED = ("torch", "lightning", "transformers", "pydantic", "safetensors", "yaml", "numpy", "tqdm")
GOAL_SPEED, GOAL_RATIO = 500_000, 1.25  # tokens a second on an H200; times nanoGPT's speed


def main() -> None:
    """Run the checks in turn and write their results."""
    arguments = parser().parse_args()
    if arguments.list:
        for check, seconds in CHECKS.items():
            first_line = str(check.__doc__).splitlines()[0]
            print(f"{check.__name__:21} {seconds:4} s  {first_line}")
        return
    options = Options(
        arguments.text.resolve(),
        arguments.nanogpt and arguments.nanogpt.resolve(),
        2 if arguments.rehearse else arguments.rows,
        arguments.rehearse,
        arguments.scratch or Path(),
    )
    if arguments.child:
        print(json.dumps(result_of(BY_NAME[arguments.child], options)))
        return
    if lacking := missing(options):
        sys.exit(f"benchmarks/gpu.py needs {'; '.join(lacking)}")
    names = [name for name in BY_NAME if name in (arguments.only or BY_NAME)]
    minutes = arguments.minutes * (5 if options.rehearse else 1)
    results = run_all(names, sys.argv[1:], time.monotonic() + 60 * minutes, options.rehearse)
    report = {"rehearsal": options.rehearse, "goals": goals(results), "checks": results}
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written: {arguments.out}")
    sys.exit(any(result["passed"] is False for result in results.values()))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--text", type=Path, default=ROOT / "data" / "tiny_corpus.txt")
    result.add_argument("--nanogpt", type=Path, help="a clone of karpathy/nanoGPT; it is copied")
    result.add_argument("--only", action="append", choices=BY_NAME, metavar="NAME")
    result.add_argument("--list", action="store_true", help="print the checks and their seconds")
    result.add_argument("--rows", type=int, default=32, help="rows of a micro-batch (32)")
    result.add_argument("--minutes", type=float, default=7.8, help="of all checks together (7.8)")
    result.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    result.add_argument("--out", type=Path, default=Path("gpu.json"))
    result.add_argument("--child", choices=BY_NAME, help=argparse.SUPPRESS)
    result.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return result


def missing(options: Options) -> list[str]:
    """Return what this machine lacks, in words."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    lacking = [f"the packages {', '.join(absent)}"] if absent else []
    if not options.text.is_file():
        lacking.append(f"a text, and {options.text} is none (--text)")
    if "torch" in absent or options.rehearse:
        return lacking
    version = importlib.metadata.version("torch")
    if tuple(map(int, version.split(".")[:2])) < (2, 11):
        lacking.append(f"torch 2.11 or newer, and this is {version}")
    import torch

    if not torch.cuda.is_available():
        lacking.append(f"a CUDA device, and torch {version} finds none (--rehearse does without)")
    return lacking


def run_all(
    names: list[str], words: list[str], deadline: float, rehearse: bool
) -> dict[str, dict[str, Any]]:
    """Run each check in a process of its own, and print a line for each."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        # One cache of compiled kernels for all: the same model is compiled once.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(scratch) / "kernels")
        for name in names:
            folder = Path(scratch) / name
            folder.mkdir()
            command = [*words, "--child", name, "--scratch", str(folder)]
            left = deadline - time.monotonic()
            started = time.monotonic()
            longest = CHECKS[BY_NAME[name]] * (5 if rehearse else 1)
            result = in_child(command, min(longest, left))
            result["seconds"] = round(time.monotonic() - started, 1)
            verdict = {True: "passed", False: "FAILED", None: "skipped"}[result["passed"]]
            detail = result["reason"] or json.dumps(result["figures"])
            print(f"{verdict:7} {name} ({result['seconds']} s): {detail}", flush=True)
            results[name] = result
    return results


def in_child(words: list[str], seconds: float) -> dict[str, Any]:
    """Run this command again for one check; end it, and all that it started, after `seconds`."""
    if seconds < 10:
        return {"passed": None, "reason": "no time was left for it", "figures": {}}
    process = subprocess.Popen(
        [sys.executable, __file__, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"passed": False, "reason": f"not done after {seconds:.0f} s", "figures": {}}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    try:
        result: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = " | ".join(stderr.splitlines()[-5:])
        reason = f"its process ended with exit code {process.returncode}: {last}"
        return {"passed": False, "reason": reason, "figures": {}}
    return result


def result_of(check: Callable[[Options], dict[str, Any]], options: Options) -> dict[str, Any]:
    """Run a check in this process, and return what became of it."""
    try:
        return {"passed": True, "reason": None, "figures": check(options)}
    except MissingError as error:
        return {"passed": None, "reason": str(error), "figures": {}}
    except BaseException as error:  # also SystemExit and signals: the next check has to follow
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        return {"passed": False, "reason": reason, "figures": {}}


def goals(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare the speeds with the goals. A missed goal is no failed check."""
    speeds = {
        name: result["figures"]["tokens_per_second"]
        for name, result in results.items()
        if "tokens_per_second" in result["figures"]
    }
    ours = speeds.get("ours_gpt2")
    figures: dict[str, Any] = {}
    if ours is None:
        return figures
    gpu = results.get("machine", {}).get("figures", {}).get("gpu", "")
    figures["tokens_per_second"] = {"value": ours, "goal": GOAL_SPEED if "H200" in gpu else None}
    for name, goal in (("nanogpt", GOAL_RATIO), ("transformers_trainer", None)):
        if name in speeds:
            figures[f"times {name}"] = {"value": ours / speeds[name], "goal": goal}
    return figures


if __name__ == "__main__":
    main()
