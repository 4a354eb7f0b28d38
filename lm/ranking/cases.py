"""Files of cases: reading and validation, with a message for every problem at its own line.

The schema (lm/config/schema/cases.py) checks keys and types. This module also checks that each case
can be answered.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import ErrorDetails, ValidationError

from lm.config.complaints import in_words, nearest
from lm.config.keys import keys
from lm.config.scalars import KeyPath, dotted, shown
from lm.config.schema.cases import Case, CaseFile
from lm.config.suggestions import advice
from lm.config.yaml_reader import read_file
from lm.ranking.expressions import REGEX_SECONDS, at_most
from lm.system.errors import ConfigError, printable

Problem = tuple[KeyPath, str]
LEAST_SECONDS = 0.001  # for a pattern after slow ones have used up the time of all


@dataclass(frozen=True)
class CaseSet:
    """A valid file of cases.

    Attributes:
        name: the file's name without folder and ending, which identifies its results.
        path: the file.
        about: what the cases measure.
        chat: whether prompts are messages of a user, and targets complete answers.
        max_new_tokens: the most tokens to generate after a prompt.
        cases: the cases in the file's order.
        sha256: the hash of the file's values, without comments and layout. Results of two days are
            comparable only if it is the same.
    """

    name: str
    path: Path
    about: str
    chat: bool
    max_new_tokens: int
    cases: tuple[Case, ...]
    sha256: str


def read_cases(path: Path | str) -> CaseSet:
    """Read a file of cases.

    Raises:
        ConfigError: the file is missing or invalid. The message has a line for each problem, in the
            file's order.
    """
    document = read_file(path)
    problems = [(line, f"{path}:{line}: {message}") for line, message in document.problems]
    lines: dict[KeyPath, int] = {(): 1, **document.lines}
    file = None
    if isinstance(document.value, dict):
        file, invalid = _validate(document.value, lines)
        for key, message in invalid:
            if isinstance(key[-1], int) and key not in lines:
                key = key[:-1]  # The schema reads a single text as a list of one.
            line = lines[nearest(key, lines)]
            problems.append((line, f"{path}:{line}: {dotted(key)}: {message}"))
    elif document.is_complete:
        empty = "empty" if document.value is None else f"not a mapping, got {shown(document.value)}"
        problems.append((1, f"{path}:1: {empty}, write about: and cases:"))
    if file is None or problems:
        raise ConfigError(
            "\n".join(line for _, line in sorted(problems, key=lambda problem: problem[0]))
        )
    sha256 = hashlib.sha256(json.dumps(document.value, sort_keys=True).encode()).hexdigest()
    return CaseSet(
        name=Path(path).stem,
        path=Path(path),
        about=file.about,
        chat=file.chat,
        max_new_tokens=file.max_new_tokens,
        cases=tuple(file.cases),
        sha256=sha256,
    )


def _validate(
    tree: dict[str, Any], lines: dict[KeyPath, int]
) -> tuple[CaseFile | None, list[Problem]]:
    """Return the parsed file, or None if its schema refuses it, and all problems."""
    file: CaseFile | None = None
    problems: list[Problem] = []
    try:
        # From JSON: in its strict mode pydantic still accepts no bool or number as text.
        file = CaseFile.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        problems += map(_schema_problem, error.errors(include_url=False))
    refused = {place for place, _ in problems}
    drafts = (
        tree["cases"] if isinstance(tree.get("cases"), list) and ("cases",) not in refused else []
    )
    first: dict[object, int] = {}
    patterns = _Patterns(REGEX_SECONDS)
    for index, draft in enumerate(drafts):
        case_place = ("cases", index)
        if case_place in refused:
            continue
        # Without the keys that the schema refuses, the rest of the case can be checked too.
        bad = {place[2] for place in refused if place[:2] == case_place}
        case = Case.model_validate_json(
            json.dumps({key: value for key, value in draft.items() if key not in bad}), strict=True
        )
        problems += [
            ((*case_place, *key), message)
            for key, message in _problems(case, chat=tree.get("chat") is True, complete=not bad)
        ]
        if case.regex is not None and (message := patterns.problem(case.regex)):
            problems.append(((*case_place, "regex"), message))
        question = (
            case.prompt,
            frozenset(case.targets),
            frozenset(case.contains or ()),
            case.regex,
        )
        if not bad and (other := first.setdefault(question, index)) != index:
            message = (
                f"asks the same as cases[{other}] on line {lines['cases', other]}, remove one of"
                " the two"
            )
            problems.append((case_place, message))
    return file, problems


def _schema_problem(error: ErrorDetails) -> Problem:
    place, kind, given = error["loc"], error["type"], error["input"]
    if kind == "extra_forbidden":
        return place, f"unknown key, got {shown(given)}, {advice(place, {}, CaseFile)}"
    return in_words(place, kind, given, error["msg"], keys(CaseFile))


def _problems(case: Case, chat: bool, complete: bool) -> Iterator[Problem]:
    """Yield the problems of a case with valid types. If the case is not `complete`, because the
    schema refused some of its keys, missing keys are no problem.
    """
    if complete and not (case.target or case.contains or case.regex):
        yield (), "nothing says what is right, write target, contains or regex"
    if complete or case.prompt:
        yield from _prompt_problems(case.prompt, chat)
    for key in ("target", "choices", "contains"):
        texts = getattr(case, key) or []
        for index, text in enumerate(texts):
            place: KeyPath = (key, index)
            if text in texts[:index]:
                yield place, f"{shown(text)} stands there twice, remove one of the two"
            elif key != "contains":
                yield from (
                    (place, message) for message in _continuation_problems(case.prompt, text, chat)
                )
    right = sorted({choice for choice in case.choices if choice in case.targets})
    if case.choices and not case.targets and complete:
        yield ("choices",), "no target says which is right, write the right one as target too"
    elif case.choices and case.targets and not right:
        wanted = f"write {shown(case.targets[0])} there, with its spaces"
        yield ("choices",), f"the target is not among them, got {shown(case.choices)}, {wanted}"
    elif len(right) > 1:
        yield ("choices",), f"several of them are right, got {shown(right)}, leave one of these"


def _prompt_problems(prompt: str, chat: bool) -> Iterator[Problem]:
    if chat and not prompt.strip():
        yield ("prompt",), "empty, write the user's message"
    elif prompt != prompt.rstrip():
        wanted = "end it with a letter or mark" if chat else "begin target and choices with it"
        yield (
            ("prompt",),
            (
                f"ends in white space, which belongs to the next token, got {shown(prompt[-20:])},"
                f" {wanted}"
            ),
        )


def _continuation_problems(prompt: str, text: str, chat: bool) -> Iterator[str]:
    if not text.strip():
        yield f"only white space, got {shown(text)}, write what should be said"
    elif chat and text != text.strip():
        yield (
            f"begins or ends in white space, which a template sets by itself, got {shown(text)},"
            f" write {shown(text.strip())}"
        )
    elif not chat and prompt and _in_a_word(prompt[-1]) and _in_a_word(text[0]):
        yield (
            f"goes on inside the prompt's last word, got {shown(text)}, write {shown(' ' + text)}"
            " or move that word out of the prompt"
        )


def _in_a_word(character: str) -> bool:
    """Return whether a character is a digit, or a letter of a script with capitals. Such scripts
    put spaces between words; Chinese and Thai do not.
    """
    return unicodedata.category(character) in ("Ll", "Lu", "Nd")


@dataclass
class _Patterns:
    """The regular expressions of a file, tried on an empty text in bounded time.

    Attributes:
        seconds: the time that is left for the rest of the file.
    """

    seconds: float

    def problem(self, pattern: str) -> str | None:
        """Return what is wrong with a pattern, or None."""
        start = time.monotonic()
        try:
            with at_most(max(self.seconds, LEAST_SECONDS)):
                return _regex_problem(pattern)
        except TimeoutError:
            return (
                f"takes too long to search even an empty text, got {shown(pattern)}, write it"
                " without repeats inside of repeats"
            )
        finally:
            self.seconds -= time.monotonic() - start


def _regex_problem(pattern: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about syntax that may change in later Pythons
            if re.compile(pattern).search("") is None:
                return None
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        wanted = "write one for Python's re, a special character with \\ before it"
        return f"not a regular expression: {printable(str(error))}, got {shown(pattern)}, {wanted}"
    return (
        f"found in every text, even an empty one, got {shown(pattern)}, write what has to be there"
    )
