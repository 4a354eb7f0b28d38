"""Measure one change: a baseline and a variant, several seeds each, and the difference.

python -m tools.ablate --config config_smoke.yaml --change optimizer.lr=3e-3 --seeds 3
python -m tools.ablate --config config_smoke.yaml --change model.n_layers=8 \\
    --change model.d_model=96 --trainer.max_steps 100

Several --change make one variant with all of them; for several variants, start the command again.
Any key of the configuration can be changed for both runs, as in train.py. Each run is one of
train.py (or finetune.py) with its own seed and its own folder below --out. The same command again
resumes an interrupted ablation, and with more --seeds adds runs to it. A run that diverges is
reported, and the others continue.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from lm.commands import add_flag, command_parser, load_config, to_path, training_script
from lm.config.describe import to_yaml
from lm.config.schema.config import Config
from lm.reports.ablation import Ablation, Outcome, outcome
from lm.reports.pairing import kept
from lm.system import errors
from lm.system.child import child, failed
from lm.system.disk import refusals, replace
from lm.system.errors import ConfigError, NonFiniteError
from lm.system.signals import StopSignals
from lm.system.streams import outlive_stdout

ROOT = Path(__file__).parents[1]
MOST_SEEDS = 1000
# keys that this command sets for each run
OWN = ("trainer.seed", "checkpoint.directory", "finetune.report_prompts")


def main() -> None:
    """Check the arguments, run the pairs, and print the difference."""
    arguments, overrides = parser().parse_known_args()
    changes = [f"--{change.removeprefix('--')}" for change in arguments.change]
    if not 1 <= arguments.seeds <= MOST_SEEDS:
        raise ConfigError(
            f"--seeds: {arguments.seeds} is not a number of pairs; write 1 to {MOST_SEEDS:,}"
        )
    baseline, variant = configurations(arguments.config, overrides, changes)
    out = arguments.out or Path("runs") / f"ablate-{short_name(changes)}"
    texts = to_yaml(baseline), to_yaml(variant)
    claim(out, texts)

    outlive_stdout()  # the folder holds the results, too
    seeds = [baseline.trainer.seed + i for i in range(arguments.seeds)]
    news = sys.stderr if arguments.json else sys.stdout
    script = training_script(baseline)
    results = run_pairs(out, script, seeds, lambda line: print(line, file=news, flush=True))
    ablation = Ablation(
        arguments.config,
        [flag.removeprefix("--") for flag in changes],
        seeds,
        results["baseline"],
        results["variant"],
        unit_of(baseline),
        kept(baseline, variant),
        texts,
    )
    ablation.write(out)
    if arguments.json:
        print(json.dumps(ablation.as_json(), indent=1))
    else:
        from lm.display.tables import terminal_table

        print(
            f"\n{terminal_table(ablation.table())}\n",
            *ablation.lines(),
            f"written: {out}/ablation.md, ablation.json",
            sep="\n",
        )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; the configuration's keys are further flags."""
    result = command_parser("python -m tools.ablate", __doc__)
    add_flag(result, "--config", help="the baseline's YAML file")
    result.add_argument(
        "--change",
        required=True,
        action="append",
        metavar="KEY=VALUE",
        help="a change of the variant; repeatable",
    )
    result.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="pairs of runs, from trainer.seed on (3)"
    )
    result.add_argument(
        "--out",
        type=to_path,
        metavar="DIR",
        help="the folder of the runs (default: runs/ablate- and the changes)",
    )
    add_flag(result, "--json", help="print one JSON object; progress goes to stderr")
    return result


def configurations(file: str, overrides: list[str], changes: list[str]) -> tuple[Config, Config]:
    """Return the configurations of the baseline and of the variant.

    Raises:
        ConfigError: one of them is wrong, a change is of a key that this command sets, or the two
            losses do not compare.
    """
    keys = {key_of(flag) for flag in changes}
    if own := keys & set(OWN):
        raise ConfigError(
            f"--change {min(own)}: this command sets it for each run itself; change another key"
        )
    baseline = load_config(file, overrides).config
    variant = load_config(file, [*without(overrides, keys), *changes]).config
    if (baseline.finetune is None, unit_of(baseline)) != (
        variant.finetune is None,
        unit_of(variant),
    ):
        raise ConfigError(
            "--change: variant and baseline have different objectives, so their losses do not"
            " compare"
        )
    return baseline, variant


def unit_of(config: Config) -> str:
    """Return the unit of a run's losses."""
    return (
        "nats per token"
        if config.finetune is None or config.finetune.objective == "sft"
        else "nats per pair"
    )


def key_of(flag: str) -> str:
    """Return a flag's key: --optimizer.lr=1e-3 -> optimizer.lr."""
    return flag.removeprefix("--").partition("=")[0]


def without(flags: list[str], keys: set[str]) -> list[str]:
    """Remove the flags of some keys, with their values: --change overrides the baseline's flags."""
    remaining: list[str] = []
    dropping = False
    for word in flags:
        if word.startswith("--"):
            dropping = key_of(word) in keys
        if not dropping:
            remaining.append(word)
    return remaining


def short_name(changes: list[str]) -> str:
    """Return a folder's name for changes: --optimizer.lr=1e-3 -> lr-1e-3."""
    short = "-".join(
        f"{key_of(flag).rpartition('.')[2]}-{flag.partition('=')[2]}" for flag in changes
    )
    return re.sub(r"[^\w.+]+", "-", short)[:60].strip("-.")


def claim(out: Path, texts: tuple[str, str]) -> None:
    """Start an ablation in a folder, or resume it.

    Raises:
        ConfigError: the folder holds another ablation.
    """
    for name, text in zip(("baseline.yaml", "variant.yaml"), texts, strict=True):
        path = out / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"--out: {out} holds another ablation ({name} differs); name a new folder, or"
                " remove that one"
            )
    with refusals(out):
        out.mkdir(parents=True, exist_ok=True)
    for name, text in zip(("baseline.yaml", "variant.yaml"), texts, strict=True):
        replace(out / name, text)


def run_pairs(
    out: Path, script: list[str], seeds: list[int], say: Callable[[str], None]
) -> dict[str, list[Outcome]]:
    """Train the baseline and the variant with each seed; say how each ended."""
    results = {"baseline": list[Outcome](), "variant": list[Outcome]()}
    for seed in seeds:
        for name in results:
            folder = out / f"{name}-seed-{seed}"
            command = [
                *script,
                # Not the user's file, which may be edited before the last run starts.
                f"--config={out / name}.yaml",
                f"--trainer.seed={seed}",
                f"--checkpoint.directory={folder}",
            ]
            result = run(folder, command)
            results[name].append(result)
            ending = (
                result.problem
                or f"validation loss {result.final:.4f} ({result.seconds:.0f} s of training)"
            )
            say(f"{name}, seed {seed}: {ending}")
    return results


def run(folder: Path, command: list[str]) -> Outcome:
    """Train a run, or resume it, to its end; its output goes to a log next to its folder.

    Raises:
        UserError: the run failed otherwise than by diverging; message and exit code are the run's.
        Stopped: a signal came; the run has saved.
    """
    with (
        folder.with_suffix(".log").open("a", encoding="utf-8") as log,
        StopSignals(speaks=True, advice="go on with the same command"),
    ):
        words = [sys.executable, str(ROOT / command[0]), *command[1:], "--resume", "auto"]
        with child(words, log) as process:
            _, errors_of_run = process.communicate()
        log.write(errors_of_run)
    if process.returncode == NonFiniteError.exit_code:
        return Outcome(problem="diverged")
    if process.returncode != 0:
        raise failed(process, errors_of_run, f"{folder}: the run")
    return outcome(folder)


if __name__ == "__main__":
    errors.run(main)
