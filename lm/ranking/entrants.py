"""Measurement of checkpoints on sets of cases, one checkpoint at a time: memory holds one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm import load
from lm.checkpoints.folder import Checkpoint
from lm.checkpoints.meta import Meta
from lm.evaluation.training_text import training_text
from lm.ranking.candidates import Candidate, Failure, format_of
from lm.ranking.cases import CaseSet
from lm.ranking.results import SetResult, look_for_copies, measure_set
from lm.runs.results import RecordedValidation
from lm.system.errors import CheckpointError, ConfigError, DataError, UserError, is_out_of_memory
from lm.tokenizer.tokenizer import resolve


@dataclass(frozen=True)
class Entrant:
    """A measured checkpoint, ready to be ranked.

    Attributes:
        name: a short name that no other entrant has.
        links: names that link to it, such as "best".
        tokenizer: the tokenizer's name; `tokenizer_sha256` is the hash of its definition.
        recorded: the run's own validation of it, or None.
        results: the result on each set of cases; None if the checkpoint cannot read the set.
        not_searched: the reason why its training text was not searched for copies; None if it was.
        manifest_sha256: the hash of the manifest at the time of the measurement.
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
    not_searched: str | None
    manifest_sha256: str


def measure_all(
    candidates: Sequence[Candidate],
    sets: Sequence[CaseSet],
    device: str,
    tokenizer: str,
    template: str | None,
    say: Callable[[str], None],
) -> tuple[list[Entrant], list[Failure]]:
    """Measure every checkpoint on all sets.

    Args:
        tokenizer: "auto", or a tokenizer that must equal every checkpoint's own.
        template: the template of chats; None means each checkpoint's own.
        say: receives a line of progress for each checkpoint.

    Returns:
        The measured checkpoints and the failures. A checkpoint fails if it cannot be loaded, does
        not fit the memory, or has scores that are not finite.

    Raises:
        ConfigError: the tokenizer differs, the template does not exist, or a case cannot be judged.
    """
    entrants: list[Entrant] = []
    failures: list[Failure] = []
    for number, candidate in enumerate(candidates, start=1):
        say(f"{number} of {len(candidates)}: {candidate.name}")
        try:
            entrants.append(_measure(candidate, sets, device, tokenizer, template))
        except ConfigError:  # The command line or a case is wrong, not this checkpoint.
            raise
        except UserError as error:
            message = str(error)
            failures.append(
                Failure(
                    candidate.name,
                    message if str(candidate.path) in message else f"{candidate.path}: {message}",
                )
            )
        except OSError as error:  # The cache of its training text was removed during the search.
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
    device: str,
    tokenizer_option: str,
    template: str | None,
) -> Entrant:
    decoder, stored, meta = load(candidate.path, device)
    # The candidate's recorded validation would belong to other weights.
    if Checkpoint(candidate.path).sha256 != candidate.sha256:
        raise CheckpointError(
            f"{candidate.path} was replaced while others were measured; rank again"
        )
    tokenizer = resolve(tokenizer_option, stored)
    try:
        text = training_text(
            Meta(candidate.path, meta).config, tokenizer, str(meta.get("data_sha256"))
        )
    except CheckpointError as error:
        # The configuration is of another version. The weights may still be readable.
        text = str(error)
    measured: dict[int, SetResult] = {}
    for i, cases in enumerate(sets):
        chat = format_of(candidate.path, template) if cases.chat else None
        if chat is not None or not cases.chat:
            measured[i] = measure_set(decoder, tokenizer, chat, cases)
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
