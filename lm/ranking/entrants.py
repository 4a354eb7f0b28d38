"""From checkpoints on disk to what they make of all sets of cases, one after another, so that
memory holds one model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.checkpoints.folder import read_manifest
from lm.checkpoints.meta import read_config
from lm.evaluation.training_text import training_text
from lm.ranking.candidates import Candidate, Failure, format_of
from lm.ranking.cases import CaseSet
from lm.ranking.results import SetResult, look_for_copies, measure
from lm.runs.results import RecordedValidation
from lm.system.errors import CheckpointError, ConfigError, DataError, UserError, is_out_of_memory
from lm.tokenizer.tokenizer import Tokenizer, resolve

Load = Callable[[Any, str], tuple[Any, Tokenizer, dict[str, Any]]]


@dataclass(frozen=True)
class Entrant:
    """A checkpoint that takes part.

    Attributes:
        name: as short as it can be told from the others by.
        links: names that mean it, such as "best".
        tokenizer: its name; `tokenizer_sha256` is of its definition.
        recorded: what the run's own validation measured; None: nothing.
        results: of each set of cases; None: it cannot be asked.
        not_searched: why the text that it was trained on was not searched for what it writes; None:
            it was.
        manifest_sha256: stands for all its files, as they were measured.
    """

    name: str
    path: Path
    links: tuple[str, ...]
    step: int
    parameters: int
    tokenizer: str
    tokenizer_sha256: str
    recorded: RecordedValidation | None
    results: tuple[SetResult | None, ...]
    not_searched: str | None = None
    manifest_sha256: str = ""


def measure_all(
    candidates: Sequence[Candidate],
    sets: Sequence[CaseSet],
    load: Load,
    device: str,
    tokenizer: str = "auto",
    template: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Entrant], list[Failure]]:
    """Ask each checkpoint all sets.

    Args:
        load: `lm.load`.
        tokenizer: "auto", or one that has to be the same as every checkpoint's own.
        template: of chats; None: each checkpoint's own.
        say: is told of each.

    Returns:
        Those that were measured, and those that cannot be loaded, do not fit the memory, or whose
        numbers are not finite.

    Raises:
        ConfigError: the tokenizer or template is another, or a case cannot be judged.
    """
    entrants: list[Entrant] = []
    failures: list[Failure] = []
    for number, candidate in enumerate(candidates, start=1):
        say(f"{number} of {len(candidates)}: {candidate.name}")
        try:
            entrants.append(_measure(candidate, sets, load, device, tokenizer, template))
        except ConfigError:  # what is wrong is not this checkpoint
            raise
        except UserError as error:
            message = str(error)
            failures.append(
                Failure(
                    candidate.name,
                    message if str(candidate.path) in message else f"{candidate.path}: {message}",
                )
            )
        except OSError as error:  # the tokens of its training text went away while they were read
            file = error.filename or "a file"
            failures.append(
                Failure(
                    candidate.name,
                    f"{candidate.path}: {file} cannot be read: {error.strerror or error}",
                )
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failures.append(Failure(candidate.name, f"{candidate.path}: out of memory"))
    return entrants, failures


def _measure(
    candidate: Candidate,
    sets: Sequence[CaseSet],
    load: Load,
    device: str,
    tokenizer_option: str,
    template: str | None,
) -> Entrant:
    decoder, stored, meta = load(candidate.path, device)
    # what is recorded of it is of other weights
    if read_manifest(candidate.path)["sha256"] != candidate.sha256:
        raise CheckpointError(
            f"{candidate.path} was replaced while others were measured; rank again"
        )
    tokenizer = resolve(tokenizer_option, stored)
    try:
        text = training_text(
            read_config(candidate.path, meta["config"]), tokenizer, str(meta.get("data_sha256"))
        )
    except (
        CheckpointError
    ) as error:  # of another version's configuration the weights may well be read
        text = str(error)
    measured: dict[int, SetResult] = {}
    for i, cases in enumerate(sets):
        chat = format_of(candidate.path, meta, template) if cases.chat else None
        if chat is not None or not cases.chat:
            measured[i] = measure(decoder, tokenizer, chat, cases)
    if not isinstance(text, str):
        measured = dict(zip(measured, look_for_copies(text, list(measured.values())), strict=True))
    if not measured:
        raise DataError(
            f"{candidate.path} has no template, and all cases are chats; --template NAME gives"
            " it one"
        )
    return Entrant(
        name=candidate.name,
        path=candidate.path,
        links=candidate.links,
        step=meta["step"],
        parameters=sum(parameter.numel() for parameter in decoder.parameters()),
        tokenizer=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        recorded=candidate.recorded,
        results=tuple(measured.get(i) for i in range(len(sets))),
        not_searched=text if isinstance(text, str) else None,
        manifest_sha256=candidate.sha256,
    )
