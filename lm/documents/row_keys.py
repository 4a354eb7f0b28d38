"""The keys that stand beside a question and its answer: they are used, refused, or counted.

A key that turns a row's meaning round is refused: tools, pictures, and marks such as KTO's
`label: false`. `note_unused` counts the keys that nothing reads.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

from lm.documents.faults import Fault

TOOL_KEYS = {"tools", "functions", "tool_calls", "function_call"}
MEDIA_KEYS = {"image", "images", "video", "videos", "audio", "audios"}
# Keys whose value may say that an answer is one to avoid, or not one to learn.
WANTED_KEYS = {
    "label", "kto_tag", "desirable", "is_desirable", "accepted", "is_accepted", "preferred",
    "is_preferred", "chosen", "is_chosen", "correct", "is_correct", "good", "is_good", "thumbs_up",
    "liked", "desired", "approved", "is_approved", "is_positive", "valid", "is_valid", "weight",
    "train", "training", "train_detail", "learn", "loss", "loss_scale", "loss_mask", "labels",
    "safe", "is_safe",
}  # fmt: skip
UNWANTED_KEYS = {
    "rejected", "is_rejected", "undesirable", "is_undesirable", "bad", "is_bad", "wrong",
    "incorrect", "deleted", "is_deleted", "thumbs_down", "masked", "mask", "ignore", "harmful",
    "is_harmful", "unsafe", "discarded",
}  # fmt: skip
JUDGED_KEYS = {
    "score", "rating", "reward", "vote", "feedback", "quality", "thumbs", "reaction", "status",
}  # fmt: skip
CLASS_KEYS = {"label", "labels"}  # a number or a word under them is a class; only a bool is a mark
PLACE_KEYS = {"begin_offset", "end_offset"}  # of Axolotl's train_detail: numbers, and no marks
YES = {"true", "yes", "1", "1.0"}
BAD = {
    "false", "f", "n", "-1", "-1.0", "bad", "wrong", "incorrect", "negative", "neg", "rejected",
    "discarded", "undesirable", "undesired", "thumbs_down", "down", "dislike", "disliked",
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
        if has_answer and _is_unwanted(str(key).lower(), _words(value)):
            return Fault(
                f"answer that {key} says not to learn",
                f"{place}{key} is {reprlib.repr(value)}, and every answer here is learnt as a good"
                " one; remove such rows, or the key if it means something else",
            )
    return None


def note_unused(keys: Mapping[Any, Any], where: str, noted: Counter[str]) -> None:
    """Count the keys that nothing reads, unless they are empty or say that an answer is good."""
    for key, value in keys.items():
        if not says_nothing(value) and not _is_wanted(str(key).lower(), _words(value)):
            noted[f"key {reprlib.repr(key)}{where}"] += 1


def tools_fault(what: str) -> Fault:
    """Return the fault of a conversation that uses tools; `what` shows that it does."""
    return Fault(
        "tools",
        f"{what}, and no template here has turns of tools; write such turns as text of user and"
        " assistant, or leave them out",
    )


def _is_unwanted(name: str, words: Set[str]) -> bool:
    """Return whether any of a key's words says that an answer is not one to learn."""
    words = {word for word in words if not _is_class(name, word)}
    return bool(
        (name in WANTED_KEYS and words & NO)
        or (name in UNWANTED_KEYS and words & YES)
        or (name in JUDGED_KEYS and words & BAD)
    )


def _is_wanted(name: str, words: Set[str]) -> bool:
    """Return whether all of a key's words say that an answer is one to learn."""
    return name in WANTED_KEYS and words <= YES and not any(_is_class(name, w) for w in words)


def _is_class(name: str, word: str) -> bool:
    """Return whether a key's word names a class, as a number does; databases write bools t, f."""
    return name in CLASS_KEYS and word not in ("true", "false", "t", "f")


def _words(value: object) -> set[str]:
    """Return a value as words in small letters, or those that a list or a dict holds."""
    words: set[str] = set()
    inner = [value]
    while inner:
        value = inner.pop()
        if isinstance(value, dict):
            inner += [part for key, part in value.items() if key not in PLACE_KEYS]
        elif isinstance(value, list):
            inner += value
        else:
            is_word = isinstance(value, str | bool | int | float)
            words.add(str(value).strip().lower().replace(" ", "_") if is_word else "")
    return words
