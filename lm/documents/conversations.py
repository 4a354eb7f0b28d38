"""Conversations in one form: turns of a system, a user and an assistant.

`turns_of` reads messages in the forms that data sets use, and `conversation` checks turns and puts
them in order. The keys of a row are in `layouts.py`.
"""

from __future__ import annotations

import ast
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lm.documents.faults import Fault, text_of
from lm.documents.row_keys import is_absent, note_unused, refused, tools_fault

# Each role with the names that data sets use for it, in small letters.
ROLES = {
    name: role
    for role, names in {
        "system": "system developer",
        "user": "user human prompter usr person customer",
        "assistant": "assistant gpt bot model ai chatbot chatgpt bard bing claude llm agent",
        "tool": "tool tools function observation ipython environment function_call tool_call"
        " function_response tool_response tool_result",
    }.items()
    for name in names.split()
}
# A message may have the roles as keys instead: {"human": "...", "assistant": "..."}.
SPEAKERS = ROLES | {"input": "user", "output": "assistant"}
ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
CONTENT_KEYS = ("content", "value", "text", "parts", "message")
TEXT_PARTS = ("text", "input_text", "output_text")  # the types of a content's parts that are text
_LIKE_MESSAGES = re.compile(
    r"""\s*(array\()?\[\s*\{'(role|from|content|value)':.*\](, dtype=object)?\)?\s*""", re.DOTALL
)
# Pieces of a printed array: a value, with the space that stands for a comma; and what is around it.
_PRINTED = re.compile(
    r"""(?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[}\]])(?P<space>\s+(?=['"{\[]))?"""
    r"|(?P<alone>\bnan\b|\barray\(|,\s*dtype=[^()]+\)|\))",
    re.DOTALL,
)
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")

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


def from_sms(line: str) -> Conversation | Fault:
    """Return a line of the SMS Spam Collection (label, tab, message) as a conversation."""
    label, tab, message = line.partition("\t")
    if not tab or label not in ("ham", "spam"):
        return Fault(
            "not a labelled message",
            f"a line must be ham or spam, a tab and the message, this one is {reprlib.repr(line)}",
        )
    return Conversation((Turn("user", SMS_INSTRUCTION, message), Turn("assistant", label)))


def conversation(turns: Sequence[Turn], noted: Counter[str]) -> Conversation | Fault:
    """Return turns as a conversation: put in order, and with texts that can be learnt.

    An empty system message means none. An answer before the first question and a question without
    an answer are dropped; messages of one side in a row become one. `noted` counts these changes.
    """
    turns = [turn for turn in turns if turn.role != "system" or not is_absent(turn.content)]
    for turn in turns:
        for text in (turn.content, turn.input):
            if isinstance(fault := text_of(text), Fault):
                return Fault(fault.kind, f"{turn.role}: {fault.detail}")
    turns = [turn for turn in turns if turn.role != "system" or turn.content.strip()]
    for turn in turns:
        if not turn.content.strip():
            kind = "empty answer" if turn.role == "assistant" else "empty prompt"
            return Fault(kind, f"what the {turn.role} says is empty")
    ordered = _ordered(turns, noted)
    spoken = ordered[1:] if ordered and ordered[0].role == "system" else ordered
    if not spoken or any(turn.role == "system" for turn in spoken):
        roles = [turn.role for turn in turns]
        return Fault(
            "wrong order of roles",
            f"{reprlib.repr(roles)}; after a system, if any, user and assistant take turns, the"
            " assistant last",
        )
    return Conversation(tuple(ordered))


def _ordered(turns: Sequence[Turn], noted: Counter[str]) -> list[Turn]:
    """Return turns in which user and assistant alternate, as far as dropping and joining can."""
    ordered: list[Turn] = []
    for turn in turns:
        before = ordered[-1] if ordered else None
        if before is not None and before.role == turn.role:
            joined = f"{before.content}\n\n{turn.content}"
            ordered[-1] = Turn(turn.role, joined, before.input or turn.input)
            noted["break between two messages of one side"] += 1
        elif turn.role == "assistant" and (before is None or before.role == "system"):
            noted["answer before the first question"] += 1
        else:
            ordered.append(turn)
    if ordered and ordered[-1].role == "user":
        ordered.pop()
        noted["question without an answer"] += 1
    return ordered


def turns_of(messages: object, key: str, noted: Counter[str]) -> list[Turn] | Fault:
    """Return a list of messages as turns; their texts are not checked yet.

    A message has a role and a content, or roles as its keys. Texts alone, and pairs of them,
    alternate between user and assistant.

    Args:
        messages: the list, or its JSON.
        key: where it stands in the row, for messages.
        noted: counts what is left out.
    """
    messages = _transposed(messages)
    if isinstance(messages, dict):  # one message, or OpenAI's {"messages": [...]}
        rest = dict(messages)
        messages = rest.pop("messages", [messages])
        if messages != [rest]:
            if isinstance(fault := refused(rest, f"{key}: "), Fault):
                return fault
            note_unused(rest, f" of {key}", noted)
    if not isinstance(messages := _parsed(messages), list):
        advice = "; write the list as JSON" if isinstance(messages, str) else ""
        return Fault(f"{key} is not a list", f"it is {reprlib.repr(messages)}{advice}")
    if all(isinstance(message, str) for message in messages):
        return list(_alternating(messages))
    turns: list[Turn] = []
    for i, message in enumerate(messages):
        if isinstance(message, list) and len(message) == 2 and isinstance(message[0], str):
            turns += _alternating(message)
            continue
        found = _turns_of_message(message, f"{key}[{i}]", noted)
        if isinstance(found, Fault):
            return found
        turns += found
    return turns


def _transposed(messages: Any) -> Any:
    """Return messages that are one list for each key, as `datasets` keeps them; else the value."""
    if not isinstance(messages, dict) or not messages.keys() & set(ROLE_KEYS):
        return messages
    columns = messages.values()
    if not all(isinstance(column, list) for column in columns) or len(set(map(len, columns))) > 1:
        return messages
    return [dict(zip(messages, values, strict=True)) for values in zip(*columns, strict=True)]


def _alternating(texts: Sequence[str]) -> Iterator[Turn]:
    for i, text in enumerate(texts):
        yield Turn(("user", "assistant")[i % 2], text)


def _turns_of_message(message: object, place: str, noted: Counter[str]) -> list[Turn] | Fault:
    if not isinstance(message, dict):
        return _wrong_role(message, place)
    rest = {key: value for key, value in message.items() if not is_absent(value)}
    role_key = next((key for key in ROLE_KEYS if key in rest), None)
    if role_key is None:
        roles = [SPEAKERS.get(str(key).lower()) for key in rest]
        if not rest or None in roles:
            return _wrong_role(message, place)
        spoken = zip(roles, rest.values(), strict=True)
        return [Turn(str(role), content) for role, content in spoken]
    name = rest.pop(role_key)
    if isinstance(name, dict):  # of an author
        name = name.get("role")
    role = _role(name)
    if role is None:
        return _wrong_role(message, place)
    if role == "tool":
        return tools_fault(f"{place} is a message of a {name}")
    content_key = next((key for key in CONTENT_KEYS if key in rest), None)
    text = text_of_parts(rest.pop(content_key) if content_key else None, place)
    if isinstance(fault := refused(rest, f"{place}: ", role == "assistant"), Fault):
        return fault
    if content_key is None and role != "system":  # an empty system message means none
        if isinstance(rest.get("refusal"), str):
            detail = (
                f"{place} has a refusal and no content; write its text as content to learn it, or"
                " leave it out"
            )
            return Fault("refusal without content", detail)
        keys = reprlib.repr(list(message))
        return Fault("no content", f"{place} has no content; the message has the keys {keys}")
    if isinstance(text, Fault):
        return text
    note_unused(rest, " of a message", noted)
    return [Turn(role, text)]


def _role(name: object) -> str | None:
    return ROLES.get(name.strip().lower()) if isinstance(name, str) else None


def _wrong_role(message: object, place: str) -> Fault:
    detail = f"{place} is {reprlib.repr(message)}; its role must be system, user or assistant"
    return Fault("wrong role", detail)


def text_of_parts(content: Any, place: str) -> Any:
    """Return a message's content with its parts joined to one text, or a fault.

    What is neither a list of parts nor an object with them stays as it is.
    """
    if isinstance(content, dict):
        content = next((content[key] for key in CONTENT_KEYS if key in content), content)
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind.startswith(("tool", "function")):
            return tools_fault(f"{place} has a part {reprlib.repr(kind)}")
        if not is_absent(kind) and kind not in TEXT_PARTS:
            detail = f"{place} has a part of type {reprlib.repr(kind)}, and only text can be learnt"
            return Fault("content that is not text", detail)
        if not isinstance(text, str):
            detail = f"{place} has the part {reprlib.repr(part)}, and only text can be learnt"
            return Fault("content that is not text", detail)
        texts.append(text)
    return "\n".join(texts)


def transcript(text: str) -> list[Turn] | None:
    r"""Return the turns of a text "\n\nHuman: ... \n\nAssistant: ...", as Anthropic's data has."""
    if not _TRANSCRIPT.match(text):
        return None
    parts = _TRANSCRIPT.split(text)[1:]
    return [
        Turn(ROLES[name.lower()], content.strip())
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def listed(value: Any, key: str) -> Any:
    """Return the messages that a text holds as JSON, as in a table's cell; else the value.

    A text that begins like messages and cannot be read is a fault, because it would be learnt.
    """
    parsed = _parsed(value)
    if isinstance(parsed, str) and _LIKE_MESSAGES.fullmatch(parsed):
        detail = f"{key} is {reprlib.repr(parsed)}; write the list as JSON"
        return Fault("messages that cannot be read", detail)
    return parsed if are_messages(parsed) else value


def are_messages(value: object) -> bool:
    """Return whether a value is a list of messages with roles."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, dict) and any(_tells_role(message, key) for key in ROLE_KEYS)
            for message in value
        )
    )


def _tells_role(message: dict[str, Any], key: str) -> bool:
    if key in ("author", "sender"):  # which may also be the names of people, in rows
        name = message.get(key)
        return _role(name.get("role") if isinstance(name, dict) else name) is not None
    return key in message


def _parsed(value: Any) -> Any:
    """Return a list that a cell of a table holds as JSON, or as Python or numpy writes it."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "array([")):
        return value
    printed = _PRINTED.sub(_literal, value)
    # Python alone would join 'one' 'two' of an array to one text.
    for text, parse in (
        (value, json.loads),
        (printed, ast.literal_eval),
        (value, ast.literal_eval),
    ):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass
    return value


def _literal(printed: re.Match[str]) -> str:
    """Return a piece of a list that numpy or pandas printed, as Python writes it."""
    if printed["alone"] is not None:
        return "None" if printed["alone"] == "nan" else ""
    return printed["value"] + ("," if printed["space"] else "")
