"""A conversation with a model: its turns, how many the model reads again, and its answers."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from lm.checkpoints.folder import Checkpoint
from lm.checkpoints.meta import read_meta
from lm.documents.conversations import Turn
from lm.documents.faults import Fault, text_of
from lm.documents.templates import TEMPLATES, ChatFormat
from lm.generation.continuation import write
from lm.generation.sampling import Sampling
from lm.system.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from model import Decoder


def chat_format(
    checkpoint: Checkpoint, template: str | None = None, system: str | None = None
) -> ChatFormat:
    """Return the chat format of a checkpoint: the template and the system message that it was
    fine-tuned with, unless others are given.

    It needs no torch, so a checkpoint that cannot chat is refused at once.

    Raises:
        ConfigError: there is no such template, the tokenizer lacks its special tokens, or the
            checkpoint has no template and none is given.
        CheckpointError: meta.json does not hold a configuration, or the tokenizer cannot be read.
    """
    if template is not None and template not in TEMPLATES:
        raise ConfigError(f"--template {template}: there is {', '.join(sorted(TEMPLATES))}")
    meta = read_meta(checkpoint)
    source = meta.config.data.chat
    if template is None and source is None:
        raise ConfigError(
            f"{checkpoint.path} was not fine-tuned on conversations, so it has no template; give"
            f" --template {'|'.join(sorted(TEMPLATES))}, or fine-tune it with finetune.py"
        )
    message = source.system if system is None and source else system
    if message is not None and isinstance(fault := text_of(message), Fault):
        raise ConfigError(f"--system: {fault.kind}, {fault.detail}; write the message in UTF-8")
    name = template or source.template  # type: ignore[union-attr]  # refused above
    return ChatFormat(name, meta.load_tokenizer(), message)


class Chat:
    """The turns of one conversation. The system message belongs to the format.

    Attributes:
        turns: user and assistant alternate; an assistant's is the last.
        forgotten: the number of turns, from the oldest, that no longer fit the context. The model
            does not read them any more.
    """

    def __init__(self, form: ChatFormat, context: int, longest: int):
        """Begin a conversation. `context` is the model's context length in tokens, `longest` the
        most tokens of an answer.
        """
        self.format = form
        self.context = context
        self.longest = longest
        self.turns: list[Turn] = []
        self.forgotten = 0

    def prompt(self, message: str) -> list[int]:
        """Return the ids of a message and of the newest turns before it, with room for an answer.

        The room is `longest` tokens, or half of the context if that is less. To make it, the oldest
        question and its answer are forgotten, then the next.

        Raises:
            DataError: the message is empty, not Unicode, or too long to leave room for an answer.
        """
        if isinstance(fault := text_of(message), Fault):
            raise DataError(f"the message was not sent: {fault.kind}, {fault.detail}")
        if not message.strip():
            raise DataError("the message was not sent: it is empty")
        most = self.context - min(self.longest, self.context // 2)
        question, first = Turn("user", message), self.forgotten
        ids = self.format.prompt([*self.turns[first:], question])
        while len(ids) > most and first < len(self.turns):
            first += 2
            ids = self.format.prompt([*self.turns[first:], question])
        if len(ids) >= self.context:
            raise DataError(
                f"the message was not sent: with its template it has {len(ids):,} tokens, and the"
                f" context {self.context:,}"
            )
        self.forgotten = first
        return ids

    def take(self, message: str, answer: str) -> None:
        """Remember a message with its answer. If the answer is empty, forget both."""
        if answer.strip():
            self.turns += [Turn("user", message), Turn("assistant", answer)]

    def reset(self) -> None:
        """Forget all turns."""
        self.turns, self.forgotten = [], 0

    def to_json(self) -> str:
        """Return the conversation as one line, {"messages": [...]}, which `data.source.format:
        chat` reads.
        """
        system = [Turn("system", self.format.system)] if self.format.system else []
        turns = (*system, *self.turns)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return json.dumps({"messages": messages}, ensure_ascii=False)

    def reply(
        self,
        message: str,
        decoder: Decoder,
        options: Sampling,
        generator: torch.Generator,
        stops: Sequence[str] = (),
    ) -> Generator[str]:
        """Yield the answer to a message, piece by piece. If the generator is closed early, the
        answer up to that point is remembered.

        Raises:
            DataError: as `prompt` does.
        """
        ids = self.prompt(message)
        length = min(self.longest, self.context - len(ids))
        answer = ""
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
                shown, answer = answer, self.format.answer_text(sample.text)
                if len(answer) > len(shown):
                    yield answer[len(shown) :]
        finally:
            progress.close()
            self.take(message, answer)
