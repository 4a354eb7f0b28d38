"""Rows of known exports that hold no conversation as they are: what each is, and what to write.

Their answers stand in a tree, in another file, or beside others of which one key names the better.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from lm.documents.faults import Fault

PAIR = "write the better answer as chosen and the other as rejected, with the prompt"
BY_HAND = 'write the turns of one path as {"messages": [...]}'


class Export(NamedTuple):
    """The keys that tell an export, what it is, and what to write.

    `chooses`: no key has the same meaning in all rows, so `columns` cannot name any.
    """

    keys: frozenset[str]
    what: str
    advice: str
    chooses: bool = False


def _export(keys: str, what: str, advice: str, chooses: bool = False) -> Export:
    return Export(frozenset(keys.split()), what, advice, chooses)


EXPORTS = (
    _export("mapping current_node", "an export of ChatGPT, whose mapping is a tree of messages",
            f"from current_node up along parent, {BY_HAND}"),
    _export("message_tree_id prompt", "a tree of Open Assistant",
            f"from prompt down along the replies of rank 0, {BY_HAND}"),
    _export("message_id parent_id role text", "a message of Open Assistant, one of a tree",
            f"from a last answer up along parent_id, {BY_HAND}"),
    _export("segments", "segments of Axolotl (input_output), texts with a template in them",
            'write them without the template as {"messages": [...]}'),
    _export("custom_id body", "a request to OpenAI's batch API, whose answer is in another file",
            "join the two by custom_id: the messages of body, and the message of the answer"),
    _export("custom_id response", "an answer of OpenAI's batch API, whose request is in another"
            " file", "join the two by custom_id: the messages of body, and the message of the"
            " answer"),
    _export("instruction completions", "UltraFeedback, several answers with ratings",
            f"{PAIR}; or name the dataset HuggingFaceH4/ultrafeedback_binarized, which has them"),
    _export("response_0 response_1 better_response_id", "PKU-SafeRLHF, two answers",
            f"{PAIR}; better_response_id says which it is", chooses=True),
    _export("human_ref_A human_ref_B labels", "SHP, two answers to history",
            f"{PAIR} (history); human_ref_A is the better one where labels is 1", chooses=True),
    _export("conversation_a conversation_b winner", "the Chatbot Arena, two conversations",
            "write the winner's as chosen and the other as rejected", chooses=True),
    _export("answer_0 answer_1 score_0 score_1", "WebGPT's comparisons, two answers",
            f"{PAIR}; the higher score is better", chooses=True),
    _export("summaries choice", "comparisons of summaries by OpenAI",
            f"{PAIR} (info.post); choice is the number of the better one", chooses=True),
)  # fmt: skip


def by_columns(row: Mapping[str, object]) -> Fault | None:
    """Return the fault of an object that holds columns by the numbers of their rows."""
    if not row or not all(isinstance(column, dict) and "0" in column for column in row.values()):
        return None
    return Fault(
        "table by columns",
        "this is a table as pandas' to_json writes it; write its rows, with orient='records' and"
        " lines=True",
    )


@lru_cache(maxsize=1000)  # the rows of a file have few sets of keys
def export_of(keys: tuple[str, ...], has_layout: bool) -> Fault | None:
    """Return the fault of a row with the keys of a known export.

    Args:
        keys: the row's keys.
        has_layout: whether keys of a layout were found: then only exports that choose count.
    """
    found = next(
        (e for e in EXPORTS if e.keys <= set(keys) and (e.chooses or not has_layout)), None
    )
    if found is None:
        return None
    return Fault("export that is no conversation", f"this is {found.what}; {found.advice}")
