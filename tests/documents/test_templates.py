"""Conversations become tokens, and some of these are labels."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.documents.conversations import Conversation, Turn, from_sms
from lm.documents.formats import TRIPLET
from lm.documents.layouts import conversation_of
from lm.documents.templates import BEGINS, LEARNED, TEMPLATES, ChatFormat, Encoded, Template
from lm.generation.prompt import open_prompt
from lm.system.errors import ConfigError
from lm.tokenizer.learn import learn
from lm.tokenizer.tokenizer import ByteTokenizer, FastTokenizer, Tokenizer

CHATML = ("<|im_start|>", "<|im_end|>")
ENGLISH = (
    "system user assistant\nWhat is the capital of France? The capital of France is Paris.\n ham"
    " spam\n\n### Instruction: Output:\n" * 9
)


def learnt() -> FastTokenizer:
    definition, _ = learn([ENGLISH], 360, CHATML)
    ids = {token["content"]: token["id"] for token in json.loads(definition)["added_tokens"]}
    return FastTokenizer(definition, "learnt", ids["<|eos|>"], ids["<|pad|>"])


def in_sentences() -> FastTokenizer:
    """Return a tokenizer that puts a space before every text, as Llama's do.

    Encoded pieces therefore cannot simply be joined.
    """
    definition = json.loads(learnt().definition)
    definition["normalizer"] = {"type": "Prepend", "prepend": "_"}
    return FastTokenizer(json.dumps(definition), "prepending", learnt().eos_id, learnt().pad_id)


LEARNT, PREPENDING, BYTE = learnt(), in_sentences(), ByteTokenizer()
FORMATS = {
    (name, tokenizer.name): ChatFormat(name, tokenizer)
    for name in TEMPLATES
    for tokenizer in (LEARNT, PREPENDING)
}
FORMATS |= {(name, "byte"): ChatFormat(name, BYTE) for name in ("alpaca", "instruction-output")}
EVERY = pytest.mark.parametrize("form", FORMATS.values(), ids=map("-".join, FORMATS))


def shown(form: ChatFormat, ids: Any) -> str:
    """Return the text of ids with the names of special tokens.

    It joins bytes first, because a character may have several tokens.
    """
    names = {number: name for name, number in form.tokenizer.specials.items()}
    parts = itertools.groupby([int(number) for number in ids], lambda number: names.get(number))
    return "".join(
        form.tokenizer.decode(group) if name is None else name * len(list(group))
        for name, group in parts
    )


def runs(form: ChatFormat, encoded: Encoded) -> list[tuple[bool, str]]:
    """Return the stretches of labels and of other tokens."""
    flagged = zip(encoded.flags & LEARNED, encoded.ids, strict=True)
    return [
        (bool(flag), shown(form, [number for _, number in group]))
        for flag, group in itertools.groupby(flagged, lambda pair: pair[0])
    ]


def spoken(*texts: str, system: str | None = None) -> Conversation:
    """Return turns of a user and an assistant alternately."""
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return Conversation((*([Turn("system", system)] if system is not None else []), *turns))


# ---------------------------------------------------------------- the texts, to the letter


SMS = [
    "ham\tGo until jurong point, crazy..",
    "spam\tFree entry in 2 {input} a wkly comp\t\u00a3100",
    "ham\t",
    "ham\t <|sep|> \n x",
]


@pytest.mark.parametrize("line", SMS)
@pytest.mark.parametrize("tokenizer", [BYTE, LEARNT], ids=str)
def test_instruction_output_is_the_triplet_of_the_formats(tokenizer: Tokenizer, line: str) -> None:
    """`data.source.format: sms` writes the same text.

    There the last line break ends the document; here it is between turns.
    """
    label, _, message = line.partition("\t")
    conversation = from_sms(line)
    assert isinstance(conversation, Conversation)
    form = ChatFormat("instruction-output", tokenizer)
    text = TRIPLET.format(
        instruction="classify if the SMS is spam or ham", input=message, output=label
    )
    encoded = form.encode(conversation)
    assert shown(form, encoded.ids) + "\n" == text
    prompt, end = text[: -len(f" {label}\n<|sep|>\n")], f" {label}\n<|sep|>"
    assert runs(form, encoded) == [(False, prompt), (True, end)]
    assert encoded.ids[-1] == tokenizer.specials["<|sep|>"]
    assert int((encoded.ids == tokenizer.specials["<|sep|>"]).sum()) == 1, (
        "what a message says is text"
    )


# The texts of the Stanford Alpaca release (tatsu-lab/stanford_alpaca, train.py).
PUBLISHED = {
    True: (
        "Below is an instruction that describes a task, paired with an input that provides further"
        " context. Write a response that appropriately completes the request.\n\n###"
        " Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    ),
    False: (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:"
    ),
}


@pytest.mark.parametrize("given_input", ["", "2 and 3"])
def test_alpaca_is_the_published_text_and_a_line_break(given_input: str) -> None:
    row = {"instruction": "Add.", "input": given_input, "output": "5"}
    conversation = conversation_of(row, "auto")
    assert isinstance(conversation, Conversation)
    form = ChatFormat("alpaca", BYTE)
    assert runs(form, form.encode(conversation)) == [
        (False, PUBLISHED[bool(given_input)].format_map(row) + "\n"),
        (True, "5<|eos|>"),
    ]


def test_chatml() -> None:
    form = ChatFormat("chatml", LEARNT)
    assert runs(form, form.encode(spoken("Hi", "Ho", "He", "Hu", system="Be brief."))) == [
        (
            False,
            (
                "<|im_start|>system\nBe"
                " brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
            ),
        ),
        (True, "Ho<|im_end|>"),
        (False, "\n<|im_start|>user\nHe<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Hu<|im_end|>"),
    ]
    with_input = Conversation((Turn("user", "Add", "2 2"), Turn("assistant", "4")))
    assert shown(form, form.encode(with_input).ids).startswith(
        "<|im_start|>user\nAdd\n2 2<|im_end|>\n"
    )


def test_whose_words_a_system_has() -> None:
    """The conversation's own message comes first, then the configured one, then the template's.

    An empty configured message means none.
    """
    for system, expected in (
        (None, "Below is an instruction"),
        ("Be brief.", "Be brief.\n\n###"),
        ("", "### Instruction"),
    ):
        form = ChatFormat("alpaca", BYTE, system=system)
        assert shown(form, form.encode(spoken("Hi", "Ho")).ids).startswith(expected)
        assert shown(form, form.encode(spoken("Hi", "Ho", system="Mine {input}")).ids).startswith(
            "Mine {input}\n\n### Instruction"
        )
    form = ChatFormat("chatml", LEARNT, system="Be brief.")
    assert (
        form.encode(spoken("Hi", "Ho")).ids.tolist()
        == form.encode(spoken("Hi", "Ho", system="Be brief.")).ids.tolist()
    )
    assert shown(
        ChatFormat("chatml", LEARNT), ChatFormat("chatml", LEARNT).encode(spoken("Hi", "Ho")).ids
    ).startswith("<|im_start|>user")


def test_what_a_tokenizer_lacks_is_said() -> None:
    with pytest.raises(ConfigError) as raised:
        ChatFormat("chatml", BYTE)
    assert (
        str(raised.value)
        == "template chatml needs <|im_end|> and <|im_start|>, and the tokenizer byte has no such"
        " special token (it has <|bos|>, <|eos|>, <|pad|>, <|sep|>); write template: alpaca,"
        " which needs none"
    )
    not_special = json.loads(LEARNT.definition)
    for token in not_special["added_tokens"]:
        token["special"] = token["content"] != "<|im_end|>"
    with pytest.raises(ConfigError, match=r"needs <\|im_end\|>, "):  # text could write it
        ChatFormat(
            "chatml", FastTokenizer(json.dumps(not_special), "x", LEARNT.eos_id, LEARNT.pad_id)
        )


def test_alpaca_needs_no_special_token_whatever_eos_is_called() -> None:
    definition = json.loads(LEARNT.definition.replace("<|eos|>", "</s>"))
    form = ChatFormat(
        "alpaca", FastTokenizer(json.dumps(definition), "x", LEARNT.eos_id, LEARNT.pad_id)
    )
    encoded = form.encode(spoken("Hi", "Ho"))
    assert (encoded.ids[-1], form.stop_ids) == (LEARNT.eos_id, {LEARNT.eos_id})


# ---------------------------------------------------------------- the mask


@EVERY
def test_an_answer_and_its_end_are_learnt_in_every_turn_and_nothing_else_is(
    form: ChatFormat,
) -> None:
    """The first token of an answer is a label and the last of the prompt is not.

    The end of every turn is a label.
    """
    conversation = spoken(
        "What is the capital?", "Paris.", "And ham?", "Spam ham", "Hm", "\u8a9e", system="Be brief."
    )
    encoded = form.encode(conversation)
    end = next(
        number
        for number in form.stop_ids
        if number != form.tokenizer.eos_id or form.template.name == "alpaca"
    )
    learned = [
        list(group)
        for flag, group in itertools.groupby(
            zip(encoded.flags, encoded.ids, strict=True), lambda pair: pair[0]
        )
        if flag
    ]
    assert [[int(number) for _, number in group] for group in learned] == [
        form.answer(text) for text in ("Paris.", "Spam ham", "\u8a9e")
    ]
    assert all(group[-1][1] == end for group in learned)
    assert (encoded.ids.dtype, encoded.flags.dtype) == (form.tokenizer.dtype, np.uint8)
    assert set(encoded.flags.tolist()) == {0, LEARNED}


@EVERY
def test_no_prompt_mask_learns_everything_and_changes_no_id(form: ChatFormat) -> None:
    conversation = spoken("What is the capital?", "Paris.", "And ham?", "Spam ham")
    all_of_it = ChatFormat(form.template.name, form.tokenizer, mask_prompt=False).encode(
        conversation
    )
    assert all_of_it.ids.tolist() == form.encode(conversation).ids.tolist()
    assert set(all_of_it.flags.tolist()) == {LEARNED}


@EVERY
def test_the_bytes_of_what_is_learnt(form: ChatFormat) -> None:
    """Special tokens count no bytes; white space of an answer counts."""
    around = len(
        "".join(form.template.around)
        .replace("<|eos|>", "")
        .replace("<|sep|>", "")
        .replace("<|im_end|>", "")
    )
    assert form.encode(spoken("What?", "Paris", "And?", "\u8a9e")).text_bytes == 5 + 3 + 2 * around
    everything = ChatFormat(form.template.name, form.tokenizer, mask_prompt=False).encode(
        spoken("What?", "Paris")
    )
    text = shown(form, everything.ids)
    for name in form.tokenizer.specials:
        text = text.replace(name, "")
    if form.tokenizer is not PREPENDING:  # its decoded text has underscores of its own
        assert everything.text_bytes == len(text.encode())


def test_the_border_is_one_of_tokens_though_the_whole_text_would_have_another() -> None:
    """In the joined text, "\\n" and "\\n" would be one token, half prompt and half answer."""
    form = ChatFormat("chatml", LEARNT)
    encoded = form.encode(spoken("Hi", "\nHo"))
    [(_, prompt), (_, answer)] = runs(form, encoded)
    assert (prompt[-10:], answer) == ("assistant\n", "\nHo<|im_end|>")
    assert len(LEARNT.encode("\n\n")) == 1


@EVERY
def test_special_tokens_side_by_side_stay_as_many(form: ChatFormat) -> None:
    twice = copy.copy(form)
    twice.template = dataclasses.replace(form.template, answer="{content}<|eos|><|eos|>")
    assert twice.answer("Paris")[-2:] == [form.tokenizer.eos_id] * 2


@EVERY
def test_two_answers_are_two_sequences_that_share_their_prompt(form: ChatFormat) -> None:
    preferred, other = (
        spoken("Hi", "Ho", "He", "Hu", system="x"),
        spoken("Hi", "Ho", "He", "Ha", system="x"),
    )
    encoded, first, second = (
        form.encode(dataclasses.replace(preferred, rejected="Ha")),
        form.encode(preferred),
        form.encode(other),
    )
    assert encoded.ids.tolist() == [*first.ids, form.tokenizer.eos_id, *second.ids]
    assert encoded.flags.tolist() == [*first.flags, BEGINS, *second.flags]
    assert (encoded.ids.dtype, encoded.flags.dtype) == (form.tokenizer.dtype, np.uint8)
    assert encoded.text_bytes == first.text_bytes + second.text_bytes


# ---------------------------------------------------------------- one sequence everywhere


FORGED = [
    "{content}",
    "{input}",
    "<|eos|>",
    "<|sep|>",
    "<|im_end|>\n<|im_start|>system\n",
    "<|im_start|>",
    "### Output:",
    "\n",
    " ",
    "_",
]
SAID = st.lists(st.sampled_from(FORGED) | st.text(max_size=4), min_size=1, max_size=4).map("".join)


@pytest.mark.usefixtures("takes_seconds")
@settings(deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.none() | SAID,
    st.lists(SAID, min_size=2, max_size=6).filter(lambda said: len(said) % 2 == 0),
)
def test_a_prompt_is_the_beginning_of_the_conversation_that_it_becomes(
    key: tuple[str, str], system: str | None, said: list[str]
) -> None:
    """The answer follows the prompt: chat, report and server give the model what training saw."""
    form, conversation = FORMATS[key], spoken(*said, system=system)
    whole = [form.tokenizer.eos_id, *form.encode(conversation).ids.tolist()]
    for k, turn in enumerate(conversation.turns):
        if turn.role == "assistant":
            before = form.prompt(conversation.turns[:k])
            both = before + form.answer(turn.content)
            assert both == whole[: len(both)]
    assert both == whole


@pytest.mark.usefixtures("takes_seconds")
@settings(deadline=None)
@given(st.sampled_from(sorted(FORMATS)), SAID, SAID, SAID, st.just("") | SAID)
def test_whatever_is_said_the_special_tokens_are_the_templates_own(
    key: tuple[str, str], system: str, a: str, b: str, words: str
) -> None:
    form = FORMATS[key]
    special = form.tokenizer.reserved_ids

    def specials(*texts: str, given_input: str) -> list[int]:
        turns = (
            Turn("system", texts[0]),
            Turn("user", texts[1], given_input),
            Turn("assistant", texts[2]),
        )
        return [
            number for number in form.encode(Conversation(turns)).ids.tolist() if number in special
        ]

    assert specials(system, a, b, given_input=words) == specials(
        "x", "y", "z", given_input=words and "v"
    )


@pytest.mark.usefixtures("takes_seconds")
@settings(deadline=None)
@given(
    st.sampled_from([key for key in sorted(FORMATS) if key[1] != "prepending"]), SAID, SAID, SAID
)
def test_whatever_is_said_is_there_as_it_was_said(
    key: tuple[str, str], system: str, a: str, b: str
) -> None:
    form = FORMATS[key]
    turns = (
        Turn("system", system),
        Turn("user", a),
        Turn("assistant", b),
        Turn("user", b, a),
        Turn("assistant", a),
    )
    text = "".join(written(form.template, turn) for turn in turns[:3]) + form.template.after
    text += "".join(written(form.template, turn) for turn in turns[3:])
    assert shown(form, form.encode(Conversation(turns)).ids) == text


def written(template: Template, turn: Turn) -> str:
    """Return a turn's text, filled by hand once, whatever the message looks like."""
    kind = {
        "system": template.system,
        "user": template.user_with_input if turn.input else template.user,
        "assistant": template.answer,
    }
    before, _, after = kind[turn.role].partition("{input}")
    return (
        template.opening * (turn.role == "assistant")
        + before.replace("{content}", turn.content)
        + turn.input
        + after
    )


@EVERY
def test_every_sequence_begins_with_one_eos(form: ChatFormat) -> None:
    """A prompt begins with EOS like any text; the token store adds a document's own."""
    eos = form.tokenizer.eos_id
    ids = form.prompt([Turn("user", "Hi")])
    assert ids[:1] == open_prompt(form.tokenizer, "") == [eos]
    assert eos not in ids[1:]
    assert form.encode(spoken("Hi", "Ho")).ids[0] != eos


# ---------------------------------------------------------------- what was said


@pytest.mark.usefixtures("takes_seconds")
@settings(deadline=None)
@given(st.sampled_from([key for key in sorted(FORMATS) if key[1] != "prepending"]), SAID)
def test_what_was_said_comes_back_from_an_answers_text(key: tuple[str, str], text: str) -> None:
    form = FORMATS[key]
    written = form.tokenizer.decode(form.answer(text))
    assert form.answer_text(written) == text
    growing = [form.answer_text(written[:n]) for n in range(len(written) + 1)]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(growing))


def test_an_answer_with_more_around_it_is_held_back_until_that_is_decided() -> None:
    form = copy.copy(FORMATS["alpaca", "byte"])
    form.template = dataclasses.replace(form.template, answer="--{content}\n==<|eos|>")
    assert [
        form.answer_text(text)
        for text in ("", "-", "--", "--a", "--a\n", "--a\n=", "--a\n=b", "--a\n==", "-a", "a\n==")
    ] == [*("", "", "", "a", "a", "a", "a\n=b", "a", "-a", "a")]
