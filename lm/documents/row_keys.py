"""The keys that stand beside a question and its answer: they are used, refused, or counted.

A key that turns a row's meaning round is refused: tools, pictures, and marks such as KTO's
`label: false`. `note_unused` counts the keys that nothing reads.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lm.documents.faults import Fault

TOOL_KEYS = {"tools", "functions", "tool_calls", "function_call"}
MEDIA_KEYS = {"image", "images", "video", "videos", "audio", "audios"}
# Keys whose value may say that an answer is one to avoid, or not one to learn.
WANTED_KEYS = {
    "label", "kto_tag", "desirable", "is_desirable", "accepted", "is_accepted", "preferred",
    "is_preferred", "chosen", "is_chosen", "correct", "is_correct", "good", "is_good", "thumbs_up",
    "liked", "desired", "approved", "is_approved", "is_positive", "valid", "is_valid", "weight",
    "train", "learn",
}  # fmt: skip
UNWANTED_KEYS = {
    "rejected", "is_rejected", "undesirable", "is_undesirable", "bad", "is_bad", "wrong",
    "incorrect", "deleted", "is_deleted", "thumbs_down",
}  # fmt: skip
JUDGED_KEYS = {"score", "rating", "reward", "vote", "feedback", "quality", "thumbs", "reaction"}
YES = {"true", "yes", "1", "1.0"}
BAD = {
    "false", "-1", "-1.0", "bad", "wrong", "incorrect", "rejected", "undesirable", "undesired",
    "thumbs_down", "down", "dislike", "disliked",
}  # fmt: skip
NO = BAD | {"no", "0", "0.0"}


def is_absent(value: object) -> bool:
    """Return whether a value stands for none: null, or NaN, which pandas writes for it."""
    return value is None or (isinstance(value, float) and value != value)


def says_nothing(value: object) -> bool:
    """Return whether a value is null, NaN, or empty, also as the JSON of an empty list."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None", "nan", "NaN")
    return is_absent(value) or (isinstance(value, list | dict) and not value)


def refused(keys: Mapping[Any, Any], place: str, has_answer: bool = True) -> Fault | None:
    """Return the fault of a row or a message whose further keys change what its turns mean."""
    for key, value in keys.items():
        if says_nothing(value):
            continue
        if key in TOOL_KEYS:
            return tools_fault(f"{place}there is {key}")
        if key in MEDIA_KEYS:
            return Fault(
                f"{key} beside the text",
                f"{place}text that is about {key} cannot be learnt without them; leave such rows"
                " out",
            )
        name, word = str(key).lower(), _word(value)
        if (
            has_answer
            and not _is_class(name, word)
            and (
                (name in WANTED_KEYS and word in NO)
                or (name in UNWANTED_KEYS and word in YES)
                or (name in JUDGED_KEYS and word in BAD)
            )
        ):
            return Fault(
                f"answer that {key} says not to learn",
                f"{place}{key} is {reprlib.repr(value)}, and every answer here is learnt as a good"
                " one; remove such rows, or the key if it means something else",
            )
    return None


def note_unused(keys: Mapping[Any, Any], where: str, noted: Counter[str]) -> None:
    """Count the keys that nothing reads, unless they are empty or say that an answer is good."""
    for key, value in keys.items():
        if not says_nothing(value) and not (
            (name := str(key).lower()) in WANTED_KEYS
            and (word := _word(value)) in YES
            and not _is_class(name, word)
        ):
            noted[f"key {reprlib.repr(key)}{where}"] += 1


def tools_fault(what: str) -> Fault:
    """Return the fault of a conversation that uses tools; `what` shows that it does."""
    return Fault(
        "tools",
        f"{what}, and no template here has turns of tools; write such turns as text of user and"
        " assistant, or leave them out",
    )


def _is_class(name: str, word: str) -> bool:
    """Return whether a key is a `label` that names a class, as a number does; a mark is a bool."""
    return name == "label" and word not in ("true", "false")


def _word(value: object) -> str:
    is_word = isinstance(value, str | bool | int | float)
    return str(value).strip().lower().replace(" ", "_") if is_word else ""
