"""Turn a conversation into one sequence of tokens: in training, `infer.py --chat` and reports.

A template is data: a text for each kind of turn, with places for the message and for special
tokens. Each turn and each answer is tokenised on its own, for two reasons. The border of the labels
is a border between tokens, for any tokenizer. The ids of a prompt are the first ids of the
conversation that it becomes. Text never becomes a special token, so no message can end a turn.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm.documents.conversations import Conversation, Turn
from lm.system.errors import ConfigError
from lm.tokenizer.tokenizer import Tokenizer

EOS = "<|eos|>"  # in a template: the tokenizer's EOS, whatever its name
LEARNED, BEGINS = 1, 2  # flags of a token: it is a label; it begins a new sequence
_PARTS = re.compile(r"(\{(?:content|input)\}|<\|\w+\|>)")


@dataclass(frozen=True)
class Template:
    """The texts of turns: `{content}` and `{input}` are the message, `<|name|>` a special token.

    Attributes:
        preamble, preamble_with_input: replace the system's message in a conversation that has
            none; the second if the first turn has an input.
        opening: begins an assistant's turn and ends the prompt.
        answer: the labels. Its last special token ends the turn.
        after: the text between an answer and the next turn.
    """

    name: str
    system: str
    user: str
    user_with_input: str
    opening: str
    answer: str
    after: str = ""
    preamble: str = ""
    preamble_with_input: str = ""

    @property
    def specials(self) -> list[str]:
        """The special tokens that the template needs, without EOS."""
        texts = (
            self.system + self.user + self.user_with_input + self.opening + self.answer + self.after
        )
        return sorted(
            {part for part in _PARTS.findall(texts) if part.startswith("<") and part != EOS}
        )

    @property
    def end_of_turn(self) -> str:
        """The special token that ends an answer."""
        return [part for part in _PARTS.findall(self.answer) if part.startswith("<")][-1]

    @property
    def around(self) -> tuple[str, str]:
        """The template's text before and after an answer."""
        before, _, after = self.answer.partition("{content}")
        return before, after


_BELOW = "Below is an instruction that describes a task"
TEMPLATES = {
    template.name: template
    for template in (
        # Stanford Alpaca's template, with a line break after "Response:", as most projects add it.
        Template(
            name="alpaca",
            preamble=f"{_BELOW}. Write a response that appropriately completes the request.",
            preamble_with_input=(
                f"{_BELOW}, paired with an input that provides further context. "
                "Write a response that appropriately completes the request."
            ),
            system="{content}\n\n",
            user="### Instruction:\n{content}\n\n",
            user_with_input="### Instruction:\n{content}\n\n### Input:\n{input}\n\n",
            opening="### Response:\n",
            answer="{content}<|eos|>",
        ),
        Template(
            name="instruction-output",
            system="### System: {content}\n",
            user="### Instruction: {content}\n### Input: \n",
            user_with_input="### Instruction: {content}\n### Input: {input}\n",
            # The space belongs to the answer: a tokenizer that joins words with the space before
            # them has no other token for " ham".
            opening="### Output:",
            answer=" {content}\n<|sep|>",
            after="\n",
        ),
        Template(
            name="chatml",
            system="<|im_start|>system\n{content}<|im_end|>\n",
            user="<|im_start|>user\n{content}<|im_end|>\n",
            user_with_input="<|im_start|>user\n{content}\n{input}<|im_end|>\n",
            opening="<|im_start|>assistant\n",
            answer="{content}<|im_end|>",
            after="\n",
        ),
    )
}


class Encoded(NamedTuple):
    """A conversation as tokens, without the EOS at its start.

    Attributes:
        ids: the tokens, of the tokenizer's dtype.
        flags: LEARNED and BEGINS; None if every token is a label.
        text_bytes: the UTF-8 size of the labels, if there are flags.
    """

    ids: NDArray[Any]
    flags: NDArray[np.uint8] | None = None
    text_bytes: int = 0


class ChatFormat:
    """A template with a tokenizer.

    Attributes:
        stop_ids: the ids that end an answer.

    Raises:
        ConfigError: the tokenizer lacks a special token of the template.
    """

    def __init__(
        self,
        template: str,
        tokenizer: Tokenizer,
        system: str | None = None,
        mask_prompt: bool = True,
    ):
        self.template = TEMPLATES[template]
        self.tokenizer = tokenizer
        self.system = system
        self.mask_prompt = mask_prompt
        self._specials = tokenizer.specials | {EOS: tokenizer.eos_id}
        if missing := [name for name in self.template.specials if name not in self._specials]:
            existing = ", ".join(sorted(tokenizer.specials)) or "none"
            raise ConfigError(
                f"template {template} needs {' and '.join(missing)}, and the tokenizer"
                f" {tokenizer.name} has no such special token (it has {existing}); write template:"
                " alpaca, which needs none"
            )
        self.stop_ids = frozenset({self._specials[self.template.end_of_turn], tokenizer.eos_id})

    @property
    def others(self) -> list[ChatFormat]:
        """The other templates whose special tokens the tokenizer has."""
        return [
            ChatFormat(name, self.tokenizer, self.system, self.mask_prompt)
            for name, template in TEMPLATES.items()
            if template is not self.template and set(template.specials) <= self._specials.keys()
        ]

    def overhead(self, of_pairs: bool) -> int:
        """Return the tokens of a conversation, or of a pair of answers, that says nothing."""
        nothing = (Turn("user", ""), Turn("assistant", ""))
        return len(self.encode(Conversation(nothing, "" if of_pairs else None)).ids)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids up to the start of the answer, with the EOS that opens every sequence."""
        encoded = self._encode([*self._pieces(turns), *_filled(self.template.opening)])
        return [self.tokenizer.eos_id, *encoded.ids.tolist()]

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer, with its end, as they follow a `prompt`."""
        return list(
            self._encode(
                _filled(self.template.answer, Turn("assistant", text), learned=True)
            ).ids.tolist()
        )

    def answer_text(self, decoded: str) -> str:
        """Return the message in the decoded text of an `answer`, without the template's own text.

        `decoded` may still grow; each result then begins with the one before.
        """
        before, after = (
            "".join(part for part in _PARTS.split(text) if not part.startswith("<|"))
            for text in self.template.around
        )
        message = "" if before.startswith(decoded) else decoded.removeprefix(before)
        # The end may be the beginning of the template's text; only more text can decide that.
        overlap = max(n for n in range(len(after) + 1) if message.endswith(after[:n]))
        return message[: len(message) - overlap]

    def encode(self, conversation: Conversation) -> Encoded:
        """Return a conversation's tokens; with a rejected answer two sequences, preferred first."""
        encoded = self._encode(self._pieces(conversation.turns))
        if conversation.rejected is None:
            return encoded
        other = self._encode(
            self._pieces((*conversation.prompt, Turn("assistant", conversation.rejected)))
        )
        assert encoded.flags is not None and other.flags is not None
        return Encoded(
            ids=np.concatenate(
                [encoded.ids, np.array([self.tokenizer.eos_id], encoded.ids.dtype), other.ids]
            ),
            flags=np.concatenate([encoded.flags, np.array([BEGINS], np.uint8), other.flags]),
            text_bytes=encoded.text_bytes + other.text_bytes,
        )

    def _pieces(self, turns: Sequence[Turn]) -> Iterator[_Piece]:
        template = self.template
        if turns[0].role != "system":
            own = template.preamble_with_input if turns[0].input else template.preamble
            if words := own if self.system is None else self.system:
                yield from _filled(template.system, Turn("system", words))
        for i, turn in enumerate(turns):
            if turn.role == "assistant":
                yield from _filled(template.opening)
                yield from _filled(template.answer, turn, learned=True)
                yield from _filled(template.after if i + 1 < len(turns) else "")
            elif turn.role == "system":
                yield from _filled(template.system, turn)
            else:
                yield from _filled(template.user_with_input if turn.input else template.user, turn)

    def _encode(self, pieces: Iterable[_Piece]) -> Encoded:
        """Encode pieces; adjacent texts of the same kind are tokenised as one."""
        dtype = self.tokenizer.dtype
        ids: list[NDArray[Any]] = [np.empty(0, dtype)]
        flags, text_bytes = [np.empty(0, np.uint8)], 0
        groups = [
            (*kind, [piece.text for piece in group])
            for kind, group in itertools.groupby(pieces, lambda piece: piece[1:])
        ]
        encoded = iter(
            self.tokenizer.encode_batch(
                ["".join(texts) for special, _, texts in groups if special is None]
            )
        )
        for special, learned, texts in groups:
            part = (
                next(encoded)
                if special is None
                else np.full(len(texts), self._specials[special], dtype)
            )
            ids.append(part)
            flags.append(np.full(len(part), LEARNED * (learned or not self.mask_prompt), np.uint8))
            text_bytes += len("".join(texts).encode()) * bool(flags[-1].any())
        return Encoded(np.concatenate(ids), np.concatenate(flags), text_bytes)


class _Piece(NamedTuple):
    """A part of a template: a text, or a special token, whose text is empty."""

    text: str
    special: str | None
    learned: bool


def _filled(template: str, turn: Turn | None = None, learned: bool = False) -> Iterator[_Piece]:
    """Yield the pieces of a template's text with its places filled.

    The text is split before it is filled: a message that looks like a place stays as it is.
    """
    values = {"{content}": turn.content, "{input}": turn.input} if turn is not None else {}
    for part in _PARTS.split(template):
        if part.startswith("<|"):
            yield _Piece("", part, learned)
        elif part:
            yield _Piece(values.get(part, part), None, learned)
