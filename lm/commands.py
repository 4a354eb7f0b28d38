"""Parts that several commands share: the frame of a command line, the flags that mean the same
everywhere, and a configuration that its base checkpoint has completed.

The command line of train.py and finetune.py is in lm/training/command.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.config.reader import Loaded

SHARED_FLAGS: dict[str, dict[str, Any]] = {
    "--ckpt": {
        "required": True,
        "metavar": "CKPT",
        "help": "the checkpoint, such as checkpoints/best.ckpt",
    },
    "--config": {"required": True, "metavar": "FILE", "help": "the run's YAML file"},
    "--device": {
        "default": "auto",
        "choices": ["auto", "cpu", "cuda", "mps"],
        "help": "where to compute (auto)",
    },
    "--json": {"action": "store_true", "help": "print one JSON object"},
}


def command_parser(
    prog: str, description: str | None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Return an empty parser that prints its texts as they are and accepts no abbreviated flag.

    An abbreviation could become ambiguous, or mean something else, when a new flag is added.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_flag(parser: argparse.ArgumentParser, name: str, **changes: Any) -> None:
    """Add one of `SHARED_FLAGS`; `changes` replace some of its settings, such as `help`."""
    parser.add_argument(name, **SHARED_FLAGS[name] | changes)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Loaded:
    """Load a configuration; with `finetune`, its base checkpoint sets the model and the tokenizer.

    Raises:
        ConfigError: the configuration is wrong; one line for each problem.
        CheckpointError: the base checkpoint is missing or damaged.
    """
    # Help is printed without pydantic, which both of these need.
    from lm.checkpoints.base import filled
    from lm.config.reader import load

    return load(path, overrides, complete=filled)
