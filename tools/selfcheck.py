"""Check on your own configuration that the model is built right and can be trained.

python -m tools.selfcheck --config config_smoke.yaml
python -m tools.selfcheck --config config_smoke.yaml --model.n_layers 8 --only future --only cache

The command builds the model and the first batch as train.py (or finetune.py) does. It makes seven
checks in float32 and prints a line for each. The last check trains for four small steps in a
temporary folder, once straight and once interrupted. The run's own folder is not touched. The exit
code is 0 if no check fails, and 6 if one does. Any key of the configuration can be changed, as in
train.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import finetune
import train
from lm.commands import add_flag, command_parser, load_config
from lm.config.describe import to_yaml
from lm.config.reader import Loaded
from lm.config.schema.config import Config
from lm.display.tables import colour_wanted
from lm.runs.origin import Origin
from lm.system import errors
from lm.system.child import child, environment
from lm.system.signals import StopSignals

if TYPE_CHECKING:
    from lm.checks.selfchecks import Result
    from lm.training.parts import Parts

ROOT = Path(__file__).parents[1]
CHECKS = {
    "future": "the future cannot leak into the past",
    "cache": "the KV cache gives the same logits as a full forward pass",
    "documents": "packed documents do not see each other",
    "loss": "the initial loss is right",
    "gradients": "every trained parameter gets a gradient",
    "heart": "the model can memorise one batch",
    "resume": "a resume is exact",
}
SIGNS = {True: ("ok  ", "32"), False: ("FAIL", "31"), None: ("--  ", "33")}


def main() -> None:
    """Make the checks that were asked for, and print a line for each."""
    arguments, overrides = parser().parse_known_args()
    loaded = load_config(arguments.config, overrides)
    names = [name for name in CHECKS if name in (arguments.only or CHECKS)]

    started = time.perf_counter()
    from lm.checks.subject import Subject

    subject = Subject(parts_of(loaded))
    results = []
    if not arguments.json:
        print(subject.forecast(names, started), flush=True)
    for name in names:
        started = time.perf_counter()
        result = resume(subject.config) if name == "resume" else subject.check(name)
        seconds = round(time.perf_counter() - started, 2)
        results.append({"check": name, **result._asdict(), "seconds": seconds})
        if not arguments.json:
            print(line(name, result, colour_wanted()), flush=True)
    if arguments.json:
        print(json.dumps(results, indent=1))
    if failed := [str(result["check"]) for result in results if result["ok"] is False]:
        raise errors.CheckFailed(
            f"{len(failed)} of {len(results)} checks failed: {', '.join(failed)}"
        )


def parser() -> argparse.ArgumentParser:
    """Return the parser; any key of the configuration is one more flag."""
    result = command_parser("python -m tools.selfcheck", __doc__)
    add_flag(result, "--config")
    names = ", ".join(CHECKS)
    result.add_argument(
        "--only",
        action="append",
        choices=[*CHECKS],
        metavar="NAME",
        help=f"make this check alone; may be given several times: {names}",
    )
    add_flag(result, "--json", help="print one JSON list")
    return result


def parts_of(loaded: Loaded) -> Parts:
    """Return the parts of the session that train.py or finetune.py would begin."""
    command = train if loaded.config.finetune is None else finetune
    return command.assemble(loaded, Origin(), lambda text: print(text, file=sys.stderr))


def resume(config: Config) -> Result:
    """Run tools.resume_proof on a shortened run, in a process of its own."""
    from lm.checks.selfchecks import Result
    from lm.checks.subject import RESUME_STEPS, shortened

    if config.max_steps < 2:
        return Result(None, "the run has a single step, so it cannot be resumed")
    stops = StopSignals(speaks=False, advice="what it had made so far is removed")
    with stops, tempfile.TemporaryDirectory(prefix="selfcheck-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(shortened(config)), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "tools.resume_proof",
            "--config",
            str(file),
            f"--steps={RESUME_STEPS}",
            "--stops=1",
        ]
        with child(command, subprocess.PIPE, environment(ROOT)) as process:
            stdout, stderr = process.communicate()
    exact = process.returncode == 0
    output = stdout if exact else stderr
    return Result(
        exact,
        output.strip().rpartition("\n")[2],
        "lm/checkpoints/train_state.py; `python -m tools.resume_proof` shows more",
    )


def line(name: str, result: Result, colour: bool) -> str:
    """Return the line of a check for the terminal. After a failed check a second line says where to
    look.
    """
    sign, code = SIGNS[result.ok]
    sign = f"\x1b[{code}m{sign}\x1b[0m" if colour else sign
    below = f"\n     look at {result.where}" if result.ok is False else ""
    return f"{sign} {CHECKS[name]}: {result.figure}{below}"


if __name__ == "__main__":
    errors.run(main)
