"""Parts that several commands share: the frame of a command line, the flags that mean the same
everywhere, and a configuration that its base checkpoint has completed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lm.system.errors import ConfigError
from lm.system.paths import expand

if TYPE_CHECKING:
    from lm.config.reader import Loaded
    from lm.config.schema.config import Config
    from lm.runs.origin import Origin
    from lm.training.parts import Parts

Assemble = Callable[["Loaded", "Origin", Callable[[str], None]], "Parts"]


def to_path_text(text: str) -> str:
    """Return the path that a flag gives, with `~` and `$VARIABLES` replaced, as text."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def to_path(text: str) -> Path:
    """Return the path that a flag gives, with `~` and `$VARIABLES` replaced."""
    return Path(to_path_text(text))


SHARED_FLAGS: dict[str, dict[str, Any]] = {
    "--ckpt": {
        "required": True,
        "type": to_path_text,
        "metavar": "CKPT",
        "help": "the checkpoint, such as checkpoints/best.ckpt; a run's folder means its best",
    },
    "--config": {
        "required": True,
        "type": to_path_text,
        "metavar": "FILE",
        "help": "the run's YAML file",
    },
    "--tokenizer": {
        "type": to_path_text,
        "default": "auto",
        "metavar": "NAME",
        "help": "the checkpoint's own, or one that must equal it (auto)",
    },
    "--device": {
        "default": "auto",
        "choices": ["auto", "cpu", "cuda", "mps"],
        "help": "where to compute (auto)",
    },
    "--json": {"action": "store_true", "help": "print one JSON object"},
}


class _StoreOnce(argparse.Action):
    """Keep a flag's value. The same flag twice is refused: argparse alone would drop the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        if option_string is not None and before is not self.default:
            raise argparse.ArgumentError(self, f"given twice, got {before} before; {self._advice}")
        setattr(namespace, self.dest, values)

    @property
    def _advice(self) -> str:
        if "--config" in self.option_strings:
            return "a run has one file: write both into one, or set keys by --section.key VALUE"
        if self.nargs is not None:
            return "write all values after one of the two"
        return "remove one of the two"


class _Parser(argparse.ArgumentParser):
    """Answers a mistake in one line, with what to write instead."""

    def error(self, message: str) -> NoReturn:
        if message.endswith(("expected one argument", "expected at least one argument")):
            flag = message.removeprefix("argument ").partition(":")[0].split("/")[0]
            message += f"; write {flag}=VALUE for a value that begins with a dash"
        raise ConfigError(f"{self.prog}: {message} (--help names all flags)")


def command_parser(
    prog: str, description: str | None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Return an empty parser that prints its texts as they are and accepts no abbreviated flag.

    An abbreviation could become ambiguous, or mean something else, when a new flag is added.
    """
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in (None, "store"):
        parser.register("action", name, _StoreOnce)
    return parser


def add_flag(parser: argparse.ArgumentParser, name: str, **changes: Any) -> None:
    """Add one of `SHARED_FLAGS`; `changes` replace some of its settings, such as `help`."""
    parser.add_argument(name, **SHARED_FLAGS[name] | changes)


def load_config(path: Path | str, overrides: Sequence[str] = (), trains: bool = True) -> Loaded:
    """Load a configuration; with `finetune`, its base checkpoint sets the model and the tokenizer.

    With `trains=False` keys that are wrong only for a training are no mistake.

    Raises:
        ConfigError: the configuration is wrong; one line for each problem.
        CheckpointError: the base checkpoint is missing or damaged.
    """
    # Most commands print their help without pydantic, which both of these need.
    from lm.checkpoints.base import filled
    from lm.config.reader import load

    return load(path, overrides, complete=filled, trains=trains)


def training_script(config: Config) -> list[str]:
    """Return the command that trains a configuration, without the report of a fine-tuning."""
    if config.finetune is None:
        return ["train.py"]
    return ["finetune.py", "--finetune.report_prompts=0"]


def training_parser(prog: str, description: str | None, init_from: bool) -> argparse.ArgumentParser:
    """Return the parser of train.py or finetune.py; every configuration key is a flag too."""
    from lm.config.keys import help_text

    parser = command_parser(
        prog, description, help_text() if {"-h", "--help"} & set(sys.argv) else ""
    )
    add_flag(parser, "--config")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        type=to_path_text,
        metavar="auto|CKPT",
        help="continue a run: auto takes the newest whole checkpoint in checkpoint.directory, or"
        " starts one",
    )
    if init_from:
        start.add_argument(
            "--init-from",
            type=to_path_text,
            metavar="CKPT",
            help="start a new run from a checkpoint's weights",
        )
    else:
        parser.set_defaults(init_from=None)
    parser.add_argument(
        "--plan",
        action="store_true",
        help="try one micro-batch and say what the run would take: memory, disk, time",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the effective configuration and where each value came from",
    )
    return parser


def answer_without_training(
    arguments: argparse.Namespace, loaded: Loaded, assemble: Assemble
) -> bool:
    """Answer --print-config and --plan. Return whether one of them was given.

    Raises:
        UserError: the planned run could not end well.
    """
    from lm.config.describe import describe
    from lm.runs.origin import Origin
    from lm.system.signals import StopSignals

    if arguments.print_config:
        print(describe(loaded.config, loaded.origins), end="")
    elif arguments.plan:
        if arguments.resume or arguments.init_from:
            raise ConfigError(
                "command line: --plan plans the whole run, from its first step; leave out --resume"
                " and --init-from"
            )
        with StopSignals(speaks=True, advice="a plan writes nothing"):
            from lm.training.plan import plan

            plan(assemble(loaded, Origin(), print), print)
    return bool(arguments.print_config or arguments.plan)
