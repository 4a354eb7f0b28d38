"""Filters are compared with `transformers`, draws with their probabilities, the decode loop with a
slow one without a cache.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as hf

from lm.config.schema.model import ModelConfig
from lm.generation.sampling import (
    Sampling,
    filter_logits,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    left_padded,
    penalise,
    sample_next,
)
from lm.system.errors import ConfigError, NonFiniteError
from model import Decoder

VOCABULARY = 50
NOTHING_SEEN = torch.zeros(1, VOCABULARY, dtype=torch.bool)
OFF = Sampling(temperature=1.0)
LEARNED_POSITIONS = {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True}


def random_logits(seed: int, rows: int = 4, ties: bool = False) -> Tensor:
    logits = 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return logits.round() if ties else logits


def as_mask(ids: Tensor) -> Tensor:
    return torch.zeros(len(ids), VOCABULARY, dtype=torch.bool).scatter(1, ids, True)


def kept(logits: Tensor) -> list[int]:
    return torch.nonzero(logits[0] > -math.inf)[:, 0].tolist()


# Filters


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
class TestAgainstTransformers:
    """Filters equal those of `transformers` bit for bit, on random logits with and without ties."""

    @pytest.mark.parametrize("k", [1, 2, 7, VOCABULARY, VOCABULARY + 10])
    def test_top_k(self, seed: int, ties: bool, k: int) -> None:
        logits = random_logits(seed, ties=ties)
        assert torch.equal(keep_top_k(logits, k), hf.TopKLogitsWarper(k)(None, logits))

    @pytest.mark.parametrize("p", [0.001, 0.3, 0.5, 0.9, 0.999])
    def test_top_p(self, seed: int, ties: bool, p: float) -> None:
        logits = random_logits(seed, ties=ties)
        assert torch.equal(keep_top_p(logits, p), hf.TopPLogitsWarper(p)(None, logits))

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
    def test_min_p(self, seed: int, ties: bool, share: float) -> None:
        logits = random_logits(seed, ties=ties)
        assert torch.equal(keep_min_p(logits, share), hf.MinPLogitsWarper(share)(None, logits))

    @pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 5.0])
    def test_repetition_penalty(self, seed: int, ties: bool, penalty: float) -> None:
        logits = random_logits(seed, ties=ties)
        # 30 of 50 ids, so that some repeat
        ids = torch.randint(VOCABULARY, (4, 30), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(
            penalise(logits, penalty, as_mask(ids)),
            hf.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits),
        )

    def test_all_in_order(self, seed: int, ties: bool) -> None:
        logits = random_logits(seed, ties=ties)
        ids = torch.randint(VOCABULARY, (4, 30), generator=torch.Generator().manual_seed(seed))
        expected = logits
        for processor in in_the_order_of_transformers():
            expected = processor(ids, expected)
        options = Sampling(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.3)
        ours = filter_logits(logits, options, as_mask(ids))
        assert torch.equal(ours, expected)
        assert (ours > -math.inf).any(dim=-1).all()


def in_the_order_of_transformers() -> Any:
    from transformers import GenerationConfig, GenerationMixin

    class Model(GenerationMixin):
        config = type("Config", (), {"is_encoder_decoder": False})()

    settings = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.3
    )
    processors = Model()._get_logits_processor(settings, input_ids_seq_length=30)
    assert len(processors) == 5
    return processors


def test_the_order_matters() -> None:
    """If the order did not matter, the test of it would prove nothing."""
    logits = random_logits(0)
    late_temperature = keep_top_p(logits, 0.8) / 2
    assert not torch.equal(
        late_temperature,
        filter_logits(logits, Sampling(temperature=2, top_p=0.8), NOTHING_SEEN.expand(4, -1)),
    )


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert kept(keep_top_p(logits, 0.4)) == [0]
    assert kept(keep_top_p(logits, 0.6)) == [0, 1]
    assert kept(keep_top_p(logits, 0.9)) == [0, 1, 2]
    assert kept(keep_top_p(logits, 1e-9)) == [0]
    assert len(kept(keep_top_p(torch.zeros(1, 4), 0.5))) == 2, (
        "two quarters reach the threshold exactly"
    )


def test_options_that_are_off_change_nothing() -> None:
    logits = random_logits(1)
    assert torch.equal(
        filter_logits(logits, OFF, torch.ones(4, VOCABULARY, dtype=torch.bool)), logits
    )


def test_the_penalty_moves_both_signs_down_and_once() -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, 2.0]])
    seen = torch.tensor([[True, True, True, False]])
    assert penalise(logits, 2.0, seen).tolist() == [[1.0, -4.0, 0.0, 2.0]]


# The draw


@pytest.mark.parametrize("temperature", [0.0, 1e-45])
def test_greedy_is_the_argmax_after_the_penalty(temperature: float) -> None:
    logits, generator = torch.tensor([[1.0, 3.0, 2.9]]), torch.Generator()
    seen = torch.tensor([[False, True, False]])
    assert sample_next(logits, Sampling(temperature=temperature), seen, generator).tolist() == [1]
    assert sample_next(
        logits, Sampling(temperature=temperature, repetition_penalty=2.0), seen, generator
    ).tolist() == [2]


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    options, n = Sampling(temperature=2.0, top_k=3), 20_000
    ids = sample_next(
        2 * probabilities.log().expand(n, -1),
        options,
        torch.zeros(n, 4, dtype=torch.bool),
        torch.Generator().manual_seed(1),
    )
    counts = ids.bincount(minlength=4) / n
    assert counts[3] == 0
    torch.testing.assert_close(counts[:3], probabilities[:3] / 0.9, atol=0.015, rtol=0)


def test_the_arithmetic_is_float32() -> None:
    """Bfloat16 cannot tell 256 from 257, and its softmax is coarse."""
    logits = torch.tensor([[5.0, 1.0, 0.0]], dtype=torch.bfloat16)
    seen = torch.tensor([[True, False, False]])
    draws = {
        dtype: sample_next(
            logits.to(dtype).expand(500, -1),
            Sampling(0.3, repetition_penalty=3.3),
            seen,
            torch.Generator().manual_seed(1),
        )
        for dtype in (torch.bfloat16, torch.float32)
    }
    assert torch.equal(draws[torch.bfloat16], draws[torch.float32])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_the_flag(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^--{field.replace('_', '-')} {value} "):
        Sampling(**{field: value})  # type: ignore[arg-type]


# The loop


def tiny_decoder(context: int = 16, **settings: Any) -> Decoder:
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "init_std": 0.3,
    }
    return Decoder(ModelConfig(context_length=context, **(shape | settings))).eval()


def ids_of(
    decoder: Any, prompt: list[int], options: Sampling, length: int, seed: int = 0, **more: Any
) -> list[list[int | None]]:
    generator = torch.Generator().manual_seed(seed)
    prompts = [prompt] * more.pop("num_samples", 1)
    stop_ids = more.pop("stop_ids", ())
    vocab_size = more.pop("vocab_size", decoder.config.vocab_size)
    return list(
        generate(decoder, prompts, options, length, stop_ids, generator, vocab_size, **more)
    )


@torch.no_grad()
def slow_ids(
    decoder: Decoder,
    prompt: list[int],
    options: Sampling,
    length: int,
    seed: int,
    stop_ids: Collection[int],
) -> Iterator[int]:
    """Yield tokens without a cache; each of them reads the whole window again."""
    context, generator = decoder.config.context_length, torch.Generator().manual_seed(seed)
    window, everything = list(prompt), list(prompt)
    for _ in range(length):
        if len(window) > context:
            window = window[-(context // 2) :]
        logits = decoder(torch.tensor([window]))[:, -1]
        seen = sorted(set(everything) - set(stop_ids))
        token = int(
            sample_next(logits, options, as_mask(torch.tensor([seen], dtype=torch.long)), generator)
        )
        window.append(token)
        everything.append(token)
        yield token
        if token in stop_ids:
            return


@pytest.mark.usefixtures("takes_seconds")
@settings(max_examples=25, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40),
    length=st.integers(1, 40),
    context=st.integers(2, 17),
    options=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.7, 1.5]),
        top_p=st.sampled_from([0.8, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
    ),
    stop_ids=st.sets(st.integers(0, VOCABULARY - 1), max_size=2),
    seed=st.integers(0, 99),
)
def test_the_cache_and_the_forgetting_change_nothing_but_the_time(
    prompt: list[int], length: int, context: int, options: Sampling, stop_ids: set[int], seed: int
) -> None:
    decoder = tiny_decoder(context)
    fast = [ids[0] for ids in ids_of(decoder, prompt, options, length, seed, stop_ids=stop_ids)]
    assert fast == list(slow_ids(decoder, prompt, options, length, seed, stop_ids))


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}, LEARNED_POSITIONS])
@pytest.mark.parametrize("chunks", [[1] * 16, [16], [5, 1, 1, 9], [1, 15], [15, 1]])
@torch.no_grad()
def test_decoding_with_the_cache_is_the_full_forward_at_every_position(
    settings: dict[str, Any], chunks: list[int]
) -> None:
    decoder = tiny_decoder(**settings)
    ids = torch.randint(VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(1))
    full, cache = decoder(ids), decoder.new_cache(3)
    for chunk in chunks:
        logits = decoder(ids[:, cache.length : cache.length + chunk], cache=cache)
        torch.testing.assert_close(logits[:, -1], full[:, cache.length - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("settings", [{}, {"qk_norm": True, "n_kv_heads": 1}, LEARNED_POSITIONS])
@pytest.mark.parametrize(("context", "length"), [(64, 12), (12, 30), (2, 6)])
@pytest.mark.parametrize(
    "options", [Sampling(temperature=0), Sampling(temperature=0, repetition_penalty=1.5)]
)
def test_prompts_of_different_lengths_are_continued_as_each_alone(
    settings: dict[str, Any], context: int, length: int, options: Sampling
) -> None:
    """This also holds where each context is full at another time, and where a prompt is longer than
    the context.
    """
    decoder = tiny_decoder(context, **settings)
    prompts = [
        torch.randint(VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)).tolist()
        for n in (5, 1, 20, 2, 3, 11, 12, 13)
    ]
    together = list(
        generate(decoder, prompts, options, length, {7, 11}, torch.Generator(), VOCABULARY)
    )
    for row, prompt in enumerate(prompts):
        alone = [ids[0] for ids in ids_of(decoder, prompt, options, length, stop_ids={7, 11})]
        ours = [ids[row] for ids in together]
        assert ours[: len(alone)] == alone
        assert not any(ours[len(alone) :]), "it has ended"


@pytest.mark.parametrize("changed", [[4], [9, 9, 9, 9, 9, 9, 9, 9, 9]])
def test_a_row_is_not_changed_by_its_neighbours(changed: list[int]) -> None:
    """The neighbours' tokens and lengths do not matter, nor does a row that ends early."""
    decoder, greedy = tiny_decoder(64), Sampling(temperature=0)
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9]]
    plain = [
        ids[:2]
        for ids in generate(
            decoder, [*prompts, [4, 4]], greedy, 10, (), torch.Generator(), VOCABULARY
        )
    ]
    assert [
        ids[:2]
        for ids in generate(
            decoder, [*prompts, changed], greedy, 10, (), torch.Generator(), VOCABULARY
        )
    ] == plain
    first = plain[0][0]
    assert all(ids[0] != first for ids in plain[1:3]), "else the test shows nothing"
    ending = list(generate(decoder, prompts, greedy, 10, {first}, torch.Generator(), VOCABULARY))
    assert [ids[0] for ids in ending[:3]] == [first, None, None]
    second = [ids[1] for ids in plain]
    expected = second[: second.index(first) + 1] if first in second else second
    assert [ids[1] for ids in ending] == expected


def test_equally_long_prompts_need_no_padding() -> None:
    """The model then makes no masks."""
    ids, padding = left_padded([[1, 2], [3, 4]], torch.device("cpu"))
    assert ids.tolist() == [[1, 2], [3, 4]] and padding is None
    ids, padding = left_padded([[1, 2, 3], [4]], torch.device("cpu"))
    assert (
        ids.shape == (2, 3)
        and ids[1, 2] == 4
        and padding is not None
        and padding.tolist() == [0, 2]
    )


def test_the_context_is_read_once_and_then_one_position_a_token() -> None:
    """When the context (8) is full, half of it is read again."""
    decoder, read = tiny_decoder(context=8), []
    forward = decoder.forward

    def counting(ids: Tensor, **more: Any) -> Tensor:
        read.append(ids.shape[1])
        return forward(ids, **more)

    decoder.forward = counting  # type: ignore[method-assign, assignment]
    ids_of(decoder, [1, 2, 3], OFF, 12)
    assert read == [3, 1, 1, 1, 1, 1, 4, 1, 1, 1, 1, 4]
    read.clear()
    ids_of(decoder, list(range(20)), OFF, 1)
    assert read == [4]


class Scripted:
    """A decoder that writes what it is told to: script[row][step] has all the probability."""

    class config:
        context_length = 100
        vocab_size = VOCABULARY

    training = False

    def __init__(self, script: list[list[int]]):
        self.script = torch.tensor(script)
        self.step = -1

    def new_cache(self, batch_size: int, length: int) -> Any:
        return type("Cache", (), {"length": 0})()

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def forward(self, ids: Tensor, cache: Any) -> Tensor:
        self.step += 1
        return (
            100
            * torch.nn.functional.one_hot(self.script[:, self.step], VOCABULARY).float()[:, None]
        )


def test_each_row_ends_by_itself() -> None:
    decoder = Scripted([[5, 9, 5, 5], [5, 5, 8, 5], [9, 5, 5, 5]])
    assert ids_of(decoder, [0], OFF, 4, stop_ids={8, 9}, num_samples=3) == [
        [5, 5, 9],
        [9, 5, None],
        [None, 8, None],
    ]
    assert decoder.step == 2, "nothing is computed when all have ended"


def test_the_penalty_spares_the_eos_that_opens_the_prompt() -> None:
    """A penalised EOS would make every text run on beyond its end."""

    class Torn(Scripted):
        def forward(self, ids: Tensor, cache: Any) -> Tensor:
            logits = torch.zeros(1, 1, VOCABULARY)
            logits[..., [3, 7]] = torch.tensor([10.0, 9.0])  # 3 if nothing is penalised
            return logits

    greedy = Sampling(temperature=0, repetition_penalty=2.0)
    assert ids_of(Torn([[0]]), [3], greedy, 1, stop_ids={3}) == [[3]]
    assert ids_of(Torn([[0]]), [3], greedy, 1, stop_ids={4}) == [[7]]


def test_ids_beyond_the_tokenizer_are_never_drawn() -> None:
    drawn = ids_of(
        tiny_decoder(), [1], Sampling(temperature=10.0), 60, num_samples=20, vocab_size=7
    )
    assert {token for ids in drawn for token in ids} == set(range(7))


def test_the_seed_decides_the_text_and_nothing_outside_notices() -> None:
    decoder = tiny_decoder().train()
    before = torch.get_rng_state()
    first = ids_of(decoder, [1], Sampling(), 30, seed=5, num_samples=2)
    torch.manual_seed(99)
    assert ids_of(decoder, [1], Sampling(), 30, seed=5, num_samples=2) == first
    assert ids_of(decoder, [1], Sampling(), 30, seed=6, num_samples=2) != first
    assert [ids[0] for ids in first] != [ids[1] for ids in first], "rows are drawn independently"
    torch.set_rng_state(before)
    ids_of(decoder, [1], Sampling(), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_off_while_it_samples_and_on_again_after_it() -> None:
    decoder = tiny_decoder(dropout=0.5).train()
    greedy = Sampling(temperature=0)
    assert ids_of(decoder, [1], greedy, 20) == ids_of(decoder.eval(), [1], greedy, 20)
    decoder.train()
    gradients: list[bool] = []
    decoder.norm.register_forward_hook(lambda *_: gradients.append(torch.is_grad_enabled()))
    for _ in generate(decoder, [[1]], greedy, 5, (), torch.Generator(), VOCABULARY):
        assert torch.is_grad_enabled(), "the caller's own work between two tokens is not affected"
        break
    assert gradients == [False]
    assert decoder.training and all(module.training for module in decoder.modules())
    steps = generate(decoder, [[1]], greedy, 5, (), torch.Generator(), VOCABULARY)
    next(steps)
    assert not decoder.training
    steps.close()
    assert decoder.training


def test_gradients_pass_through_a_decoder_that_has_sampled() -> None:
    decoder = tiny_decoder().train()
    ids_of(decoder, [1], Sampling(), 5)
    ids = torch.tensor([[1, 2, 3]])
    decoder(ids, ids).sum().backward()
    assert decoder.embed_tokens.weight.grad is not None


def test_under_bfloat16_autocast() -> None:
    """Validation generates under autocast during training."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(ids_of(tiny_decoder(), [1, 2], Sampling(), 20)) == 20


@pytest.mark.usefixtures("takes_seconds")
def test_a_compiled_decoder_is_not_compiled_again_for_every_length() -> None:
    calls: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(1)
        return graph.forward

    decoder = tiny_decoder()
    plain = ids_of(decoder, [1], Sampling(), 10)
    decoder.compile(backend=backend)
    assert ids_of(decoder, [1], Sampling(), 10) == plain
    assert not calls


def test_scores_that_are_not_finite_are_one_plain_error() -> None:
    decoder = tiny_decoder()
    with torch.no_grad():
        decoder.embed_tokens.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="not finite"):
        ids_of(decoder, [1], Sampling(), 5)
