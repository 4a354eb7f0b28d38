"""The layouts of rows that people have: which keys there are, and how they become a conversation.

`LAYOUTS` has an entry for each layout, and `NAMES` the names that data sets give to its keys. A new
layout is a function and an entry in `LAYOUTS`.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from lm.documents.conversations import (
    CONTENT_KEYS,
    Conversation,
    Turn,
    are_messages,
    conversation,
    listed,
    text_of_parts,
    transcript,
    turns_of,
)
from lm.documents.exports import by_columns, export_of
from lm.documents.faults import Fault
from lm.documents.row_keys import is_absent, note_unused, refused, says_nothing

Fields = Mapping[str, Any]  # a row's values by the keys of `NAMES`

# Each key with the names that data sets give it, in the order in which they are looked for.
NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "contents",
                 "chat_messages", "data"),
    "instruction": ("instruction",),
    "output": ("output", "response", "answer", "completion"),
    "prompt": ("prompt", "question", "query", "instruction", "input", "inputs", "messages",
               "conversations"),
    "completion": ("completion", "response", "answer", "output", "target", "targets"),
    "chosen": ("chosen", "preferred_output"),
    "rejected": ("rejected", "non_preferred_output"),
    "input": ("input", "context", "passage"),
    "system": ("system", "system_prompt", "system_message", "systemInstruction",
               "system_instruction", "instructions"),
    "history": ("history",),
}  # fmt: skip
OPTIONAL = ("system", "history", "input")  # every layout has these
# Keys of a question, and of what it asks to choose from: one that nothing reads would be lost.
_QUESTIONS = ("prompt", "question", "query")
_OPTIONS = ("options", "choices")
# Names that only people can tell the meaning of: an error suggests them for `columns`.
_MAYBE_PROMPT = (
    "text", "sentence", "sms", "source", "src", "problem", "title", "article", "document", "user",
    "human", "q", "input_text",
)  # fmt: skip
_MAYBE_ANSWER = (
    "label", "labels", "class", "category", "summary", "solution", "tgt", "reply", "assistant",
    "bot", "a", "output_text", "best_answer",
)  # fmt: skip


class Layout(NamedTuple):
    """The keys that a row must have, further ones, and the way to a conversation."""

    needs: tuple[str, ...]
    read: Callable[[Fields, Counter[str]], Conversation | Fault]
    more: tuple[str, ...] = ()


def conversation_of(
    row: object,
    layout: str,
    columns: Mapping[str, str] | None = None,
    noted: Counter[str] | None = None,
) -> Conversation | Fault:
    """Return a row as a conversation, or its fault.

    Args:
        row: an object with keys, or a list of messages.
        layout: a key of `LAYOUTS`, or "auto".
        columns: the row's names for keys of `NAMES`.
        noted: counts what is left out of the row: keys that nothing reads, and messages.
    """
    if isinstance(row, list) and layout in ("auto", "messages"):
        row = {"messages": row}
    if not isinstance(row, dict):
        return Fault(
            "not a JSON object",
            f"a conversation is an object with keys, this one is {reprlib.repr(row)}",
        )
    columns = columns or {}
    left = {key: value for key, value in row.items() if not is_absent(value)}
    # "data" is a usual name of anything; UltraChat has the turns' texts in it.
    is_data = isinstance(data := left.get("data"), list) and all(isinstance(x, str) for x in data)
    keys = tuple(key for key in left if key != "data" or is_data)
    chosen, names = _columns_of(keys, layout, tuple(columns.items()))
    has_layout = chosen is not None and all(names[key] in row for key in LAYOUTS[chosen].needs)
    if fault := export_of(tuple(row), has_layout) or by_columns(left):
        return fault
    if chosen is None:
        return _unknown(left)
    if unknown := columns.keys() - names.keys():
        return Fault(
            "columns of another layout",
            f"columns names {' and '.join(sorted(unknown))}, and layout {chosen} has"
            f" {', '.join(names)}; remove it, or name another layout",
        )
    fields = {key: left.pop(name) for key, name in names.items() if name in left}
    for key in LAYOUTS[chosen].needs:
        if key not in fields:
            return Fault(
                f"no key {names[key]!r}",
                f"there are {reprlib.repr(list(row))}, and layout {chosen} has"
                f" {' and '.join(LAYOUTS[chosen].needs)}"
                + _suggested(row, "; write columns: {suggestion}, which names the row's own keys"),
            )
    if isinstance(fault := refused(left, ""), Fault):
        return fault
    rejected = left.get("rejected")
    if isinstance(rejected, str | list | dict) and rejected and "chosen" not in row:
        return Fault(
            "rejected without chosen",
            "an answer to avoid needs a better one beside it; call that one chosen, and write"
            " layout: preferences",
        )
    notes: Counter[str] = Counter()
    for key in columns.keys() & names.keys():
        if columns[key] not in row:
            notes[f"no key {columns[key]!r}, which columns.{key} names"] += 1
    found = LAYOUTS[chosen].read(fields, notes)
    if isinstance(found, Fault):
        return found
    if not columns.keys() & {"instruction", "prompt", "messages"}:  # else the question is named
        for key in _OPTIONS if layout != "auto" else (*_QUESTIONS, *_OPTIONS):
            if not says_nothing(left.get(key)) and not _repeats(left[key], found):
                return _unread_question(key, names, chosen)
    if noted is not None:
        note_unused(left, "", notes)
        noted += notes
    return found


@lru_cache(maxsize=1000)  # the rows of a file have few sets of keys
def _columns_of(
    row: tuple[str, ...], layout: str, given: tuple[tuple[str, str], ...]
) -> tuple[str | None, dict[str, str]]:
    """Return the layout of a row with these keys, and its names of the layout's keys.

    The layout is None if there is none, or one that must be named.
    """
    columns = dict(given)
    if layout == "auto":
        found = next(
            (name for name, (needs, *_) in LAYOUTS.items() if columns.keys() >= set(needs)), None
        )
        for known in (lambda key: NAMES[key][:1], NAMES.__getitem__):  # the usual names first
            found = found or next(
                (
                    name
                    for name, (needs, *_) in LAYOUTS.items()
                    if all(_name(row, key, columns, known(key)) in row for key in needs)
                ),
                None,
            )
        if found is None or found == "preferences":
            return None, {}
        layout = found
    names: dict[str, str] = {}
    for key in (*LAYOUTS[layout].needs, *LAYOUTS[layout].more, *OPTIONAL):
        free = [name for name in NAMES[key] if name not in names.values()]
        names[key] = _name(row, key, columns, free or [key])
    return layout, names


def _name(row: tuple[str, ...], key: str, columns: Mapping[str, str], known: Sequence[str]) -> str:
    """Return the row's name of a key: that of `columns`, or the first known one it has."""
    if key in columns:
        return columns[key]
    taken = columns.values()
    return next((name for name in known if name in row and name not in taken), known[0])


def _repeats(value: object, found: Conversation) -> bool:
    """Return whether the texts of a key that nothing reads stand in the conversation anyway."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return all(_repeats(part, found) for part in value)
    return says_nothing(value) or str(value).strip() in found.plain_text


def _unread_question(key: str, names: Mapping[str, str], layout: str) -> Fault:
    asked = next(name for name in ("instruction", "messages", "prompt") if name in names)
    return Fault(
        f"{key} that nothing reads",
        f"{names[asked]} is read as what is asked (layout {layout}), and {key} beside it would be"
        f" lost; name the key that asks, as in columns: {{{asked}: {names[asked]}}}, or write both"
        " into one key",
    )


def _unknown(row: Mapping[str, Any]) -> Fault:
    keys = reprlib.repr(list(row))
    if all(row.keys() & set(NAMES[key]) for key in LAYOUTS["preferences"].needs):
        return Fault(
            "unknown layout",
            f"there are {keys}: answers to compare; write layout: preferences and"
            " finetune.objective: dpo",
        )
    if are_messages([row]) and row.keys() & set(CONTENT_KEYS):
        return Fault(
            "one message instead of a conversation",
            f"there are {keys}; a conversation is a list of messages; write one list a line",
        )
    if "rejected" in row:
        return Fault(
            "rejected without chosen",
            f"there are {keys}; two answers to compare are called chosen and rejected",
        )
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            if are_messages(value) and value[0].keys() & set(CONTENT_KEYS):
                advice = f"if {key} is the messages, write columns: {{messages: {key}}}"
            elif row.keys() & set(NAMES["prompt"]):
                advice = (
                    f"{key} is a list; if it has several answers, write one of them as completion,"
                    " or two as chosen and rejected"
                )
            else:
                advice = (
                    f"if {key} is the list of rows, write it alone into the file, as jq .{key} does"
                )
            return Fault("unknown layout", f"there are {keys}; {advice}")
    if len(row) == 1 and (
        mark := next((mark for mark in ";|\t" if mark in str(next(iter(row)))), None)
    ):
        return Fault(
            "unknown layout",
            f"there is {keys}; if {mark!r} parts the columns, write delimiter: {json.dumps(mark)}",
        )
    advice = _suggested(
        row,
        "write columns: {suggestion}",
        "write columns: {prompt: KEY, completion: KEY} with the row's own keys",
    )
    if list(row) == ["text"]:
        advice = "a text alone has no answer; to learn it as text, write format: jsonl"
    wanted = "; ".join(f"{' and '.join(needs)} ({name})" for name, (needs, *_) in LAYOUTS.items())
    return Fault("unknown layout", f"there are {keys}; {advice}; known are: {wanted}")


def _suggested(row: Mapping[str, Any], advice: str, otherwise: str = "") -> str:
    """Return advice with `columns` for keys that look like a prompt and an answer."""
    by_name = {str(key).strip().lower(): str(key) for key in reversed(list(row))}
    prompt, answer = (
        next((by_name[name] for name in names if name in by_name), None)
        for names in ([*NAMES["prompt"][:6], *_MAYBE_PROMPT],
                      [*NAMES["completion"], *_MAYBE_ANSWER])
    )  # fmt: skip
    if prompt is None or answer is None:
        return otherwise
    return advice.format(suggestion=f"{{prompt: {prompt}, completion: {answer}}}")


# ---------------------------------------------------------------- from fields to conversations


def _alpaca(fields: Fields, noted: Counter[str]) -> Conversation | Fault:
    asked = [Turn("user", fields["instruction"], fields.get("input", ""))]
    return _assembled(fields, [*asked, Turn("assistant", fields["output"])], noted)


def _messages(fields: Fields, noted: Counter[str]) -> Conversation | Fault:
    turns = turns_of(fields["messages"], "messages", noted)
    return turns if isinstance(turns, Fault) else _about_input(fields, turns, noted)


def _completion(fields: Fields, noted: Counter[str]) -> Conversation | Fault:
    return _answered(fields, "completion", noted)


def _preferences(fields: Fields, noted: Counter[str]) -> Conversation | Fault:
    chosen, rejected = (_answered(fields, key, noted) for key in ("chosen", "rejected"))
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


def _answered(fields: Fields, key: str, noted: Counter[str]) -> Conversation | Fault:
    """Return a prompt with the answer under `key`: texts, or lists of messages.

    If an answer repeats the prompt, as in some datasets, the repetition is removed. Without a
    prompt the answer is the whole conversation.
    """
    prompt, answer = listed(fields.get("prompt", []), "prompt"), listed(fields[key], key)
    for text in (prompt, answer):
        if isinstance(text, Fault):
            return text
    asked = (
        turns_of(prompt, "prompt", noted)
        if isinstance(prompt, list | dict)
        else [Turn("user", prompt)]
    )
    if isinstance(asked, Fault):
        return asked
    if isinstance(answer, str) and "prompt" not in fields:
        said: list[Turn] | Fault = transcript(answer) or []
        if not said:
            return Fault(
                "no prompt",
                f"{key} is a text; write the prompt as a key of its own, or each of the two as a"
                " list of messages",
            )
    elif isinstance(answer, list) and answer and all(isinstance(text, str) for text in answer):
        return Fault(f"{key} is a list of texts", "there must be one answer; choose one of them")
    elif isinstance(answer, list | dict):
        said = turns_of(answer, key, noted)
    else:
        said = [Turn("assistant", answer)]
    if isinstance(said, Fault):
        return said
    opening = [turn for turn in said[:1] if turn.role == "system"]
    if said[len(opening) :][: len(asked)] == asked:
        asked, said = [*opening, *asked], said[len(opening) + len(asked) :]
    if not said or said[-1].role != "assistant":
        roles = [turn.role for turn in [*asked, *said]]
        return Fault(
            "wrong order of roles", f"{reprlib.repr(roles)}; {key} must end with an answer"
        )
    return _about_input(fields, [*asked, *said], noted)


def _about_input(fields: Fields, turns: list[Turn], noted: Counter[str]) -> Conversation | Fault:
    """Return turns whose first question is about the row's `input`, if it has one."""
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is not None and not says_nothing(fields.get("input", "")):
        turns[first] = turns[first]._replace(input=fields["input"])
    return _assembled(fields, turns, noted)


def _assembled(fields: Fields, turns: list[Turn], noted: Counter[str]) -> Conversation | Fault:
    """Return turns after the row's system message and earlier turns, if it has them."""
    history = turns_of(fields.get("history") or [], "history", noted)
    if isinstance(history, Fault):
        return history
    system = text_of_parts(fields.get("system", ""), "system")
    if isinstance(system, Fault):
        return system
    before = [Turn("system", system)] if system != "" else []
    if before and turns and turns[0].role == "system":
        if turns[0] != before[0]:
            return Fault(
                "two system messages",
                "one stands beside the turns, another begins them; keep one of the two",
            )
        before = []
    opening = [turn for turn in turns[:1] if turn.role == "system"]
    return conversation([*before, *opening, *history, *turns[len(opening) :]], noted)


LAYOUTS: dict[str, Layout] = {
    "alpaca": Layout(("instruction", "output"), _alpaca),
    "messages": Layout(("messages",), _messages),
    "prompt_completion": Layout(("prompt", "completion"), _completion),
    "preferences": Layout(("chosen", "rejected"), _preferences, more=("prompt",)),
}
