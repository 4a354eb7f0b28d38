"""Rows of prompts and answers become conversations, or faults."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm.documents.conversations import SMS_INSTRUCTION, Conversation, Turn, from_sms, turns_of
from lm.documents.faults import Fault
from lm.documents.layouts import LAYOUTS, conversation_of

USER, ANSWER = Turn("user", "2 + 2?"), Turn("assistant", "4")
ASKED, ANSWERED = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}


def fault_of(row: object, layout: str = "auto") -> Fault:
    found = conversation_of(row, layout)
    assert isinstance(found, Fault), found
    assert "\n" not in found.detail
    return found


# ---------------------------------------------------------------- messages in a table's cell

PRINTED = st.lists(
    st.fixed_dictionaries(
        {"role": st.just("user"), "content": st.text(min_size=1)},
        optional={"weight": st.just(float("nan"))},
    ),
    min_size=1,
    max_size=5,
)
HARD = ["'} {'", "} {\n 'it\\'s' \"a\" array( nan )", "[\\", "it's", '"']


@settings(deadline=None, max_examples=200)
@example([{"role": "user", "content": text} for text in HARD])
@given(PRINTED)
def test_messages_as_numpy_and_pandas_print_them(messages: list[dict[str, Any]]) -> None:
    """An array has no commas; the cell of a CSV by pandas is its print."""
    array = np.array(messages, dtype=object)
    expected = turns_of(messages, "messages", Counter())
    nested = [{**message, "tags": np.array(["a", "b"], dtype=object)} for message in messages]
    for cell in (str(array), repr(array), str(messages), str(np.array(nested, dtype=object))):
        assert turns_of(cell, "messages", Counter()) == expected


def test_texts_of_a_printed_array_stay_apart() -> None:
    """Python joins texts that only a space parts."""
    for texts in (["2 + 2?", "4"], ["2 + 2?", "it's 4"]):
        found = turns_of(str(np.array(texts)), "messages", Counter())
        assert found == [USER, Turn("assistant", texts[1])]
    with_tuple = "[{'role': 'user', 'content': '2 + 2?', 'place': (1, 2)}]"
    assert turns_of(with_tuple, "messages", Counter()) == [USER]


def test_a_print_that_leaves_messages_out_is_not_learnt_as_text() -> None:
    cut = "[{'role': 'user', 'content': '2 + 2?'} ...\n {'role': 'assistant', 'content': '4'}]"
    for row in ({"prompt": "2 + 2?", "completion": cut}, {"prompt": cut, "completion": "4"}):
        assert fault_of(row).kind == "messages that cannot be read"
    assert fault_of({"messages": cut}).detail.endswith("; write the list as JSON")
    about = "[{'role': 'user'}] is the form of a message"
    found = conversation_of({"prompt": "2 + 2?", "completion": about}, "auto")
    assert isinstance(found, Conversation) and found.answer == about


# ---------------------------------------------------------------- the layouts


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"instruction": "2 + 2?", "output": "4"}, (USER, ANSWER)),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, (USER, ANSWER)),
        ({"instruction": "2 + 2?", "input": None, "output": "4"}, (USER, ANSWER)),
        (
            {"instruction": "Add", "input": "2 2", "output": "4"},
            (Turn("user", "Add", "2 2"), ANSWER),
        ),
        (
            {"instruction": "2 + 2?", "output": "4", "system": "Be brief."},
            (Turn("system", "Be brief."), USER, ANSWER),
        ),
        ({"instruction": "2 + 2?", "output": " 4\n", "id": 7}, (USER, Turn("assistant", " 4\n"))),
        ({"messages": [ASKED, ANSWERED]}, (USER, ANSWER)),
        (
            {"messages": [{"role": "system", "content": "x"}, ASKED, ANSWERED, ASKED, ANSWERED]},
            (Turn("system", "x"), *(USER, ANSWER) * 2),
        ),
        (
            {"messages": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
            (USER, ANSWER),
        ),
        # ShareGPT
        (
            {
                "conversations": [
                    {"from": "human", "value": "2 + 2?"},
                    {"from": "gpt", "value": "4"},
                ]
            },
            (USER, ANSWER),
        ),
        ({"conversations": [ASKED], "messages": [ASKED, ANSWERED]}, (USER, ANSWER)),
        ({"prompt": "2 + 2?", "completion": "4"}, (USER, ANSWER)),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, (USER, ANSWER)),
        ({"prompt": "2 + 2?", "completion": [ANSWERED]}, (USER, ANSWER)),
        # the answer repeats the prompt
        ({"prompt": [ASKED], "completion": [ASKED, ANSWERED]}, (USER, ANSWER)),
        (
            {"prompt": [ASKED, ANSWERED, ASKED], "completion": [ANSWERED]},
            (USER, ANSWER, USER, ANSWER),
        ),
    ],
)
def test_rows_that_say_by_their_keys_what_they_are(
    row: dict[str, Any], turns: tuple[Turn, ...]
) -> None:
    assert conversation_of(row, "auto") == Conversation(turns)


def test_a_layout_that_is_named_is_taken_though_another_would_fit() -> None:
    row = {"instruction": "a", "output": "b", "prompt": "c", "completion": "d"}
    by_layout = {
        layout: conversation_of(row, layout) for layout in ("auto", "alpaca", "prompt_completion")
    }
    assert {
        layout: found.answer
        for layout, found in by_layout.items()
        if isinstance(found, Conversation)
    } == {
        "alpaca": "b",
        "prompt_completion": "d",
    }


@pytest.mark.parametrize("texts", [True, False])
def test_preferences_are_two_answers_to_one_prompt(texts: bool) -> None:
    """Preferences need their layout named: such a row could also be two supervised answers."""
    other = {"role": "assistant", "content": "5"}
    row = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    if not texts:
        row |= {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, other]}  # type: ignore[dict-item]
    found = conversation_of(row, "preferences")
    assert found == Conversation((USER, ANSWER), rejected="5")
    assert isinstance(found, Conversation) and (found.prompt, found.answer) == ((USER,), "4")
    assert fault_of(row).kind == "unknown layout"


def test_lines_of_the_sms_spam_collection() -> None:
    assert from_sms("ham\tsee you\tat 5") == Conversation(
        (Turn("user", SMS_INSTRUCTION, "see you\tat 5"), Turn("assistant", "ham"))
    )
    assert from_sms("spam\tWIN") == Conversation(
        (Turn("user", SMS_INSTRUCTION, "WIN"), Turn("assistant", "spam"))
    )
    for line in ("", "ham", "ham see you", "eggs\tsee you", "\tsee you", "Ham\tsee you"):
        found = from_sms(line)
        assert isinstance(found, Fault) and found.kind == "not a labelled message"


# ---------------------------------------------------------------- what is wrong with a row


@pytest.mark.parametrize(
    ("row", "layout", "kind", "told"),
    [
        ("text", "auto", "not a JSON object", "'text'"),
        (["a"], "messages", "wrong order of roles", "['user']"),
        (["a"], "alpaca", "not a JSON object", "['a']"),
        (None, "auto", "not a JSON object", "None"),
        ({}, "auto", "unknown layout", "columns: {prompt: KEY, completion: KEY}"),
        (
            {"text": "x", "id": 1},
            "auto",
            "unknown layout",
            "instruction and output (alpaca); messages (messages)",
        ),
        ({"instruction": "x"}, "alpaca", "no key 'output'", "['instruction']"),
        (
            {"instruction": "x", "output": None},
            "alpaca",
            "no key 'output'",
            "layout alpaca has instruction and output",
        ),
        ({"messages": None}, "messages", "no key 'messages'", "['messages']"),
        (
            {"prompt": "x", "chosen": "y"},
            "preferences",
            "no key 'rejected'",
            "['prompt', 'chosen']",
        ),
        ({"instruction": "", "output": "y"}, "auto", "empty prompt", "what the user says is empty"),
        ({"instruction": " \n", "output": "y"}, "auto", "empty prompt", "user"),
        (
            {"instruction": "x", "output": ""},
            "auto",
            "empty answer",
            "what the assistant says is empty",
        ),
        ({"instruction": "x", "output": "\t"}, "auto", "empty answer", "assistant"),
        ({"instruction": 1, "output": "y"}, "auto", "text is not a string", "user: it is 1"),
        ({"instruction": "x", "output": 0}, "auto", "text is not a string", "assistant: it is 0"),
        (
            {"instruction": "x", "output": "y", "input": 0},
            "auto",
            "text is not a string",
            "user: it is 0",
        ),
        (
            {"instruction": "x", "output": "y", "input": []},
            "auto",
            "text is not a string",
            "user: it is []",
        ),
        (
            {"instruction": "x", "output": "y", "system": False},
            "auto",
            "text is not a string",
            "system: it is False",
        ),
        (
            {"instruction": "x", "output": "\ud800"},
            "auto",
            "half a surrogate pair",
            "assistant: '\\ud800'",
        ),
        (
            {"instruction": "x", "input": "\udfff", "output": "y"},
            "auto",
            "half a surrogate pair",
            "user: '\\udfff'",
        ),
        ({"messages": "x"}, "auto", "messages is not a list", "'x'"),
        ({"messages": {"role": "user"}}, "auto", "no content", "the keys ['role']"),
        ({"messages": [ASKED, "x"]}, "auto", "wrong role", "messages[1] is 'x'"),
        (
            {"messages": [ASKED, {"content": "4"}]},
            "auto",
            "wrong role",
            "messages[1] is {'content': '4'}",
        ),
        (
            {"messages": [ASKED, {"role": "tool", "content": "4"}]},
            "auto",
            "tools",
            "messages[1] is a message of a tool",
        ),
        (
            {"messages": [{"role": ["user"], "content": "x"}, ANSWERED]},
            "auto",
            "wrong role",
            "messages[0]",
        ),
        (
            {"messages": [ASKED, {"role": "assistant"}]},
            "auto",
            "no content",
            "messages[1] has no content; the message has the keys ['role']",
        ),
        (
            {"messages": [ASKED, {"role": "assistant", "content": [{"type": "text"}]}]},
            "auto",
            "content that is not text",
            "messages[1] has the part",
        ),
        (
            {"messages": [{"role": "user", "content": " "}, ANSWERED]},
            "auto",
            "empty prompt",
            "user",
        ),
        ({"messages": []}, "auto", "wrong order of roles", "[]"),
        (
            {"messages": [{"role": "system", "content": "x"}]},
            "auto",
            "wrong order of roles",
            "['system']",
        ),
        ({"messages": [ASKED]}, "auto", "wrong order of roles", "the assistant last"),
        ({"messages": [ANSWERED, ASKED]}, "auto", "wrong order of roles", "['assistant', 'user']"),
        (
            {"messages": [ASKED, {"role": "system", "content": "x"}, ANSWERED]},
            "auto",
            "wrong order of roles",
            "after a system, if any",
        ),
        ({"prompt": "", "completion": "y"}, "auto", "empty prompt", "user"),
        ({"prompt": "x", "completion": " "}, "auto", "empty answer", "assistant"),
        ({"prompt": 3, "completion": "y"}, "auto", "text is not a string", "user: it is 3"),
        ({"prompt": 3, "completion": [ANSWERED]}, "auto", "text is not a string", "user: it is 3"),
        ({"prompt": "x", "completion": ["4", "5"]}, "auto", "completion is a list", "one answer"),
        (
            {"prompt": [ASKED], "completion": []},
            "auto",
            "wrong order of roles",
            "completion must end with an answer",
        ),
        (
            {"prompt": [ASKED], "completion": [ASKED]},
            "auto",
            "wrong order of roles",
            "completion must end with an answer",
        ),
        (
            {"prompt": "x", "chosen": "y", "rejected": "y"},
            "preferences",
            "equal answers",
            "nothing to prefer",
        ),
        (
            {"prompt": "x", "chosen": "", "rejected": "y"},
            "preferences",
            "empty answer",
            "assistant",
        ),
        (
            {"prompt": "x", "chosen": "y", "rejected": ""},
            "preferences",
            "empty answer",
            "assistant",
        ),
        (
            {"prompt": "x", "chosen": "y", "rejected": "\udc00"},
            "preferences",
            "half a surrogate pair",
            "assistant",
        ),
        # If the conversations differ before their last answers, the rejected answer would follow
        # another prompt.
        (
            {
                "prompt": [ASKED],
                "chosen": [ANSWERED, ASKED, ANSWERED],
                "rejected": [{**ANSWERED, "content": "5"}, ASKED, ANSWERED],
            },
            "preferences",
            "different prompts",
            "up to their last message",
        ),
    ],
)
def test_faults(row: object, layout: str, kind: str, told: str) -> None:
    found = fault_of(row, layout)
    assert (found.kind.startswith(kind), told in found.detail) == (True, True), found


JSON = st.recursive(
    st.sampled_from([None, False, 0, 1.5, "", " ", "x", "user", "assistant", "system", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner, max_size=3)
    ),
    max_leaves=12,
)
KEYS = sorted({key for keys, *_ in LAYOUTS.values() for key in keys} | {"input", "system"})


@pytest.mark.usefixtures("takes_seconds")
@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.sampled_from(["auto", *LAYOUTS]))
def test_any_row_is_a_conversation_or_a_fault(row: dict[str, Any], layout: str) -> None:
    found = conversation_of(row, layout)
    if isinstance(found, Conversation):
        assert [turn.role for turn in found.turns][-2:] == ["user", "assistant"]
        assert all(turn.content.strip() for turn in found.turns)


# ---------------------------------------------------------------- as a document


TEXTS = st.text(min_size=1)
TURNS = st.lists(
    st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), TEXTS, st.just("") | TEXTS),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(TURNS, st.none() | TEXTS)
def test_a_conversation_comes_back_from_its_line(turns: list[Turn], rejected: str | None) -> None:
    conversation = Conversation(tuple(turns), rejected)
    line = conversation.to_json()
    again = Conversation.from_json(line)
    assert again == conversation
    assert all(isinstance(turn, Turn) for turn in again.turns)
    assert again.to_json() == line
    assert "\n" not in line and "\r" not in line


def test_whatever_a_row_looks_like_the_same_conversation_is_the_same_line() -> None:
    """A row that occurs twice is therefore never both trained on and held out."""
    rows: list[dict[str, Any]] = [
        {"instruction": "2 + 2?", "output": "4"},
        {"output": "4", "input": "", "instruction": "2 + 2?", "id": 3},
        {"messages": [ASKED, ANSWERED]},
        {"prompt": [ASKED], "completion": [ANSWERED]},
    ]
    lines = {
        found.to_json()
        for row in rows
        if isinstance(found := conversation_of(row, "auto"), Conversation)
    }
    assert lines == {json.dumps([[["user", "2 + 2?", ""], ["assistant", "4", ""]], None])}
