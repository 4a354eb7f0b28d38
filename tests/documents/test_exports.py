"""Exports whose rows are no conversations yet are refused by name, and other rows are not."""

from __future__ import annotations

from typing import Any

import pytest

from lm.documents.conversations import Conversation
from lm.documents.exports import EXPORTS
from lm.documents.faults import Fault
from lm.documents.layouts import conversation_of

ASKED, ANSWERED = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
PAIR = [ASKED, ANSWERED]
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "an export of ChatGPT": (
        {"title": "Sums", "create_time": 1.0, "mapping": {"a": {}}, "current_node": "a"},
        "from current_node up along parent",
    ),
    "a tree of Open Assistant": (
        {
            "message_tree_id": "a",
            "tree_state": "ready_for_export",
            "prompt": {"text": "2 + 2?", "role": "prompter", "replies": []},
        },
        "along the replies of rank 0",
    ),
    "a message of Open Assistant": (
        {
            "message_id": "a",
            "parent_id": None,
            "text": "2 + 2?",
            "role": "prompter",
            "lang": "en",
            "message_tree_id": "a",
        },
        "up along parent_id",
    ),
    "segments of Axolotl": (
        {"segments": [{"label": False, "text": "<s>2 + 2?"}, {"label": True, "text": "4</s>"}]},
        "without the template",
    ),
    "a request to OpenAI's batch API": (
        {"custom_id": "1", "method": "POST", "url": "/v1", "body": {"messages": [ASKED]}},
        "join the two by custom_id",
    ),
    "an answer of OpenAI's batch API": (
        {"id": "a", "custom_id": "1", "response": {"body": {"choices": []}}, "error": None},
        "join the two by custom_id",
    ),
    "UltraFeedback": (
        {
            "source": "a",
            "instruction": "2 + 2?",
            "completions": [{"model": "a", "response": "4", "overall_score": 9.0}],
        },
        "ultrafeedback_binarized",
    ),
    "PKU-SafeRLHF": (
        {"prompt": "2 + 2?", "response_0": "5", "response_1": "4", "better_response_id": 1},
        "better_response_id says which",
    ),
    "SHP": (
        {"history": "2 + 2?", "human_ref_A": "5", "human_ref_B": "4", "labels": 0, "domain": "a"},
        "human_ref_A is the better one where labels is 1",
    ),
    "the Chatbot Arena": (
        {"winner": "model_b", "conversation_a": PAIR, "conversation_b": PAIR, "turn": 1},
        "the winner's as chosen",
    ),
    "WebGPT": (
        {
            "question": {"full_text": "2 + 2?"},
            "answer_0": "5",
            "answer_1": "4",
            "score_0": -1.0,
            "score_1": 1.0,
        },
        "the higher score is better",
    ),
    "comparisons of summaries": (
        {"info": {"post": "Long."}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0},
        "choice is the number of the better one",
    ),
}


def fault_of(row: object, layout: str = "auto", **columns: str) -> Fault:
    found = conversation_of(row, layout, columns)
    assert isinstance(found, Fault), found
    assert "\n" not in found.detail
    return found


@pytest.mark.parametrize("name", ROWS)
def test_an_export_is_refused_by_its_name(name: str) -> None:
    row, advice = ROWS[name]
    for layout in ("auto", "messages", "preferences"):
        fault = fault_of(row, layout)
        assert fault.kind == "export that is no conversation"
        assert fault.detail.startswith(f"this is {name}") and advice in fault.detail


def test_each_export_has_a_row_here() -> None:
    assert len(ROWS) == len(EXPORTS)


def test_columns_cannot_choose_the_better_answer() -> None:
    """They would take the same one in each row, also where it is the worse."""
    row, _ = ROWS["PKU-SafeRLHF"]
    for columns in ({"completion": "response_0"}, {"chosen": "response_0", "rejected": "prompt"}):
        assert "PKU-SafeRLHF" in fault_of(row, "auto", **columns).detail
    arena, _ = ROWS["the Chatbot Arena"]
    assert "Chatbot Arena" in fault_of(arena, "auto", messages="conversation_a").detail


@pytest.mark.parametrize("name", ["segments of Axolotl", "a message of Open Assistant"])
def test_keys_beside_a_conversation_make_it_no_export(name: str) -> None:
    row = ROWS[name][0] | {"messages": PAIR}
    assert isinstance(conversation_of(row, "auto"), Conversation)


@pytest.mark.parametrize(
    "row",
    [
        {"conversation_id": "1", "model": "a", "conversation": PAIR, "turn": 1, "redacted": False},
        {"id": "1", "conversations": [{"from": "human", "value": "2 + 2?"},
                                      {"from": "gpt", "value": "4"}]},
        {"prompt": "2 + 2?", "messages": PAIR, "chosen": PAIR, "rejected": PAIR, "score_chosen": 8},
    ],
    ids=["LMSYS-chat-1m", "ShareGPT", "ultrafeedback_binarized"],
)  # fmt: skip
def test_exports_that_are_conversations(row: dict[str, Any]) -> None:
    found = conversation_of(row, "auto")
    assert isinstance(found, Conversation) and found.answer == "4"


def test_dialogues_of_hh_rlhf_are_preferences() -> None:
    chosen, rejected = (f"\n\nHuman: 2 + 2?\n\nAssistant: {answer}" for answer in "45")
    assert "write layout: preferences" in fault_of({"chosen": chosen, "rejected": rejected}).detail
    found = conversation_of({"chosen": chosen, "rejected": rejected}, "preferences")
    assert isinstance(found, Conversation) and (found.answer, found.rejected) == ("4", "5")


def test_a_table_by_columns_is_refused_by_name() -> None:
    """The default of pandas' to_json is one object with the number of each row as a key."""
    table = {"prompt": {"0": "2 + 2?", "1": "3 + 3?"}, "completion": {"0": "4", "1": "6"}}
    assert fault_of(table).kind == "table by columns"
    assert "orient='records'" in fault_of(table).detail


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"items": [{"from": "human", "value": "2 + 2?"}]}, "columns: {messages: items}"),
        ({"prompt": "2 + 2?", "answers": [{"answer": "4", "rank": 1}]}, "or two as chosen and"),
        ({"input_text": "2 + 2?", "output_text": "4"}, "prompt: input_text, completion: output_"),
        ({"question": "2 + 2?", "best_answer": "4"}, "prompt: question, completion: best_answer"),
    ],
)
def test_other_rows_get_the_mapping_that_fits(row: dict[str, Any], told: str) -> None:
    fault = fault_of(row)
    assert fault.kind == "unknown layout" and told in fault.detail
    assert "list of rows" not in fault.detail
