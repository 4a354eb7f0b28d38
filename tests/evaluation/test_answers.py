"""A decoder's answers: compared with slow, obvious computations, and checked on decoders whose
answers are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lm.config.schema.finetune import FinetuneConfig
from lm.config.schema.model import ModelConfig
from lm.documents.conversations import Conversation, Turn
from lm.documents.templates import LEARNED, ChatFormat
from lm.evaluation.answers import (
    Answer,
    Loss,
    Measured,
    answer,
    choose,
    losses_of,
    measure_answers,
    with_rejected,
)
from lm.evaluation.examples import evenly
from lm.generation.sampling import Sampling, generate
from lm.reports.finetune_figures import (
    confusion,
    exact_match,
    figures,
    reward_accuracy,
    token_f1,
    words,
)
from lm.system.errors import NonFiniteError
from lm.tokenizer.tokenizer import load_tokenizer
from model import Decoder
from tests.support.scripted import ScriptedDecoder

BYTE = load_tokenizer("byte")
CHAT = ChatFormat("instruction-output", BYTE)
SEP, EOS = BYTE.specials["<|sep|>"], BYTE.eos_id
CHOICES = ["ham", "spam", "neither of the two"]
LEARNED_POSITIONS = {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True}


def asked(prompt: str, reply: str, rejected: str | None = None, input: str = "") -> Conversation:
    return Conversation((Turn("user", prompt, input), Turn("assistant", reply)), rejected)


CONVERSATIONS = [
    asked("How?", "ham"),
    asked(
        "Say something that is somewhat longer than the others are.",
        "Something that is somewhat longer.",
        input="this",
    ),
    asked("a", "spam"),
    Conversation(
        (
            Turn("user", "1"),
            Turn("assistant", "one"),
            Turn("user", "2 é"),
            Turn("assistant", "zwei €"),
        )
    ),
    asked("b" * 40, "ham"),
    asked("cc", "no", rejected="yes, of course"),
    asked("dd", "a longer preferred answer", rejected="x"),
]


def settings(**given: Any) -> FinetuneConfig:
    return FinetuneConfig(
        **({"base": "base.ckpt", "choices": CHOICES, "report_tokens": 12} | given)
    )


def decoder(context: int = 160, seed: int = 0, **shape: Any) -> Decoder:
    """Return a decoder whose scores differ so much that rounding decides no order."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": BYTE.vocab_size,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "init_std": 0.3,
    } | shape
    return Decoder(ModelConfig(context_length=context, **shape)).eval()


@torch.no_grad()
def slow_loss(model: Any, ids: Sequence[int], learned: Sequence[bool]) -> Loss:
    """Return the loss of one sequence alone, after its opening EOS, from the probability of each
    token.
    """
    probabilities = model(torch.tensor([[EOS, *ids]]))[0].double().softmax(-1)
    costs = [-math.log(probabilities[i, token]) for i, token in enumerate(ids)]
    return Loss(
        sum(cost for cost, counts in zip(costs, learned, strict=True) if counts), sum(learned)
    )


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("shape", [{}, LEARNED_POSITIONS])
@pytest.mark.parametrize("mask_prompt", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_loss_is_that_of_each_token_read_alone(
    shape: dict[str, Any], mask_prompt: bool, rows: int
) -> None:
    model, chat = decoder(**shape), ChatFormat("instruction-output", BYTE, mask_prompt=mask_prompt)
    sequences = [chat.encode(Conversation(conversation.turns)) for conversation in CONVERSATIONS]
    with torch.no_grad():
        losses = losses_of(model, chat, sequences, rows)
    for loss, sequence in zip(losses, sequences, strict=True):
        expected = slow_loss(
            model, sequence.ids.tolist(), [bool(flag & LEARNED) for flag in sequence.flags]
        )
        assert loss is not None and loss.tokens == expected.tokens > 0
        assert math.isclose(loss.nats, expected.nats, rel_tol=1e-5)


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("shape", [{}, LEARNED_POSITIONS])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_choice_is_the_likeliest_answer_with_its_end(shape: dict[str, Any], rows: int) -> None:
    model, generator = decoder(**shape), torch.Generator().manual_seed(0)
    answers = [torch.randint(256, (2 + i // 7,), generator=generator).tolist() for i in range(8)]
    prompts = [
        [EOS, *torch.randint(256, (n,), generator=generator).tolist()]
        for n in (60, 0, 1, 7, 7, 30, 2, 12, 31)
    ]
    with torch.no_grad():
        chosen = choose(model, prompts, answers, rows)
    assert len(set(chosen)) > 1, "else the test shows little"
    for prompt, best in zip(prompts, chosen, strict=True):
        slow = [
            slow_loss(
                model, [*prompt[1:], *ids], [False] * (len(prompt) - 1) + [True] * len(ids)
            ).nats
            for ids in answers
        ]
        assert best == slow.index(min(slow))


def test_the_choice_is_not_by_the_mean_over_tokens() -> None:
    """A short answer is likelier than a long one, although the tokens of the long one are likelier
    on average.
    """

    class Half(torch.nn.Linear):
        """Give token 1 the probability 1/2 and tokens 2 and 3 the probability 1/4 at every
        position.
        """

        def new_cache(self, rows: int, length: int) -> Any:
            return type("Cache", (), {"length": 0})()

        def forward(self, ids: Tensor, cache: Any) -> Tensor:  # type: ignore[override]
            scores = torch.full((len(ids), 1, 8), -50.0)
            scores[..., [1, 2, 3]] = torch.tensor([0.5, 0.25, 0.25]).log()
            return scores

    model = Half(1, 1)
    assert choose(model, [[0]], [[1, 1, 1], [2]]) == [1], (
        "1/8 against 1/4, where the means would be 1/2 against 1/4"
    )
    assert choose(model, [[0], [0, 0]], [[1, 2], [2, 2], [1]]) == [2, 2]


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("shape", [{}, LEARNED_POSITIONS])
def test_the_answers_are_those_of_each_prompt_alone(shape: dict[str, Any]) -> None:
    model = decoder(**shape)
    prompts = [CHAT.prompt(conversation.prompt) for conversation in CONVERSATIONS]
    for rows in (1, 3, 8):
        for prompt, ours in zip(prompts, answer(model, CHAT, prompts, 12, rows), strict=True):
            steps = generate(
                model,
                [prompt],
                Sampling(temperature=0),
                12,
                CHAT.stop_ids,
                torch.Generator(),
                BYTE.vocab_size,
            )
            ids = [int(step[0]) for step in steps if step[0] is not None]
            ended = ids[-1] in (SEP, EOS)
            text = BYTE.decode(ids).strip()
            assert ours == Answer(text, len(ids) - ended, ended)


def says(replies: dict[str, list[int]]) -> ScriptedDecoder:
    """Return a decoder that answers each message with given ids."""
    return ScriptedDecoder(
        {tuple(CHAT.prompt((Turn("user", text),))): ids for text, ids in replies.items()}
    )


def test_the_figures_of_known_answers() -> None:
    replies = {
        "equal": [*b" The Answer!\n", SEP],
        "half": [*b" one three\n", SEP],
        "eos": [*b"right", EOS],
        "endless": [*b" right" * 50],
        "nothing": [SEP],
    }
    references = {
        "equal": "answer",
        "half": "one two",
        "eos": "wrong",
        "endless": "right",
        "nothing": "something",
    }
    conversations = [asked(prompt, reference) for prompt, reference in references.items()]
    found = measure_answers(
        says(replies), CHAT, conversations, settings(choices=[], report_tokens=20)
    )
    assert found.answers == [
        Answer("The Answer!", 13, True),
        Answer("one three", 11, True),
        Answer("right", 5, True),
        Answer("right right right r", 20, False),  # a space and nineteen more
        Answer("", 0, True),
    ]
    numbers = figures(conversations, found)
    assert numbers["answered"] == 5
    assert numbers["ended"] == 0.8
    assert numbers["exact_match"] == 0.2
    f1 = [1, 0.5, 0, 2 / 5, 0]  # "right right right r": 4 words, one of them shared, against 1
    assert math.isclose(float(numbers["token_f1"] or 0), sum(f1) / 5)
    assert numbers["answer_tokens"] == (13 + 11 + 5 + 20 + 0) / 5
    assert math.isclose(float(numbers["answer_loss"] or 0), math.log(BYTE.vocab_size), rel_tol=1e-6)
    learned = sum(len(CHAT.answer(reference)) for reference in references.values())
    assert numbers["scored_tokens"] == learned
    assert (
        numbers["accuracy"] is numbers["balanced_accuracy"] is numbers["preferred_likelier"] is None
    )


def measured(**lists: Any) -> Measured:
    places = max(map(len, lists.values()))
    names = ("answers", "losses", "rejected", "choices")
    return Measured(64, 0, **{name: lists.get(name, [None] * places) for name in names})


def test_the_loss_weighs_tokens_and_not_conversations() -> None:
    """The sums 2 and 90 over 1 and 9 tokens give 9.2 per token. The mean of the means is 6."""
    found = measured(losses=[Loss(2.0, 1), None, Loss(90.0, 9)])
    assert figures([asked("a", "b")] * 3, found)["answer_loss"] == 9.2


def test_the_choice_in_figures() -> None:
    conversations = [
        asked("x", reference) for reference in ("ham", "ham", "ham", "ham", "spam", "spam", "other")
    ]
    found = measured(choices=["ham", "ham", "ham", "spam", "spam", "ham", None])
    assert confusion(conversations, found) == {
        "ham": {"ham": 3, "spam": 1},
        "spam": {"ham": 1, "spam": 1},
    }
    numbers = figures(conversations, found)
    assert numbers["accuracy"] == 4 / 6
    assert numbers["balanced_accuracy"] == (3 / 4 + 1 / 2) / 2


def test_the_reward_is_what_was_gained_on_the_base() -> None:
    """Both answers of the first pair lose, the preferred one less. The preferred answer of the
    second pair is likelier but gains less.
    """
    before = measured(
        losses=[Loss(10, 1), Loss(4, 2), Loss(1, 1)], rejected=[Loss(5, 1), Loss(9, 1), None]
    )
    after = measured(
        losses=[Loss(11, 1), Loss(3, 2), Loss(1, 1)], rejected=[Loss(8, 1), Loss(5, 1), None]
    )
    assert reward_accuracy(before, after) == 0.5
    assert figures([asked("a", "b")] * 3, after)["preferred_likelier"] == 0.5
    assert reward_accuracy(before, before) == 0, "nothing was gained"
    assert reward_accuracy(measured(losses=[None]), measured(losses=[None])) is None


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("rows", [1, 3])
def test_nothing_depends_on_the_batches(rows: int) -> None:
    model, whole = decoder(), settings()
    expected, ours = (measure_answers(model, CHAT, CONVERSATIONS, whole, n) for n in (8, rows))
    assert ours.answers == expected.answers and all(expected.answers)
    assert (
        ours.choices
        == expected.choices
        == [expected.choices[0], None, expected.choices[2], None, expected.choices[4], None, None]
    )
    assert {expected.choices[0], expected.choices[2], expected.choices[4]} <= set(CHOICES)
    for some, others in ((ours.losses, expected.losses), (ours.rejected, expected.rejected)):
        for a, b in zip(some, others, strict=True):
            assert (a is None) == (b is None)
            assert (
                a is None
                or b is None
                or (a.tokens == b.tokens and math.isclose(a.nats, b.nats, rel_tol=1e-6))
            )


def test_a_rejected_answer_is_scored_as_if_it_were_the_answer() -> None:
    model = decoder()
    found = measure_answers(model, CHAT, CONVERSATIONS, settings())
    assert [loss is not None for loss in found.rejected] == [False] * 5 + [True] * 2
    others = measure_answers(
        model, CHAT, [with_rejected(conversation) for conversation in CONVERSATIONS[5:]], settings()
    )
    for a, b in zip(found.rejected[5:], others.losses, strict=True):
        assert (
            a is not None
            and b is not None
            and a.tokens == b.tokens
            and math.isclose(a.nats, b.nats, rel_tol=1e-6)
        )


def test_what_finds_no_room_is_left_out_and_counted() -> None:
    """A prompt needs a place for the first token of its answer; a sequence needs one for all of its
    tokens but the last.
    """
    prompt = len(CHAT.prompt((Turn("user", "abc"),)))
    conversations = [asked("abc", "ham"), asked("a", "x"), asked("abcd", "ham"), asked("", "ham")]
    found = measure_answers(
        decoder(context=prompt + 1),
        CHAT,
        conversations,
        settings(choices=["ham", "spam"], report_tokens=3),
    )
    assert found.no_room == 1
    assert [each is not None for each in found.answers] == [True, True, False, True]
    assert [each is not None for each in found.losses] == [False, True, False, False]
    found = measure_answers(
        decoder(context=prompt + len(CHAT.answer("spam")) - 1),
        CHAT,
        conversations,
        settings(choices=["ham", "spam"]),
    )
    assert [each is not None for each in found.losses] == [
        True,
        True,
        True,
        True,
    ], "the last token is no input"
    assert [each is not None for each in found.choices] == [
        True,
        False,
        False,
        True,
    ], "spam is longer than ham"


def test_no_more_prompts_are_answered_than_asked_for_and_all_are_scored() -> None:
    found = measure_answers(decoder(), CHAT, CONVERSATIONS, settings(report_prompts=3))
    assert [i for i, each in enumerate(found.answers) if each] == [0, 2, 4]
    assert all(found.losses)


def test_nothing_held_out() -> None:
    found = measure_answers(decoder(), CHAT, [], settings())
    assert found == Measured(160, 0, [], [], [], [])
    assert set(figures([], found).values()) <= {None, 0}


def test_the_decoder_stays_in_its_mode_and_dropout_is_off() -> None:
    model = decoder(dropout=0.5).train()
    found = measure_answers(model, CHAT, CONVERSATIONS, settings())
    assert model.training and all(module.training for module in model.modules())
    assert found == measure_answers(model, CHAT, CONVERSATIONS, settings())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_decoder_whose_weights_are_not_finite() -> None:
    model = decoder()
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="not finite"):
        measure_answers(model, CHAT, CONVERSATIONS, settings())


@pytest.mark.parametrize(
    ("text", "reference", "same", "f1"),
    [
        ("The cat.", "cat", True, 1),
        ("a  Cat\nsat", "the cat sat!", True, 1),
        ("cat cat dog", "cat", False, 2 * 1 / (3 + 1)),
        ("cat cat dog", "dog cat cat", False, 1),
        ("", "the", True, 1),
        ("", "cat", False, 0),
        ("cat", "...", False, 0),
        ("theatre", "atre", False, 0),
        ("don't", "dont", True, 1),
        ("U.S.", "us", True, 1),
        ("Éa", "éa", True, 1),
    ],
)
def test_words_are_compared_as_squad_does(text: str, reference: str, same: bool, f1: float) -> None:
    assert exact_match(text, reference) is same
    assert token_f1(text, reference) == token_f1(reference, text) == f1


@given(
    st.lists(st.sampled_from(["cat", "dog", "fish"])),
    st.lists(st.sampled_from(["cat", "dog", "fish"])),
)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(
    ours: list[str], theirs: list[str]
) -> None:
    left, shared = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            shared += 1
    expected = float(ours == theirs)
    if ours and theirs and shared:
        precision, recall = shared / len(ours), shared / len(theirs)
        expected = 2 * precision * recall / (precision + recall)
    assert math.isclose(
        token_f1(" ".join(ours), " ".join(theirs)),
        expected if shared or not (ours and theirs) else 0,
    )
    assert words(" ".join(ours)) == ours


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(0, 5, []), (3, 5, [0, 1, 2]), (10, 5, [0, 2, 4, 6, 8]), (7, 3, [0, 2, 4]), (4, 0, [])],
)
def test_evenly(count: int, most: int, expected: list[int]) -> None:
    assert evenly(range(count), most) == expected
