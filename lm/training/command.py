"""The command line of `train.py` and `finetune.py`: configuration, plan, start, resume. They differ
in what a session is made of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from lm.config.describe import describe
from lm.config.keys import help_text
from lm.config.reader import Loaded
from lm.runs.folder import RunFolder
from lm.runs.origin import Origin
from lm.system.errors import ConfigError
from lm.system.signals import StopSignals
from lm.training.launch import launch
from lm.training.processes import disconnect, is_first

if TYPE_CHECKING:
    from lm.training.record import Session

BuildSession = Callable[
    [Loaded, Origin, RunFolder | None, StopSignals, Callable[[str], None]], "Session"
]


def run_command(
    arguments: argparse.Namespace, loaded: Loaded, build: BuildSession, init_from: str | None
) -> bool:
    """Answer what needs no training, or train; returns whether it trained.

    Args:
        arguments, loaded: the command line, and the configuration that it names.
        build: makes a session; it imports what is heavy.
        init_from: the checkpoint whose weights a new run starts from.
    """
    if arguments.print_config:
        print(describe(loaded.config, loaded.origins), end="")
        return False
    if arguments.plan:
        if arguments.resume or vars(arguments).get("init_from"):
            raise ConfigError(
                "command line: --plan plans the whole run, from its first step; leave out --resume"
                " and --init-from"
            )
        with StopSignals(speaks=True) as signals:
            build(loaded, Origin(), None, signals, print).plan(print)
        return False
    train(loaded, build, arguments.resume, init_from)
    return True


def train(loaded: Loaded, build: BuildSession, resume: str | None, init_from: str | None) -> None:
    """Train: one session, or several (lm/training/launch.py). Both paths are as the command line
    has them.
    """

    def train_from(origin: Origin, run: RunFolder | None, signals: StopSignals) -> None:
        # Before torch, whose C++ code imports it too and swallows a signal that is raised in there:
        # half of numpy would be left.
        import numpy  # noqa: F401

        build(loaded, origin, run, signals, print if is_first() else lambda *_: None).train()

    launch(loaded.config, resume, init_from, train_from)
    disconnect()  # together: a process that ends while others still talk to it may abort them


def training_parser(prog: str, description: str | None, init_from: bool) -> argparse.ArgumentParser:
    """The flags, `--init-from` among them where it is wanted; any key of the configuration is one
    more.
    """
    epilog = help_text() if {"-h", "--help"} & set(sys.argv) else ""
    result = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--config", required=True, metavar="FILE", help="the run's YAML file")
    start = result.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        metavar="auto|CKPT",
        help=(
            "continue a run: auto takes the newest whole checkpoint in checkpoint.directory, or"
            " starts one"
        ),
    )
    if init_from:
        start.add_argument(
            "--init-from", metavar="CKPT", help="start a new run from a checkpoint's weights"
        )
    result.add_argument(
        "--plan",
        action="store_true",
        help="try one micro-batch and say what the run would take: memory, disk, time",
    )
    result.add_argument(
        "--print-config",
        action="store_true",
        help="print the effective configuration and where each value came from",
    )
    return result
