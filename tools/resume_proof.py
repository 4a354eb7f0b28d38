"""Prove on your own configuration that a run is the same if it is stopped, or killed, and resumed.

python -m tools.resume_proof --config config_smoke.yaml
python -m tools.resume_proof --config config_smoke.yaml --kill --steps 40 --data.workers 2

The command trains twice for a few steps in a temporary folder: once straight, and once interrupted.
It uses finetune.py if the configuration has a finetune section. Then it compares batches, losses,
learning rates, gradient norms, and every tensor of every checkpoint. Any key of the configuration
can be changed, as in train.py. The exit code is 6 if the two runs are not identical.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

from lm.commands import add_flag, command_parser, load_config, training_script
from lm.system import errors
from lm.system.child import child, environment, failed
from lm.system.signals import StopSignals

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Train both runs, compare them, and print "identical" or the first difference."""
    if sys.argv[1:2] == ["--traced"]:
        traced(Path(sys.argv[2]), sys.argv[3:])
        return
    arguments, overrides = parser().parse_known_args()
    config = load_config(arguments.config, overrides).config
    steps = min(arguments.steps, config.most_steps or arguments.steps)
    if not 0 < arguments.stops < steps:
        raise errors.ConfigError(
            f"--stops: {arguments.stops} do not fit into {steps} steps; write 1 or more, and less"
            " than --steps"
        )
    command = [
        *training_script(config),
        "--config",
        arguments.config,
        *overrides,
        *shortened(steps, config.optimizer.warmup_steps),
    ]
    stops = StopSignals(speaks=False, advice="what it had made so far is removed")
    with stops, tempfile.TemporaryDirectory(prefix="resume-proof-") as folder:
        straight = Path(folder) / "straight"
        interrupted = Path(folder) / "interrupted"
        finish(straight, command)
        print(f"straight     {steps} steps", flush=True)
        number = signal.SIGKILL if arguments.kill else signal.SIGTERM
        at = sorted(random.Random(arguments.seed).sample(range(1, steps), arguments.stops))  # noqa: S311 (no secret)
        done = [interrupt(interrupted, command, step, number) for step in at]
        finish(interrupted, command)
        print(
            f"interrupted  by {number.name} in step {', '.join(map(str, done))}; resumed each time",
            flush=True,
        )
        compare(straight, interrupted)


def parser() -> argparse.ArgumentParser:
    """Return the parser; any key of the configuration is one more flag."""
    result = command_parser("python -m tools.resume_proof", __doc__)
    add_flag(result, "--config")
    result.add_argument(
        "--kill",
        action="store_true",
        help="kill -9 the run at any moment, instead of asking it to stop",
    )
    result.add_argument("--steps", type=int, default=20, metavar="N", help="optimiser steps (20)")
    result.add_argument(
        "--stops", type=int, default=3, metavar="N", help="how often the run is interrupted (3)"
    )
    result.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="decides at which steps it is interrupted (0)",
    )
    return result


def shortened(steps: int, warmup_steps: int) -> list[str]:
    """Return the flags of a run of so many steps that keeps everything that is compared."""
    keys = {
        "trainer.max_steps": steps,
        "trainer.max_epochs": "null",
        "trainer.max_minutes": "null",
        "optimizer.schedule_by": "steps",
        "trainer.early_stopping": "null",
        "checkpoint.keep": steps,
        "trainer.validate_every": max(1, steps // 3),
        "checkpoint.save_every": max(1, steps // 5),
        "logging.every": 1,
    }
    if warmup_steps >= steps:
        keys |= {"optimizer.warmup_steps": steps // 4}
    return [f"--{key}={value}" for key, value in keys.items()]


def running(folder: Path, command: list[str]) -> AbstractContextManager[subprocess.Popen[str]]:
    """Start or resume the run in `folder`. It writes each of its steps to `folder`.jsonl."""
    words = [
        sys.executable,
        "-m",
        "tools.resume_proof",
        "--traced",
        str(folder.with_suffix(".jsonl")),
        *command,
        "--resume",
        "auto",
        f"--checkpoint.directory={folder}",
    ]
    # The run starts in the user's folder, because paths in the configuration are relative to it.
    return child(words, subprocess.DEVNULL, environment(ROOT))


def finish(folder: Path, command: list[str]) -> None:
    """Let the run in `folder` go to its end.

    Raises:
        UserError: the run failed; message and exit code are the run's.
    """
    with running(folder, command) as process:
        _, stderr = process.communicate()
    if process.returncode != 0:
        raise failed(process, stderr)


def interrupt(folder: Path, command: list[str], step: int, number: signal.Signals) -> int:
    """Let the run in `folder` reach a step, and send it a signal. Return the step that it was in.

    Raises:
        UserError: the run failed before the signal; message and exit code are the run's.
    """
    trace = folder.with_suffix(".jsonl")
    with running(folder, command) as process:
        while process.poll() is None and last_step(trace) < step:
            time.sleep(0.001)
        process.send_signal(number)
        _, stderr = process.communicate()
    if process.returncode not in (0, -number, 128 + number):
        raise failed(process, stderr)
    return last_step(trace)


def last_step(trace: Path) -> int:
    """Return the newest step in a run's trace; 0 if there is none."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def traced(trace: Path, arguments: list[str]) -> None:
    """Run train.py or finetune.py, and append a line to the file `trace` after each step."""
    import finetune
    import train
    from lm.checks.sameness import trace_of
    from lm.training.module import LanguageModel

    training_step = LanguageModel.training_step

    def traced_step(self: LanguageModel, batch: dict[str, object], batch_idx: int) -> None:
        training_step(self, batch, batch_idx)
        with trace.open("a") as file:
            file.write(
                trace_of(self.step, batch, self.loss, self.used_learning_rate, self.grad_norm)
                + "\n"
            )

    LanguageModel.training_step = traced_step  # type: ignore[method-assign]
    sys.argv = [str(ROOT / arguments[0]), *arguments[1:]]
    # Lightning starts its other processes by the main module's name, if it has one. Without one it
    # starts them by sys.argv, as train.py: they train and are not traced.
    sys.modules["__main__"].__spec__ = None
    commands = {"train.py": train.main, "finetune.py": finetune.main}
    commands[arguments[0]]()


def compare(straight: Path, interrupted: Path) -> None:
    """Print "identical", or raise CheckFailed with the first difference."""
    from lm.checkpoints.folder import step_directories
    from lm.checks.sameness import first_difference, read_trace

    one, other = (read_trace(folder.with_suffix(".jsonl")) for folder in (straight, interrupted))
    if (difference := first_difference(straight, interrupted, one, other)) is not None:
        raise errors.CheckFailed(f"not identical; the first difference is in {difference}")
    print(
        f"identical: the batches and numbers of {len(one)} steps, every tensor of"
        f" {len(step_directories(straight))} checkpoints"
    )


if __name__ == "__main__":
    errors.run(main)
