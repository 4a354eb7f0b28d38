"""Rank checkpoints on files of cases: which is best, by how much, and whether that could be chance.

python evaluate_checkpoints.py --checkpoints 'checkpoints/*.ckpt' --cases cases/wiki_basics.yaml
python evaluate_checkpoints.py --checkpoints runs/a runs/b/best.ckpt --cases cases --out ranking
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lm.checkpoints.folder import Checkpoint
from lm.checkpoints.write import point
from lm.commands import add_flag, command_parser, to_path, to_path_text
from lm.system import errors
from lm.system.disk import refusals
from lm.system.errors import CheckpointError, ConfigError
from lm.system.streams import print_json

if TYPE_CHECKING:
    from lm.ranking.entrants import Entrant
    from lm.ranking.ranking import Ranking

EPILOG = """\
Globs are expanded, quoted or not. A link and its target are one checkpoint. A run's folder means
all checkpoints in it. If a checkpoint cannot be loaded, its name and the reason are printed and the
others are ranked. The exit code is then 0, or 5 if no checkpoint is left. With two or more
checkpoints, ranked-best.ckpt in the winner's folder becomes a link to the winner.
docs/EVALUATION.md explains the numbers."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser("evaluate_checkpoints.py", __doc__, EPILOG)
    parser.add_argument(
        "--checkpoints",
        required=True,
        nargs="+",
        type=to_path_text,
        metavar="PATH",
        help="checkpoints, globs such as 'checkpoints/*.ckpt'",
    )
    parser.add_argument(
        "--cases",
        required=True,
        nargs="+",
        type=to_path_text,
        metavar="PATH",
        help="files of cases; a folder means all *.yaml and *.yml files in it",
    )
    parser.add_argument(
        "--by",
        metavar="MEASURE",
        help="accuracy (if all cases have choices), bits_per_byte (else), exact, contains, ...",
    )
    add_flag(
        parser,
        "--tokenizer",
        help="each checkpoint's own, or one that must equal all of them (auto)",
    )
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="the template of chats, instead of the one that a checkpoint was fine-tuned with",
    )
    add_flag(parser, "--device")
    parser.add_argument(
        "--out",
        type=to_path,
        metavar="DIR",
        help="write ranking.md, ranking.csv, ranking.png and ranking.json there",
    )
    add_flag(parser, "--json", help="print one JSON object, with the answers to each case")
    parser.add_argument("--no-link", action="store_true", help="do not set ranked-best.ckpt")
    return parser.parse_args()


def main() -> None:
    """Check the arguments, then import torch, measure all checkpoints, and rank them."""
    arguments = parse()
    from lm.ranking.candidates import case_files, find
    from lm.ranking.cases import read_cases
    from lm.ranking.measures import check_by

    sets = [read_cases(file) for file in case_files(arguments.cases)]
    candidates, damaged = find(arguments.checkpoints)
    for candidate in candidates:
        for path in candidate.copies:
            say(f"{path} is the same checkpoint as {candidate.path}, and enters once")
    if arguments.out is not None:
        with refusals(arguments.out):
            arguments.out.mkdir(parents=True, exist_ok=True)
    check_by(arguments.by, sets, {str(c.meta["tokenizer"].get("sha256")) for c in candidates})

    from lm.ranking.entrants import measure_all
    from lm.ranking.files import as_json, write
    from lm.ranking.ranking import rank_set, rank_together
    from lm.system.device import choose_device

    device = choose_device(arguments.device, "--device")
    entrants, failed = measure_all(
        candidates, sets, device, arguments.tokenizer, arguments.template, say
    )
    failed = [*damaged, *failed]
    for failure in failed:
        say(f"not ranked: {failure.reason}")
    if not entrants:
        raise CheckpointError("no checkpoint is left to rank")
    rankings = []
    for number, cases in enumerate(sets):
        if ranking := rank_set(cases, number, entrants, arguments.by):
            rankings.append(ranking)
        else:
            say(f"{cases.path}: not ranked: no case could be measured for every checkpoint")
    if not rankings:
        raise ConfigError(
            "--cases: no set of cases is left to rank by; a context may be too short for them"
        )
    if together := rank_together(rankings, arguments.by):
        rankings.insert(0, together)
    if arguments.json:
        print_json(as_json(rankings, failed))
    else:
        show(rankings)
    if arguments.out is not None:  # after printing: the disk may refuse the files
        write(arguments.out, rankings, failed)
        say(f"written: {arguments.out}/ranking.md, ranking.csv, ranking.png, ranking.json")
    if not arguments.no_link and len(rankings[0].entrants) > 1:
        link(rankings[0].entrants[rankings[0].order.best_first[0]])


def show(rankings: Sequence[Ranking]) -> None:
    """Print the tables and their sentences. On a terminal the best checkpoint is bold."""
    from lm.display.tables import TERMINAL_WIDTH, colour_wanted, terminal_table
    from lm.ranking.words import general_notes, heading, notes, summary, table

    bold = colour_wanted()
    for ranking in rankings:
        names, first, *others = terminal_table(
            table(ranking, TERMINAL_WIDTH, links=ranking is rankings[0])
        ).splitlines()
        print(
            heading(ranking), names, f"\x1b[1m{first}\x1b[0m" if bold else first, *others, sep="\n"
        )
        print(*summary(ranking), *notes(ranking), "", sep="\n")
    print(*general_notes(rankings), sep="\n", flush=True)


def link(winner: Entrant) -> None:
    """Link ranked-best.ckpt to the winner. If its run has replaced the winner meanwhile, or the
    disk refuses, print the reason.
    """
    try:
        if Checkpoint(winner.path).sha256 != winner.manifest_sha256:
            raise CheckpointError(f"{winner.path} was replaced since it was ranked")
        point(winner.path.parent, "ranked-best.ckpt", winner.path)
    except CheckpointError as error:
        say(f"no link: {error}")
    else:
        say(f"{winner.path.parent / 'ranked-best.ckpt'} -> {winner.path.name}")


def say(line: str) -> None:
    """Print a line of progress, or a problem, to stderr."""
    print(errors.printable(line), file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
