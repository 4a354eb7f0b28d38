"""A conversation with a model: what was said, how much of that it reads again, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.checkpoints.folder import read_meta
from lm.checkpoints.meta import read_config, read_tokenizer
from lm.documents.conversations import Turn
from lm.documents.faults import Fault, text_of
from lm.documents.templates import TEMPLATES, ChatFormat
from lm.generation.continuation import write
from lm.generation.sampling import Sampling
from lm.system.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch


def chat_format(folder: Path, template: str | None = None, system: str | None = None) -> ChatFormat:
    """How to speak with a checkpoint: by the template and the system's words that it was fine-tuned
    with, unless others are given.

    Without torch, so that one that cannot be spoken to is refused at once.

    Raises:
        ConfigError: there is no such template, the tokenizer lacks its special tokens, or the
            checkpoint has none and none is given.
        CheckpointError: meta.json does not hold a configuration, or the tokenizer cannot be read.
    """
    if template is not None and template not in TEMPLATES:
        raise ConfigError(f"--template {template}: there is {', '.join(sorted(TEMPLATES))}")
    meta = read_meta(folder)
    source = read_config(folder, meta["config"]).data.chat
    if template is None and source is None:
        raise ConfigError(
            f"{folder} was not fine-tuned on conversations, so it has no template; give --template"
            f" {'|'.join(sorted(TEMPLATES))}, or fine-tune it with finetune.py"
        )
    words = source.system if system is None and source else system
    if words is not None and isinstance(fault := text_of(words), Fault):
        raise ConfigError(f"--system: {fault.kind}, {fault.detail}")
    return ChatFormat(template or source.template, read_tokenizer(folder, meta), words)  # type: ignore[union-attr]  # refused above


class Chat:
    """The turns of one conversation; the system's words are the format's.

    Attributes:
        turns: a user's and an assistant's in turn, complete, so that an assistant's is the last.
        forgotten: how many of them, from the oldest on, no longer fit the context and are not read
            any more.
    """

    def __init__(self, form: ChatFormat, context: int, longest: int):
        """`context`: tokens that the model reads at once; `longest`: tokens of an answer."""
        self.format = form
        self.context = context
        self.longest = longest
        self.turns: list[Turn] = []
        self.forgotten = 0

    def prompt(self, message: str) -> list[int]:
        """The ids that a message and the newest turns before it make, with room for an answer. The
        oldest question and its answer, and then the next, are forgotten until there are `longest`
        tokens left, or half of the context where that is less.

        Raises:
            DataError: the message is empty, no Unicode, or so long that nothing could be answered.
        """
        if isinstance(fault := text_of(message), Fault):
            raise DataError(f"the message was not sent: {fault.kind}, {fault.detail}")
        if not message.strip():
            raise DataError("the message was not sent: it is empty")
        room, asked, first = (
            self.context - min(self.longest, self.context // 2),
            Turn("user", message),
            self.forgotten,
        )
        while len(ids := self.format.prompt([*self.turns[first:], asked])) > room and first < len(
            self.turns
        ):
            first += 2
        if len(ids) >= self.context:
            raise DataError(
                f"the message was not sent: with its template it has {len(ids):,} tokens, and the"
                f" context {self.context:,}"
            )
        self.forgotten = first
        return ids

    def take(self, message: str, answer: str) -> None:
        """Remember a message with its answer. Without an answer there is nothing to go on from, and
        both are left out.
        """
        if answer.strip():
            self.turns += [Turn("user", message), Turn("assistant", answer)]

    def reset(self) -> None:
        """Begin anew."""
        self.turns, self.forgotten = [], 0

    def to_json(self) -> str:
        """One line, {"messages": [...]}, of the whole conversation: data.source.format: chat reads
        it.
        """
        system = [Turn("system", self.format.system)] if self.format.system else []
        return json.dumps(
            {
                "messages": [
                    {"role": turn.role, "content": turn.content} for turn in (*system, *self.turns)
                ]
            },
            ensure_ascii=False,
        )

    def reply(
        self,
        message: str,
        decoder: Any,
        options: Sampling,
        generator: torch.Generator,
        stops: Sequence[str] = (),
    ) -> Generator[str]:
        """Answer a message, piece by piece. However this ends, closed early too, what was said
        until then is remembered.

        Raises:
            DataError: as for `prompt`.
        """
        ids = self.prompt(message)
        length = min(self.longest, self.context - len(ids))
        said = ""
        progress = write(
            decoder,
            self.format.tokenizer,
            ids,
            options,
            length,
            generator,
            stops=stops,
            stop_ids=self.format.stop_ids,
        )
        try:
            for [sample] in progress:
                fresh, said = (grown := self.format.answer_text(sample.text))[len(said) :], grown
                if fresh:
                    yield fresh
        finally:
            progress.close()
            self.take(message, said)
