"""Compare the results of a decoder on cases with those of reading each token alone, and test
decoders with known answers.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from lm.config.schema.cases import Case
from lm.config.schema.model import ModelConfig
from lm.documents.conversations import Turn
from lm.documents.templates import ChatFormat
from lm.evaluation.scoring import split
from lm.evaluation.training_text import TrainingText
from lm.ranking import results
from lm.ranking.cases import CaseSet
from lm.ranking.measures import BITS_PER_BYTE, NATS_PER_TOKEN
from lm.ranking.questions import CaseEncoder
from lm.ranking.results import (
    CaseResult,
    SetResult,
    begins_with,
    look_for_copies,
    measure_set,
    repetition,
    search,
)
from lm.system.errors import ConfigError, NonFiniteError
from lm.tokenizer.tokenizer import Tokenizer, from_definition, load_tokenizer
from model import Decoder
from tests.support.scripted import ScriptedDecoder

BYTE = load_tokenizer("byte")
CONTEXT = 160
ROPE: dict[str, Any] = {}
LEARNED: dict[str, Any] = {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True}


def small_bpe() -> Tokenizer:
    """Return a BPE that joins a word with the space before it, and letters across the end of a
    prompt.
    """
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = ["the theory of the thesis is there", "the film was the best of the year"] * 9
    backend.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=300, special_tokens=["<e>"], initial_alphabet=alphabet)
    )
    return from_definition(backend.to_str(), "bpe", 0, 0)


BPE = small_bpe()


def cases_of(*cases: Case, chat: bool = False, length: int = 12) -> CaseSet:
    return CaseSet("some", Path("cases/some.yaml"), "of a test", chat, length, cases, "0" * 64)


TEXTS = (
    Case(
        prompt="The film was",
        target=[" the best", " there"],
        choices=[" the best", " bad", " of"],
        tags=["film"],
    ),
    Case(prompt="", target="the theory", contains="e"),
    # Tokens reach across the end of the prompt.
    Case(prompt="of the", target="sis is", choices=["sis is", " year", "ory"]),
    Case(prompt="café", target=" é €", regex="[a-z]"),
    # cut for scoring
    Case(
        prompt="x" * (CONTEXT - 9),
        target=" of the year, as it was",
        choices=[" of the year, as it was", "?"],
    ),
    # also cut for generation
    Case(prompt="the " * CONTEXT + "end", target=" is", choices=[" is", " was the"]),
    Case(prompt="The film was", target=" there", contains=[" the", "z"]),
    Case(prompt="a", target=" z" * CONTEXT, choices=[" z" * CONTEXT, "b"]),  # no room for it
)
MESSAGES = (
    Case(
        prompt="How was the film?",
        target=["the best", "bad"],
        choices=["bad", "the best of the year", "the best"],
    ),
    Case(prompt="Why?", target="é €", regex="[a-z]"),
    Case(prompt="y" * 40, target="the theory", choices=["the theory", "the"]),
    Case(prompt="x" * CONTEXT, target="no room"),
    Case(prompt="Who?", target="no room" * CONTEXT, contains="a"),
)


def decoder(vocab_size: int, **shape: Any) -> Decoder:
    """Return a decoder with very different scores, so that rounding decides no order, and with rows
    that no token has.
    """
    torch.manual_seed(0)
    shape = {
        "vocab_size": vocab_size + 4,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "init_std": 0.3,
    } | shape
    return Decoder(ModelConfig(context_length=CONTEXT, dropout=0.2, **shape))


@torch.no_grad()
def slow_nats(model: Decoder, read: Sequence[int], continuation: Sequence[int]) -> float:
    """Return the negative log-probability of a continuation, one token at a time."""
    whole = [*read, *continuation]
    first = max(0, len(whole) - 1 - CONTEXT)
    nats = 0.0
    for place in range(len(read), len(whole)):
        probabilities = model.eval()(torch.tensor([whole[first:place]]))[0, -1].double().softmax(-1)
        nats -= math.log(probabilities[whole[place]])
    return nats


@torch.no_grad()
def slow_continuation(
    model: Decoder, prompt: Sequence[int], length: int, stops: set[int], vocab_size: int
) -> tuple[list[int], bool]:
    """Generate one token at a time, and read everything again for each. A text longer than the
    context is cut to its newest half.
    """
    window, drawn = list(prompt), list[int]()
    while len(drawn) < length:
        window = window if len(window) <= CONTEXT else window[-(CONTEXT // 2) :]
        token = int(model.eval()(torch.tensor([window]))[0, -1, :vocab_size].argmax())
        if token in stops:
            return drawn, True
        window.append(token)
        drawn.append(token)
    return drawn, False


def slow(
    model: Decoder, tokenizer: Tokenizer, chat: ChatFormat | None, case: Case, length: int
) -> CaseResult:
    """Return the results on one case, computed step by step."""
    if chat is None:
        prompt, stops = [tokenizer.eos_id, *tokenizer.encode(case.prompt)], {tokenizer.eos_id}
        pairs = {
            text: split(tokenizer, case.prompt, text) for text in (*case.targets, *case.choices)
        }
        border = min((len(pairs[text][0]) for text in case.choices), default=0)
        targets = [
            ([tokenizer.eos_id, *context], continuation)
            for context, continuation in map(pairs.__getitem__, case.targets)
        ]
        wholes = [tokenizer.encode(case.prompt + text) for text in case.choices]
        choices = [([tokenizer.eos_id, *whole[:border]], whole[border:]) for whole in wholes]
        fits = all(len(continuation) <= CONTEXT for _, continuation in (*targets, *choices))
    else:
        prompt, stops = chat.prompt([Turn("user", case.prompt)]), set(chat.stop_ids)
        targets, choices = (
            [(prompt, chat.answer(text)) for text in texts]
            for texts in (case.targets, case.choices)
        )
        fits = all(len(prompt) + len(answer) - 1 <= CONTEXT for _, answer in (*targets, *choices))
    written = (
        slow_continuation(model, prompt, length, stops, tokenizer.vocab_size)
        if chat is None or len(prompt) < CONTEXT
        else None
    )
    text = tokenizer.decode(written[0]) if written else ""
    text = chat.answer_text(text).strip() if chat else text
    nats = [slow_nats(model, *pair) for pair in targets] if fits else []
    costs = [slow_nats(model, *pair) for pair in choices] if fits else []
    best = nats.index(min(nats)) if nats else None
    chosen = case.choices[costs.index(min(costs))] if costs else None
    hits = [
        (
            text == target
            if chat
            else text.startswith(target) and not text[len(target) :][:1].isalnum()
        )
        for target in case.targets
    ]
    return CaseResult(
        nats=nats[best] if best is not None else None,
        target_tokens=len(targets[best][1]) if best is not None else 0,
        target_bytes=len(case.targets[best].encode()) if best is not None else 0,
        chosen=chosen,
        right=chosen in case.targets if chosen else None,
        continuation=text,
        ids=tuple(written[0]) if written else (),
        ended=written[1] if written else None,
        repetition=repetition(written[0]) if written else None,
        exact=any(hits) if written and case.targets else None,
        contains=any(part in text for part in case.contains) if written and case.contains else None,
        regex=any("a" <= letter <= "z" for letter in text) if written and case.regex else None,
        fits=fits and written is not None,
    )


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("shape", [ROPE, LEARNED], ids=["rope", "learned"])
@pytest.mark.parametrize(
    ("tokenizer", "chat"),
    [
        (BYTE, None),
        (BPE, None),
        (BYTE, ChatFormat("instruction-output", BYTE)),
        (BPE, ChatFormat("alpaca", BPE, system="Answer.")),
    ],
    ids=["byte", "bpe", "byte-chat", "bpe-chat"],
)
def test_results_are_those_of_each_case_read_token_by_token(
    tokenizer: Tokenizer, chat: ChatFormat | None, shape: dict[str, Any]
) -> None:
    """Batch size, padding and the other cases change no result."""
    model = decoder(tokenizer.vocab_size, **shape)
    cases = cases_of(*(TEXTS if chat is None else MESSAGES), chat=chat is not None)
    expected = [slow(model, tokenizer, chat, case, cases.max_new_tokens) for case in cases.cases]
    for rows in (1, 3, 8):
        measured = measure_set(model.train(), tokenizer, chat, cases, rows=rows)
        assert model.training
        for ours, theirs in zip(measured.results, expected, strict=True):
            assert ours.nats == (
                None if theirs.nats is None else pytest.approx(theirs.nats, rel=1e-5)
            )
            assert dataclasses.replace(ours, nats=None, cut=False) == dataclasses.replace(
                theirs, nats=None
            )
    assert {result.right for result in expected} >= {
        True,
        False,
    } or chat, "else the test shows little"
    assert [result.fits for result in measured.results] == [result.fits for result in expected]
    assert not all(result.fits for result in expected)
    assert measured.cut == (
        0
        if chat
        else sum(
            len(tokenizer.encode(case.prompt + max(case.targets))) > CONTEXT for case in cases.cases
        )
    )


@pytest.mark.usefixtures("takes_seconds")
def test_the_order_of_cases_changes_no_bit() -> None:
    model = decoder(BYTE.vocab_size)
    cases = list(TEXTS)
    first = measure_set(model, BYTE, None, cases_of(*cases), rows=3)
    for seed in range(3):
        order = random.Random(seed).sample(range(len(cases)), len(cases))
        again = measure_set(model, BYTE, None, cases_of(*(cases[i] for i in order)), rows=3)
        assert again.results == tuple(first.results[i] for i in order)
        figures = [
            (r.distinct_1, r.distinct_2, r.repetition, r.ended_share, r.cut) for r in (first, again)
        ]
        assert figures[0] == figures[1]


def test_choices_are_compared_behind_the_same_context() -> None:
    """ "the" and "sis" are one token together. "sis" alone would have a shorter context than the
    other choices.
    """
    asked = CaseEncoder(BPE, None, CONTEXT).encode(TEXTS[2])
    assert len({question.context for question in asked.choices}) == 1
    assert all(
        BPE.decode([*question.context, *question.continuation]).startswith("of the")
        for question in asked.choices
    )
    assert len({len(split(BPE, "of the", choice)[0]) for choice in TEXTS[2].choices}) > 1, (
        "else the test shows little"
    )


def measure_replies(
    replies: dict[str, str], cases: CaseSet, chat: ChatFormat | None = None
) -> SetResult:
    """Return what `measure_set` makes of known continuations. One that ends in "$" ends itself."""
    ends = BYTE.specials["<|sep|>"] if chat else BYTE.eos_id
    by_ids = {
        (
            tuple(chat.prompt([Turn("user", prompt)]))
            if chat
            else (BYTE.eos_id, *BYTE.encode(prompt))
        ): [
            *BYTE.encode(reply.removesuffix("$")),
            *([ends] if reply.endswith("$") else []),
        ]
        for prompt, reply in replies.items()
    }
    return measure_set(ScriptedDecoder(by_ids), BYTE, chat, cases)


def test_the_figures_of_known_continuations() -> None:
    cases = cases_of(
        Case(prompt="1", target=[" London", " Paris"], contains=["xyz", "aris"], regex=r"P\w+s\b"),
        Case(prompt="2", target=" Paris", contains="Paris", regex="^Paris"),
        Case(prompt="3", target=" Paris", contains="paris"),
        Case(prompt="4", regex="b$"),
        Case(prompt="5", target="x"),
        length=10,
    )
    measured = measure_replies(
        {"1": " Paris.$", "2": " Parisians are", "3": "Paris$", "4": "ababababab", "5": "$"}, cases
    )
    assert [result.continuation for result in measured.results] == [
        " Paris.",
        " Parisians"[:10],
        "Paris",
        "ababababab",
        "",
    ]
    assert [result.ended for result in measured.results] == [True, False, True, False, True]
    assert [len(result.ids) for result in measured.results] == [7, 10, 5, 10, 0]
    assert [result.exact for result in measured.results] == [True, False, False, None, False]
    assert [result.contains for result in measured.results] == [True, True, False, None, None]
    assert [result.regex for result in measured.results] == [True, False, None, True, None]
    assert [result.repetition for result in measured.results] == [0, 0, 0, 5 / 7, None]
    assert measured.repetition == pytest.approx(5 / 7 / 4)
    assert measured.ended_share == 3 / 5
    written = [" Paris.", " Parisians"[:10], "Paris", "ababababab", ""]
    assert measured.distinct_1 == len(set("".join(written))) / 32
    assert (
        measured.distinct_2
        == len({pair for text in written for pair in itertools.pairwise(text)}) / 28
    )
    # All tokens are equally likely, and the shortest target is therefore the likeliest.
    assert [result.target_tokens for result in measured.results] == [6, 6, 6, 0, 1]
    assert measured.results[0].nats == pytest.approx(6 * math.log(BYTE.vocab_size))
    assert measured.results[3].nats is None and measured.results[3].fits
    assert measured.generated_per_second and measured.scored_per_second


def test_an_answer_is_exact_as_a_whole() -> None:
    chat = ChatFormat("instruction-output", BYTE)
    cases = cases_of(*(Case(prompt=text, target="Paris") for text in "1234"), chat=True, length=9)
    measured = measure_replies(
        {"1": " Paris\n$", "2": " Paris, I\n$", "3": " Paris $", "4": " Paris\n\n\n\n"}, cases, chat
    )
    assert [result.continuation for result in measured.results] == [
        "Paris",
        "Paris, I",
        "Paris",
        "Paris",
    ]
    assert [result.exact for result in measured.results] == [True, False, True, True]
    assert [result.ended for result in measured.results] == [True, False, True, False]
    # " Paris\n" and the end of the turn
    assert {(result.target_tokens, result.target_bytes) for result in measured.results} == {(8, 5)}


def test_a_target_that_its_tokens_lose_has_no_bits_per_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(results, "is_lost", lambda tokenizer, text: text == " bb")
    measured = measure_replies({}, cases_of(Case(prompt="a", target=" bb")))
    [result] = measured.results
    assert (result.target_bytes, result.target_tokens > 0) == (0, True)
    assert BITS_PER_BYTE.count(result) is None
    assert NATS_PER_TOKEN.count(result) is not None


def test_the_first_of_equally_likely_choices_is_chosen() -> None:
    measured = measure_replies(
        {}, cases_of(Case(prompt="a", target=" bb", choices=[" cc", " bb", " ddd"]))
    )
    assert (measured.results[0].chosen, measured.results[0].right) == (" cc", False)


def test_what_begins_with_a_target() -> None:
    assert (
        begins_with(" Paris", " Paris")
        and begins_with(" Paris, France", " Paris")
        and begins_with(" 3.", " 3")
    )
    assert (
        not begins_with(" Parisian", " Paris")
        and not begins_with(" 35", " 3")
        and not begins_with("Paris", " Paris")
    )
    assert not begins_with(" caféé", " café")


def test_repetition() -> None:
    assert repetition([1, 2, 3, 4]) is None
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([7] * 10) == 6 / 7
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == 1 / 5


def test_a_regular_expression_that_takes_years_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "REGEX_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGALRM)
    cases = cases_of(Case(prompt="a", regex="(a+)+$"), length=60)
    with pytest.raises(
        ConfigError,
        match=(
            r"^cases/some.yaml: cases\[0\].regex: took more than 0.05 s for 41 characters, got"
            r" '\(a\+\)\+\$'"
        ),
    ):
        measure_replies({"a": "a" * 40 + "b$"}, cases)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert search("(a+)+$", "aaa", "")


def test_damaged_weights_are_said() -> None:
    model = decoder(BYTE.vocab_size)
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(NonFiniteError):
        measure_set(model, BYTE, None, cases_of(TEXTS[0]))


def test_what_was_written_is_looked_for_in_the_training_text() -> None:
    class Store:
        tokens, text_tokens, text_bytes = 17, 8, 16

        def read(self, start: int, length: int) -> Any:
            import numpy as np

            return np.frombuffer(b"xx the theory xxx", np.uint8)[start : start + length]

    text = TrainingText(BYTE, (Store(),))  # type: ignore[arg-type]
    replies = {"a": " theory of"}
    cases = cases_of(Case(prompt="a", regex="x"), Case(prompt="b", regex="x"), length=10)
    model = ScriptedDecoder(
        {
            (BYTE.eos_id, *BYTE.encode(prompt)): BYTE.encode(reply)
            for prompt, reply in replies.items()
        }
    )
    plain = measure_set(model, BYTE, None, cases)
    (with_copies,) = look_for_copies(text, [plain])
    copies = with_copies.memorised
    assert copies is not None
    assert (copies.longest_run, copies.longest_text) == (8, " theory ")
    assert plain.memorised is None
