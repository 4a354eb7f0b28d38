"""Conversations in one form: turns of a system, a user and an assistant.

Each layout of a row is a function from its keys to a `Conversation` or a `Fault`. A new layout is a
function and an entry in `LAYOUTS`.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lm.documents.faults import Fault, text_of

# Roles, with the names that ShareGPT uses.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
SMS_INSTRUCTION = "classify if the SMS is spam or ham"


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str
    input: str = ""  # what an instruction is about, if the dataset keeps it in its own key


@dataclass(frozen=True)
class Conversation:
    """Turns of a user and an assistant alternately, perhaps after a system's.

    The last turn is an assistant's. `rejected` is another last answer that people preferred less.
    """

    turns: tuple[Turn, ...]
    rejected: str | None = None

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """The turns before the last answer."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.turns[-1].content

    @property
    def plain_text(self) -> str:
        """What is said in all turns, without roles and template."""
        parts = [part for turn in self.turns for part in (turn.content, turn.input)]
        return "\n".join([*parts, self.rejected or ""])

    def to_json(self) -> str:
        """Return one line of JSON, which is the document's text.

        Its hash identifies the conversation in splits and among repeats.
        """
        return json.dumps([self.turns, self.rejected], ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """Read the result of `to_json`."""
        turns, rejected = json.loads(text)
        return cls(tuple(Turn(*turn) for turn in turns), rejected)


def conversation_of(row: object, layout: str) -> Conversation | Fault:
    """Return a row as a conversation, or its fault."""
    if not isinstance(row, Mapping):
        return Fault(
            "not a JSON object",
            f"a conversation is an object with keys, this one is {reprlib.repr(row)}",
        )
    if "messages" not in row and "conversations" in row:  # ShareGPT's name
        row = {**row, "messages": row["conversations"]}
    if layout == "auto":
        detected = next(
            (
                name
                for name, (keys, _) in LAYOUTS.items()
                if all(row.get(key) is not None for key in keys)
            ),
            None,
        )
        if detected is None or detected == "preferences":
            wanted = "; ".join(
                f"{' and '.join(keys)} ({name})" for name, (keys, _) in LAYOUTS.items()
            )
            return Fault(
                "unknown layout",
                f"there are {reprlib.repr(list(row))}; data.source.layout says which of these to"
                f" take: {wanted}",
            )
        layout = detected
    keys, read = LAYOUTS[layout]
    for key in keys:
        if row.get(key) is None:
            return Fault(
                f"no key {key!r}",
                f"there are {reprlib.repr(list(row))}, and layout {layout} has"
                f" {' and '.join(keys)}",
            )
    return read(row)


def from_sms(line: str) -> Conversation | Fault:
    """Return a line of the SMS Spam Collection (label, tab, message) as a conversation."""
    label, tab, message = line.partition("\t")
    if not tab or label not in ("ham", "spam"):
        return Fault(
            "not a labelled message",
            f"a line must be ham or spam, a tab and the message, this one is {reprlib.repr(line)}",
        )
    return Conversation((Turn("user", SMS_INSTRUCTION, message), Turn("assistant", label)))


def _alpaca(row: Mapping[str, Any]) -> Conversation | Fault:
    fields = {
        key: "" if row.get(key) is None else row[key]
        for key in ("system", "instruction", "input", "output")
    }
    system = (Turn("system", fields["system"]),) if fields["system"] != "" else ()
    return _checked(
        (
            *system,
            Turn("user", fields["instruction"], fields["input"]),
            Turn("assistant", fields["output"]),
        )
    )


def _messages(row: Mapping[str, Any]) -> Conversation | Fault:
    if not isinstance(row["messages"], list):
        return Fault("messages is not a list", f"it is {reprlib.repr(row['messages'])}")
    turns = []
    for i, message in enumerate(row["messages"]):
        role, content = (
            (message.get("role", message.get("from")), message.get("content", message.get("value")))
            if (isinstance(message, Mapping))
            else (None, None)
        )
        if not isinstance(role, str) or role not in ROLES:
            return Fault(
                "wrong role",
                f"messages[{i}] is {reprlib.repr(message)}; its role must be system, user or"
                " assistant",
            )
        turns.append(Turn(ROLES[role], content))  # type: ignore[arg-type]  # _checked looks at it
    return _checked(tuple(turns))


def _completion(row: Mapping[str, Any]) -> Conversation | Fault:
    return _answered(row["prompt"], row["completion"])


def _preferences(row: Mapping[str, Any]) -> Conversation | Fault:
    chosen, rejected = (_answered(row["prompt"], row[key]) for key in ("chosen", "rejected"))
    for pair in (chosen, rejected):
        if isinstance(pair, Fault):
            return pair
    if chosen.prompt != rejected.prompt:  # type: ignore[union-attr]
        return Fault(
            "different prompts",
            "chosen and rejected must be the same up to their last message, which are the answers"
            " to compare",
        )
    if chosen == rejected:
        return Fault(
            "equal answers", "chosen and rejected are the same, so there is nothing to prefer"
        )
    return Conversation(chosen.turns, rejected.answer)  # type: ignore[union-attr]


def _answered(prompt: Any, answer: Any) -> Conversation | Fault:
    """Return a prompt with its answer: two texts, or lists of messages.

    If an answer repeats the prompt, as in some datasets, the repetition is removed.
    """
    if not isinstance(prompt, list) and not isinstance(answer, list):
        return _checked((Turn("user", prompt), Turn("assistant", answer)))
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not isinstance(answer, list):
        return Fault(
            "text and messages",
            "if the prompt is a list of messages, each answer must be one too; the prompt of such"
            " answers may be a text",
        )
    if answer[: len(prompt)] == prompt:
        answer = answer[len(prompt) :]
    return _messages({"messages": prompt + answer})


LAYOUTS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Conversation | Fault]]] = {
    "alpaca": (("instruction", "output"), _alpaca),
    "messages": (("messages",), _messages),
    "prompt_completion": (("prompt", "completion"), _completion),
    "preferences": (("prompt", "chosen", "rejected"), _preferences),
}


def _checked(turns: tuple[Turn, ...]) -> Conversation | Fault:
    """Return turns as a conversation if their order and their texts are valid, else a fault."""
    for turn in turns:
        for text in (turn.content, turn.input):
            if isinstance(fault := text_of(text), Fault):
                return Fault(fault.kind, f"{turn.role}: {fault.detail}")
        if not turn.content.strip():
            kind = {
                "assistant": "empty answer",
                "user": "empty prompt",
                "system": "empty system turn",
            }[turn.role]
            return Fault(kind, f"what the {turn.role} says is empty")
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        detail = (
            f"{reprlib.repr(roles)}; after a system, if any, user and assistant take turns, the"
            " assistant last"
        )
        return Fault("wrong order of roles", detail)
    return Conversation(turns)
