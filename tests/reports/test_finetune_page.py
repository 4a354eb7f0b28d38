"""The closing report of fine-tuning describes known answers correctly, and all text in it stays
text.
"""

from __future__ import annotations

import html
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.config.schema.finetune import FinetuneConfig
from lm.display.tables import safe
from lm.documents.conversations import Conversation, Turn
from lm.evaluation.answers import Answer, Loss, Measured
from lm.reports.finetune import spoken, write_report
from lm.system.errors import CheckpointError

HOSTILE = (
    "\x1b[2J\r\n```\n| <script>alert(1)</script> [x](http://x) ![y](y) www.evil.com **b**"
    " \u202egnp.exe & `c` $d$ @you #1"
)


def asked(prompt: str, reply: str, rejected: str | None = None) -> Conversation:
    return Conversation((Turn("user", prompt), Turn("assistant", reply)), rejected)


def measured(places: int, no_room: int = 0, **lists: Any) -> Measured:
    names = ("answers", "losses", "rejected", "choices")
    return Measured(256, no_room, **{name: lists.get(name, [None] * places) for name in names})


def settings(**given: Any) -> FinetuneConfig:
    return FinetuneConfig(**({"base": "base.ckpt", "report_tokens": 64} | given))


CONVERSATIONS = [
    asked("Which?", "ham"),
    asked("And this?", "spam"),
    asked("Now?", "ham"),
    asked("Else?", "the other"),
]
BEFORE = measured(
    4,
    answers=[
        Answer("and so on", 64, False),
        Answer("ham or", 64, False),
        None,
        Answer("other", 2, True),
    ],
    losses=[Loss(8.0, 2), Loss(4.0, 2), None, Loss(4.0, 4)],
    choices=["spam", "spam", "spam", None],
)
AFTER = measured(
    4,
    no_room=1,
    answers=[Answer("Ham.", 4, True), Answer("spam", 5, True), None, Answer("an other", 3, True)],
    losses=[Loss(2.0, 2), Loss(1.0, 2), None, Loss(3.0, 4)],
    choices=["ham", "spam", "spam", None],
)


def told(folder: Path, *arguments: Any) -> tuple[str, dict[str, Any], str]:
    """Return the printed lines, the JSON (which has no NaN) and the page."""
    said: list[str] = []
    write_report(folder, said.append, *arguments)
    facts = json.loads((folder / "answers.json").read_text(), parse_constant=pytest.fail)
    return "\n".join(said), facts, (folder / "report.md").read_text()


def test_the_table_of_known_answers(tmp_path: Path) -> None:
    choices = settings(choices=["ham", "spam"])
    said, facts, page = told(tmp_path, CONVERSATIONS, BEFORE, AFTER, choices, (4.0, 4.2))
    assert (
        said
        == f"""\
held-out conversations                        before   after   change
answers that end by themselves, %               33.3   100.0    +66.7
answers that match the reference, %             33.3   100.0    +66.7
F1 of the words, %                              33.3   100.0    +66.7
length of an answer, tokens                     43.3     4.0    -39.3
loss of the references, nats per token        2.0000  0.7500  -62.5 %
choice of the answer: accuracy, %               33.3    66.7    +33.3
choice of the answer: mean of the recalls, %    50.0    75.0    +25.0
loss on the base's own text, nats per token   4.0000  4.2000   +5.0 %

after, by the reference  chosen ham  chosen spam
ham                               1            1
spam                              0            1

3 of 4 held-out prompts were answered greedily, in at most 64 tokens each
matches and F1 compare words as SQuAD does: lower case, no punctuation, no articles \
(a, an, the); F1 is a mean over answers
skipped: 1 prompt is too long for the context of 256
not in the loss: 1 conversation is longer than the context of 256
1 conversation is not in the accuracy of choices: the reference is none of ham, spam, or the \
context has no room
forgetting: the loss on the validation text of the base went from 4.0000 \
to 4.2000 nats per token
answers to read: {tmp_path}/report.md; all: {tmp_path}/answers.json"""
    )
    assert (facts["held_out"], facts["no_room"], facts["context"]) == (4, 1, 256)
    assert (facts["before"]["ended"], facts["after"]["ended"]) == (1 / 3, 1)
    assert (facts["before"]["answer_loss"], facts["after"]["answer_loss"]) == (2.0, 0.75)
    assert (facts["before"]["base_loss"], facts["after"]["base_loss"]) == (4.0, 4.2)
    assert facts["after"]["confusion"] == {"ham": {"ham": 1, "spam": 1}, "spam": {"spam": 1}}
    assert facts["conversations"][0] == {
        "prompt": [{"role": "user", "content": "Which?"}],
        "reference": "ham",
        "before": {
            "answer": "and so on", "tokens": 64, "ended": False, "exact_match": False, "f1": 0.0,
            "loss": {"nats": 8.0, "tokens": 2}, "choice": "spam",
        },
        "after": {
            "answer": "Ham.", "tokens": 4, "ended": True, "exact_match": True, "f1": 1.0,
            "loss": {"nats": 2.0, "tokens": 2}, "choice": "ham",
        },
    }  # fmt: skip
    assert facts["conversations"][2] == {
        "prompt": [{"role": "user", "content": "Now?"}], "reference": "ham",
        "before": {"choice": "spam"}, "after": {"choice": "spam"},
    }  # fmt: skip
    assert "## Fine-tuning\n" in page
    assert "| loss on the base's own text, nats per token | 4.0000 | 4.2000 | +5.0 % |\n" in page
    assert page.count("### Answer") == 3, "all that were answered"
    assert (
        "| prompt | Which? |\n| reference | ham |\n| before | and so on … \\(no end\\) |\n| after |"
        " Ham. |\n" in page
    )


def test_five_answers_from_all_parts(tmp_path: Path) -> None:
    conversations = [asked(f"prompt {i}", "x") for i in range(23)]
    answers = measured(23, answers=[Answer("x", 1, True)] * 20 + [None] * 3)
    *_, page = told(tmp_path, conversations, answers, answers, settings())
    assert [line for line in page.splitlines() if line.startswith("| prompt")] == [
        f"| prompt | prompt {i} |" for i in (0, 4, 8, 12, 16)
    ]


def test_preferences(tmp_path: Path) -> None:
    pairs = [asked("a", "good", "bad"), asked("b", "good", "bad")]
    before = measured(2, losses=[Loss(5, 2), Loss(3, 2)], rejected=[Loss(4, 2), Loss(4, 2)])
    after = measured(2, losses=[Loss(4, 2), Loss(3, 2)], rejected=[Loss(6, 2), Loss(3.5, 2)])
    said, facts, _ = told(tmp_path, pairs, before, after, settings(objective="dpo"))
    assert "pairs: preferred answer likelier, %       50.0   100.0    +50.0\n" in said
    assert "pairs: preferred answer gained more, %       –    50.0\n" in said
    assert facts["after"]["reward_accuracy"] == 0.5
    assert facts["conversations"][0]["rejected"] == "bad"
    assert facts["conversations"][0]["after"]["rejected_loss"] == {"nats": 6, "tokens": 2}


def test_nothing_held_out(tmp_path: Path) -> None:
    nothing = measured(0)
    said, facts, page = told(tmp_path, [], nothing, nothing, settings(choices=["a", "b"]))
    assert said.startswith(
        "no conversation is held out, so there is nothing to answer; data.test_fraction or"
        " data.val_fraction holds some out\n"
    )
    assert facts["conversations"] == [] and facts["after"]["ended"] is None
    assert "no conversation is held out" in page
    said, *_ = told(tmp_path, [], nothing, nothing, settings(), (2.0, 3.0))
    assert "loss on the base's own text, nats per token  2.0000  3.0000  +50.0 %" in said


def test_a_base_without_its_text_is_said(tmp_path: Path) -> None:
    said, facts, page = told(tmp_path, CONVERSATIONS, BEFORE, AFTER, settings())
    for text in (said, page, *facts["notes"][-1:]):
        assert "unknown, because the validation text of the base is missing" in text
    assert "base_loss" not in facts["after"]


def test_numbers_that_are_not_finite_are_null_and_seen(tmp_path: Path) -> None:
    broken = replace(AFTER, losses=[Loss(math.nan, 2), Loss(math.inf, 2), None, None])
    said, facts, _ = told(tmp_path, CONVERSATIONS, BEFORE, broken, settings(), (0.0, math.inf))
    assert facts["after"]["answer_loss"] is None and facts["after"]["base_loss"] is None
    assert facts["conversations"][0]["after"]["loss"] == {"nats": None, "tokens": 2}
    lines = {line.partition(",")[0]: line.split()[-3:] for line in said.splitlines()}
    assert lines["loss of the references"] == ["nan", "+nan", "%"]
    assert lines["loss on the base's own text"] == ["0.0000", "inf", "–"]


def test_no_text_commands_the_terminal_or_the_page(tmp_path: Path) -> None:
    conversations = [asked(HOSTILE, HOSTILE, HOSTILE + "!")]
    found = measured(
        1,
        answers=[Answer(HOSTILE, 9, True)],
        choices=[HOSTILE],
        losses=[Loss(1, 1)],
        rejected=[Loss(2, 1)],
    )
    said, facts, page = told(
        tmp_path, conversations, found, found, settings(choices=[HOSTILE, "ham"])
    )
    for text in (said, page):
        assert all(character.isprintable() or character == "\n" for character in text)
    for sign in ("<script", "[x](", "![", "```", "**", " `c`", " $d$", " @you", "http:", "www.e"):
        assert sign not in page
    for line in page.splitlines():
        if line.startswith("|"):
            assert line.count("|") - line.count("\\|") in (
                3,
                5,
            ), "two columns, or four in the first table"
    assert facts["conversations"][0]["after"]["answer"] == HOSTILE, "JSON says what was written"


@given(st.text("\\`*_~[]()<>#|&$@!:w.ab\n\x1b-+1 "))
def test_safe_text_is_the_text_when_the_backslashes_are_read(text: str) -> None:
    """Markdown reads the safe text as the original: a backslash before a sign is that sign, and
    HTML's names of signs are decoded.
    """
    read, escaped = "", iter(safe(text))
    for character in escaped:
        if character == "\\":
            read += next(escaped)
        else:
            assert character not in "`*_~[]()<>#|$@!:\n\x1b"
            read += character
    assert html.unescape(read) == text.replace("\n", "↵").replace("\x1b", "␛")


def test_several_turns_are_told_with_who_speaks() -> None:
    turns = (
        Turn("system", "Be kind."),
        Turn("user", "Do", "this"),
        Turn("assistant", "Done"),
        Turn("user", "More"),
    )
    assert spoken(turns) == "system: Be kind.\nuser: Do\nthis\nassistant: Done\nuser: More"
    assert spoken(turns[1:2]) == "Do\nthis"


def test_a_disk_that_refuses_is_one_plain_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"report\.md could not be written"):
        told(tmp_path / "missing", CONVERSATIONS, BEFORE, AFTER, settings())
