"""From checkpoints on disk to what they make of all sets of cases, one after another, so that
memory holds one model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm.checkpoints.folder import read_manifest
from lm.checkpoints.meta import read_config
from lm.evaluation.training_text import training_text
from lm.ranking.candidates import Contender, Failure, format_of
from lm.ranking.cases import CaseSet
from lm.ranking.ranking import Entrant
from lm.ranking.results import SetResult, look_for_copies, measure
from lm.system.errors import CheckpointError, ConfigError, DataError, UserError, is_out_of_memory
from lm.tokenizer.tokenizer import Tokenizer, resolve

Load = Callable[[Any, str], tuple[Any, Tokenizer, dict[str, Any]]]


def measure_all(
    contenders: Sequence[Contender],
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
    for number, contender in enumerate(contenders, start=1):
        say(f"{number} of {len(contenders)}: {contender.name}")
        try:
            entrants.append(_measure(contender, sets, load, device, tokenizer, template))
        except ConfigError:  # what is wrong is not this checkpoint
            raise
        except UserError as error:
            message = str(error)
            failures.append(
                Failure(
                    contender.name,
                    message if str(contender.path) in message else f"{contender.path}: {message}",
                )
            )
        except OSError as error:  # the tokens of its training text went away while they were read
            file = error.filename or "a file"
            failures.append(
                Failure(
                    contender.name,
                    f"{contender.path}: {file} cannot be read: {error.strerror or error}",
                )
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failures.append(Failure(contender.name, f"{contender.path}: out of memory"))
    return entrants, failures


def _measure(
    contender: Contender,
    sets: Sequence[CaseSet],
    load: Load,
    device: str,
    tokenizer_option: str,
    template: str | None,
) -> Entrant:
    decoder, stored, meta = load(contender.path, device)
    # what is recorded of it is of other weights
    if read_manifest(contender.path)["sha256"] != contender.sha256:
        raise CheckpointError(
            f"{contender.path} was replaced while others were measured; rank again"
        )
    tokenizer = resolve(tokenizer_option, stored)
    try:
        text = training_text(
            read_config(contender.path, meta["config"]), tokenizer, str(meta.get("data_sha256"))
        )
    except (
        CheckpointError
    ) as error:  # of another version's configuration the weights may well be read
        text = str(error)
    measured: dict[int, SetResult] = {}
    for i, cases in enumerate(sets):
        chat = format_of(contender.path, meta, template) if cases.chat else None
        if chat is not None or not cases.chat:
            measured[i] = measure(decoder, tokenizer, chat, cases)
    if not isinstance(text, str):
        measured = dict(zip(measured, look_for_copies(text, list(measured.values())), strict=True))
    if not measured:
        raise DataError(
            f"{contender.path} has no template, and all cases are chats; --template NAME gives"
            " it one"
        )
    return Entrant(
        name=contender.name,
        path=contender.path,
        links=contender.links,
        step=meta["step"],
        parameters=sum(parameter.numel() for parameter in decoder.parameters()),
        tokenizer=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        recorded=contender.recorded,
        results=tuple(measured.get(i) for i in range(len(sets))),
        not_searched=text if isinstance(text, str) else None,
        manifest_sha256=contender.sha256,
    )
