"""Rows as data sets have them: every key is used, refused, or counted by its name."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lm.documents.conversations import Conversation, Turn
from lm.documents.faults import Fault
from lm.documents.layouts import conversation_of

RED = Turn("user", "Which colour has blood?")
SAID = Turn("assistant", "Red.")
ASKS, SAYS = {"role": "user", "content": RED.content}, {"role": "assistant", "content": "Red."}
PAIR = [ASKS, SAYS]
SYSTEM = Turn("system", "Be brief.")
EARLIER = (Turn("user", "Hi"), Turn("assistant", "Hello."))


def read(
    row: object, layout: str = "auto", **columns: str
) -> tuple[tuple[Turn, ...], dict[str, int]]:
    """Return the turns of a row, and what is counted."""
    noted: Counter[str] = Counter()
    found = conversation_of(row, layout, columns, noted)
    assert isinstance(found, Conversation), found
    return found.turns, dict(noted)


def fault_of(row: object, layout: str = "auto", **columns: str) -> Fault:
    noted: Counter[str] = Counter()
    found = conversation_of(row, layout, columns, noted)
    assert isinstance(found, Fault), found
    assert "\n" not in found.detail and not noted
    return found


# ---------------------------------------------------------------- names and forms


@pytest.mark.parametrize(
    "row",
    [
        {"question": RED.content, "answer": "Red."},
        {"query": RED.content, "response": "Red."},
        {"prompt": RED.content, "response": "Red."},
        {"input": RED.content, "output": "Red."},
        {"inputs": RED.content, "targets": "Red."},
        {"instruction": RED.content, "response": "Red.", "context": ""},
        {"instruction": RED.content, "output": "Red.", "input": float("nan"), "system": ""},
        {"id": None, "messages": PAIR, "tools": [], "images": "[]"},
        PAIR,
        {"conversations": [RED.content, "Red."]},
        {"data": [RED.content, "Red."]},
        {"conversation": [{"input": RED.content, "output": "Red."}]},
        {"messages": [{"human": RED.content, "gpt": "Red."}]},
        {"messages": [{"from": "Human", "value": RED.content}, {"from": "AI", "value": "Red."}]},
        {"messages": [{"role": "User", "text": RED.content}, {"role": "Chatbot", "text": "Red."}]},
        {
            "contents": [
                {"role": "user", "parts": [{"text": RED.content}]},
                {**SAYS, "role": "model"},
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "text", "text": RED.content}]}, SAYS]},
        {"messages": [{"role": "user", "message": RED.content}, SAYS | {"refusal": None}]},
        {
            "messages": [
                {"author": {"role": "user"}, "content": {"parts": [RED.content]}},
                {"author": "assistant", "content": "Red."},
            ]
        },
        {
            "chat_messages": [
                {"sender": "human", "text": RED.content},
                {"sender": "assistant", "text": "Red."},
            ]
        },
        {"messages": {"role": ["user", "assistant"], "content": [RED.content, "Red."]}},
        {"messages": {"from": ["human", "gpt"], "value": [RED.content, "Red."], "id": [None] * 2}},
        {"messages": str(PAIR)},
        {"messages": [{"role": "system", "content": " "}, *PAIR]},
        {"messages": [{"role": "system", "content": None}, *PAIR]},
        {"prompt": [ASKS], "completion": "Red.", "label": True},
        {"prompt": [{**ASKS, "role": "USER"}], "completion": PAIR, "kto_tag": "true"},
    ],
    ids=lambda row: str(list(row))[:60],
)
def test_one_question_in_the_forms_of_many_data_sets(row: object) -> None:
    assert read(row) == ((RED, SAID), {})


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"system": "Be brief.", "conversations": PAIR}, (SYSTEM, RED, SAID)),
        ({"system": "Be brief.", "messages": [{**ASKS, "role": "developer"}, *PAIR]}, None),
        ({"system_instruction": "Be brief.", "contents": PAIR}, (SYSTEM, RED, SAID)),
        ({"instructions": "Be brief.", "messages": PAIR}, (SYSTEM, RED, SAID)),
        ({"system_prompt": "Be brief.", "question": RED.content, "answer": "Red."},
         (SYSTEM, RED, SAID)),
        ({"systemInstruction": {"parts": [{"text": "Be brief."}]}, "contents": PAIR},
         (SYSTEM, RED, SAID)),
        ({"history": [["Hi", "Hello."]], "instruction": RED.content, "output": "Red."},
         (*EARLIER, RED, SAID)),
        ({"history": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Hello."}],
          "system": "Be brief.", "prompt": RED.content, "completion": "Red."},
         (SYSTEM, *EARLIER, RED, SAID)),
        ({"history": [["Hi", "Hello."]], "messages": [{"role": "system", "content": "Be brief."},
                                                      *PAIR]}, (SYSTEM, *EARLIER, RED, SAID)),
        ({"instruction": RED.content, "context": "Iron rusts.", "output": "Red."},
         (RED._replace(input="Iron rusts."), SAID)),
        ({"question": RED.content, "context": "Iron rusts.", "answer": "Red."},
         (RED._replace(input="Iron rusts."), SAID)),
        ({"messages": PAIR, "context": "Iron rusts."}, (RED._replace(input="Iron rusts."), SAID)),
    ],
)  # fmt: skip
def test_keys_beside_the_turns_are_used(
    row: dict[str, Any], turns: tuple[Turn, ...] | None
) -> None:
    if turns is None:
        assert fault_of(row).kind == "two system messages"
    else:
        assert read(row) == (turns, {})


def test_keys_that_nothing_reads_are_counted_by_name() -> None:
    row = {"instruction": RED.content, "output": "Red.", "id": 7, "source": "x", "tags": [], "n": 0}
    assert read(row) == ((RED, SAID), {"key 'id'": 1, "key 'source'": 1, "key 'n'": 1})
    row = {"messages": [{**ASKS, "name": "Ann"}, {**SAYS, "reasoning_content": "...", "weight": 1}]}
    counts = {"key 'name' of a message": 1, "key 'reasoning_content' of a message": 1}
    assert read(row) == ((RED, SAID), counts)


@pytest.mark.parametrize(
    "mark",
    [
        {"label": False}, {"label": "False"}, {"kto_tag": False}, {"rating": "bad"},
        {"score": -1}, {"feedback": "thumbs down"}, {"is_correct": "no"}, {"rejected": True},
        {"accepted": False}, {"deleted": 1}, {"Label": False}, {"liked": False}, {"label": "f"},
        {"training": False}, {"train_detail": [{"begin_offset": 0, "train": False}]},
        {"loss": False}, {"loss_scale": 0}, {"loss_mask": [0, 0]}, {"masked": True}, {"mask": 1},
        {"ignore": True}, {"labels": False}, {"labels": [True, False]}, {"kto_tag": "N"},
        {"status": "rejected"}, {"is_safe": False}, {"safe": "negative"}, {"is_harmful": True},
        {"harmful": 1}, {"unsafe": {"said": "yes"}}, {"discarded": True}, {"status": "Discarded"},
    ],
)  # fmt: skip
def test_answers_to_avoid_are_never_learnt_as_good_ones(mark: dict[str, Any]) -> None:
    key = next(iter(mark))
    for row in (
        {"prompt": "x", "completion": "y"},
        {"instruction": "x", "output": "y"},
        {"messages": PAIR},
    ):
        found = fault_of(row | mark)
        assert found.kind == f"answer that {key} says not to learn"
        assert "remove such rows" in found.detail
    assert fault_of({"messages": [ASKS, SAYS | mark]}).kind == found.kind
    question = [ASKS | mark, SAYS]
    assert read({"messages": question})[0] == (RED, SAID), "it is of the question"


def test_marks_that_say_something_else_are_counted() -> None:
    marks = {"score": 0, "rating": 1, "label": 3, "rejected": False}
    classes: list[tuple[str, object]] = [
        ("label", value) for value in (0, 1, -1, "0", "1.0", "bad")
    ]
    classes += [("labels", 0), ("labels", [0, 2]), ("loss", 0.5), ("status", "done")]
    for key, value in [*marks.items(), *classes]:
        assert read({"prompt": RED.content, "completion": "Red.", key: value}) == (
            (RED, SAID),
            {f"key {key!r}": 1},
        )


def test_marks_of_answers_to_learn_are_not_counted() -> None:
    detail = [{"begin_offset": 0, "end_offset": 3, "train": True}]
    marks = {"training": True, "loss_mask": [1, 1], "train_detail": detail, "loss_scale": 1.0}
    assert read({"messages": [ASKS | {"training": False}, SAYS | marks]}) == (
        (RED, SAID),
        {"key 'training' of a message": 1},
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": PAIR, "tools": [{"type": "function"}]},
        {"messages": PAIR, "functions": '[{"name": "f"}]'},
        {"messages": [ASKS, {**SAYS, "tool_calls": [{"id": "a"}]}]},
        {"messages": [ASKS, {"role": "gpt", "content": None, "function_call": {"name": "f"}}]},
        {"messages": [ASKS, {"role": "function", "content": "4"}, SAYS]},
        {"conversations": [ASKS, {"from": "observation", "value": "4"}, SAYS]},
        {"messages": [ASKS, {"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]},
        {"input": {"messages": [ASKS], "tools": [{"type": "function"}]},
         "preferred_output": [SAYS], "non_preferred_output": [SAYS]},
    ],
)  # fmt: skip
def test_tools_are_refused_by_name(row: dict[str, Any]) -> None:
    layout = "preferences" if "input" in row else "auto"
    found = fault_of(row, layout)
    assert found.kind == "tools"
    assert "leave them out" in found.detail


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": PAIR, "images": ["a.png"]}, "images beside the text"),
        ({"messages": [{**ASKS, "content": [{"type": "image_url"}]}, SAYS]},
         "content that is not text"),
        ({"role": "prompter", "content": "x", "id": 3}, "one message instead"),
        ({"prompt": "x", "rejected": "y"}, "rejected without chosen"),
        ({"prompt": "x", "completion": "z", "rejected": "y"}, "rejected without chosen"),
        ({"prompt": "x", "chosen": "z", "rejected": "y"}, "unknown layout"),
    ],
)  # fmt: skip
def test_rows_of_another_kind(row: dict[str, Any], kind: str) -> None:
    assert fault_of(row).kind.startswith(kind)


@pytest.mark.parametrize("kind", ["reasoning", "thinking", "refusal", "image_url", "input_file", 3])
def test_parts_that_are_not_what_is_said_are_refused_by_their_type(kind: object) -> None:
    parts = [{"type": kind, "text": "Hm."}, {"type": "output_text", "text": "Red."}]
    found = fault_of({"messages": [ASKS, {**SAYS, "content": parts}]})
    assert found.kind == "content that is not text"
    assert f"messages[1] has a part of type {kind!r}" in found.detail
    parts = [{"type": "input_text", "text": RED.content}, {"type": None, "text": "Say."}]
    asked = RED._replace(content=f"{RED.content}\nSay.")
    assert read({"messages": [{**ASKS, "content": parts}, SAYS]}) == ((asked, SAID), {})


@pytest.mark.parametrize(
    ("message", "kind", "told"),
    [
        ({"content": None, "refusal": "No."}, "refusal without content", "messages[1] has a refus"),
        ({"content": None, "refusal": None}, "no content", "['role', 'content', 'refusal']"),
        ({"utterance": "Red."}, "no content", "the message has the keys ['role', 'utterance']"),
    ],
)
def test_a_message_without_content(message: dict[str, Any], kind: str, told: str) -> None:
    found = fault_of({"messages": [ASKS, {"role": "assistant", **message}]})
    assert (found.kind, told in found.detail) == (kind, True), found


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"instruction": "Answer.", "prompt": RED.content, "response": "Red."}, "prompt"),
        ({"prompt": "Answer.", "question": RED.content, "response": "Red."}, "question"),
        ({"question": RED.content, "choices": {"text": ["Red.", "Blue."]}, "answer": "Red."},
         "choices"),
        ({"messages": PAIR, "query": "Why?"}, "query"),
    ],
)  # fmt: skip
def test_a_second_question_is_not_lost(row: dict[str, Any], key: str) -> None:
    found = fault_of(row)
    assert found.kind == f"{key} that nothing reads" and "columns: {" in found.detail
    assert isinstance(conversation_of(row | {key: [""]}, "auto"), Conversation)


def test_a_second_question_that_repeats_the_first_is_only_counted() -> None:
    row: dict[str, Any] = {"messages": PAIR, "prompt": RED.content, "options": ["Red", "blood"]}
    assert read(row) == ((RED, SAID), {"key 'prompt'": 1, "key 'options'": 1})
    row = {"instruction": "Answer.", "prompt": RED.content, "response": "Red."}
    assert read(row, prompt="prompt", completion="response")[0] == (RED, SAID)


def test_lists_of_roles_and_contents_that_are_not_equally_long() -> None:
    fault = fault_of({"messages": {"role": ["user", "assistant"], "content": [RED.content]}})
    assert fault.kind == "wrong role"


# ---------------------------------------------------------------- order of turns


FIRST, LAST = "answer before the first question", "question without an answer"
BREAK = "break between two messages of one side"


@pytest.mark.parametrize(
    ("roles", "turns", "counts"),
    [
        ("aua", (Turn("user", "1"), Turn("assistant", "2")), {FIRST: 1}),
        ("uau", (Turn("user", "0"), Turn("assistant", "1")), {LAST: 1}),
        ("uuaa", (Turn("user", "0\n\n1"), Turn("assistant", "2\n\n3")),
         {BREAK: 2}),
        ("sauuau", (Turn("system", "0"), Turn("user", "2\n\n3"), Turn("assistant", "4")),
         {FIRST: 1, BREAK: 1, LAST: 1}),
    ],
)  # fmt: skip
def test_turns_are_put_in_order_and_what_that_costs_is_counted(
    roles: str, turns: tuple[Turn, ...], counts: dict[str, int]
) -> None:
    names = {"a": "gpt", "u": "human", "s": "system"}
    row = {
        "conversations": [{"from": names[role], "value": str(i)} for i, role in enumerate(roles)]
    }
    assert read(row) == (turns, counts)


@pytest.mark.parametrize("roles", ["a", "u", "s", "ua?", "usa", "au"])
def test_turns_that_no_order_can_help(roles: str) -> None:
    names = {"a": "gpt", "u": "human", "s": "system", "?": "nobody"}
    fault = fault_of({"conversations": [{"from": names[role], "value": "x"} for role in roles]})
    assert fault.kind == ("wrong role" if "?" in roles else "wrong order of roles")


# ---------------------------------------------------------------- columns


def test_columns_name_the_keys_of_a_row() -> None:
    row = {"sms": RED.content, "label": "Red.", "id": 3}
    counts = {"key 'id'": 1}
    assert read(row, prompt="sms", completion="label") == ((RED, SAID), counts)
    row = {
        "Q": RED.content,
        "passage": "Iron rusts.",
        "A": "Red.",
        "instruction": "x",
        "output": "y",
    }
    turns = (RED._replace(input="Iron rusts."), SAID)
    counts = {"key 'instruction'": 1, "key 'output'": 1}
    assert read(row, prompt="Q", input="passage", completion="A") == (turns, counts)
    assert read(
        {"dialog_json": PAIR, "persona": "Be brief."}, messages="dialog_json", system="persona"
    ) == (
        (SYSTEM, RED, SAID),
        {},
    )
    assert read({"task": RED.content, "output": "Red."}, instruction="task") == ((RED, SAID), {})


def test_a_column_is_used_once() -> None:
    row = {"instruction": "x", "output": RED.content, "answer": "Red."}
    assert read(row, instruction="output") == ((RED, SAID), {"key 'instruction'": 1})
    assert read({"prompt": "Red.", "question": RED.content}, completion="prompt") == (
        (RED, SAID),
        {},
    )


def test_parts_and_joined_messages_keep_their_borders() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"text": "a cat"}]}
    row = {"messages": [parts, ASKS, SAYS], "context": "Iron rusts."}
    joined = Turn("user", f"Look:\na cat\n\n{RED.content}", "Iron rusts.")
    assert read(row) == ((joined, SAID), {BREAK: 1})


def test_columns_that_do_not_fit() -> None:
    row = {"question": RED.content, "answer": "Red."}
    missing = fault_of(row, prompt="questions", completion="answer")
    assert missing.kind == "no key 'questions'"
    assert "columns: {prompt: question, completion: answer}" in missing.detail
    assert read(row, system="persona") == (
        (RED, SAID),
        {"no key 'persona', which columns.system names": 1},
    )
    assert fault_of({"messages": PAIR}, chosen="x").kind == "columns of another layout"


@pytest.mark.parametrize(
    ("row", "suggested"),
    [
        ({"Question": "x", "Answer": "y"}, "{prompt: Question, completion: Answer}"),
        ({"text": "x", "label": "spam"}, "{prompt: text, completion: label}"),
        ({"author": "Ann", "text": "x", "label": "a"}, "{prompt: text, completion: label}"),
        ({"id": 1, "article": "x", "summary": "y"}, "{prompt: article, completion: summary}"),
    ],
)
def test_columns_are_suggested(row: dict[str, Any], suggested: str) -> None:
    assert f"write columns: {suggested}" in fault_of(row).detail


@pytest.mark.parametrize(
    ("items", "are_messages"),
    [(PAIR, True), ([{"question": "x", "answer": "y"}], False), ([{"role": "user"}], False)],
)
def test_a_list_is_suggested_as_messages_if_its_items_are_some(
    items: list[dict[str, str]], are_messages: bool
) -> None:
    detail = fault_of({"version": 1, "rows": items}).detail
    assert ("{messages: rows}" in detail) == are_messages
    assert ("jq .rows" in detail) != are_messages


def test_preferences_by_other_names_lead_to_their_layout() -> None:
    row = {"input": {"messages": [ASKS]}, "preferred_output": [SAYS], "non_preferred_output": PAIR}
    assert "layout: preferences" in fault_of(row).detail


def test_a_text_alone_is_no_conversation() -> None:
    assert "format: jsonl" in fault_of({"text": "x"}).detail


# ---------------------------------------------------------------- preferences


OTHER = {**SAYS, "content": "Blue."}


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": PAIR, "rejected": [ASKS, OTHER]},
        {"prompt": RED.content, "chosen": PAIR, "rejected": [ASKS, OTHER]},
        {"prompt": RED.content, "chosen": str(PAIR), "rejected": str([ASKS, OTHER])},
        {"prompt": [ASKS], "chosen": "Red.", "rejected": "Blue."},
        {"instruction": RED.content, "input": "", "chosen": "Red.", "rejected": "Blue."},
        {"question": RED.content, "chosen": "Red.", "rejected": "Blue."},
        {"conversations": [ASKS], "chosen": SAYS, "rejected": OTHER},
        {"input": {"messages": [ASKS], "tools": []}, "preferred_output": [SAYS],
         "non_preferred_output": [OTHER]},
        {"chosen": f"\n\nHuman: {RED.content}\n\nAssistant: Red.",
         "rejected": f"\n\nHuman: {RED.content}\n\nAssistant: Blue."},
    ],
)  # fmt: skip
def test_preferences_in_the_forms_of_many_data_sets(row: dict[str, Any]) -> None:
    assert conversation_of(row, "preferences") == Conversation((RED, SAID), rejected="Blue.")


def test_preferences_with_a_system_and_an_input() -> None:
    row = {
        "system": "Be brief.",
        "prompt": RED.content,
        "input": "Iron.",
        "chosen": "a",
        "rejected": "b",
    }
    turns = (SYSTEM, RED._replace(input="Iron."), Turn("assistant", "a"))
    assert conversation_of(row, "preferences") == Conversation(turns, rejected="b")
    begun = [{"role": "system", "content": "Be brief."}, *PAIR]
    row = {"prompt": RED.content, "chosen": begun, "rejected": [*begun[:2], OTHER]}
    assert conversation_of(row, "preferences") == Conversation((SYSTEM, RED, SAID), "Blue.")


def test_preferences_that_cannot_be_compared() -> None:
    assert fault_of({"chosen": "Red.", "rejected": "Blue."}, "preferences").kind == "no prompt"
    row = {"chosen": [*PAIR, ASKS], "rejected": [ASKS, OTHER, ASKS]}
    assert fault_of(row, "preferences").kind == "wrong order of roles"
