"""Compare direct preference optimisation with trl's, and with the paper's formula one pair at a
time.
"""

import contextlib
import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lm.config.schema.model import ModelConfig
from lm.evaluation.validation import evaluate
from lm.optim.loss import IGNORE_INDEX
from lm.optim.objectives import NextToken, Preference, frozen_reference
from model import Decoder

BETA = 0.3
SHAPE = ModelConfig(
    vocab_size=50, context_length=32, n_layers=2, d_model=16, n_heads=2, init_std=0.3
)


def make_decoder(seed):
    torch.manual_seed(seed)
    return Decoder(SHAPE)


def make_pairs(n, seed=0):
    """Return n lists of (prompt, chosen, rejected) ids, of many lengths."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, 6, (n, 3)).tolist()
    return [[torch.randint(1, 50, (length,)).tolist() for length in three] for three in lengths]


def rows_of(pairs, per_row, length=64):
    """Return rows as the data module does: each answer follows its prompt, in one document."""
    rows = {"input_ids": [], "labels": [], "document_ids": []}
    for first in range(0, len(pairs), per_row):
        ids, labels, documents = [], [], []
        for i, (prompt, *answers) in enumerate(pairs[first : first + per_row]):
            for j, answer in enumerate(answers):
                text = [0, *prompt, *answer]
                ids += text[:-1]
                labels += [IGNORE_INDEX] * len(prompt) + answer
                documents += [2 * i + j] * (len(text) - 1)
        padding = length - len(ids)
        rows["input_ids"].append(ids + [0] * padding)
        rows["labels"].append(labels + [IGNORE_INDEX] * padding)
        rows["document_ids"].append(documents + [documents[-1] + 1] * padding)
    return {name: torch.tensor(values) for name, values in rows.items()}


def log_likelihood(decoder, prompt, answer):
    text = torch.tensor([[0, *prompt, *answer]])
    scores = decoder(text[:, :-1]).log_softmax(dim=-1)[0, len(prompt) :]
    return scores.gather(1, torch.tensor(answer)[:, None]).sum()


def by_formula(policy, reference, pairs):
    losses = []
    for prompt, chosen, rejected in pairs:
        ratios = [
            log_likelihood(policy, prompt, answer) - log_likelihood(reference, prompt, answer)
            for answer in (chosen, rejected)
        ]
        losses.append(-F.logsigmoid(BETA * (ratios[0] - ratios[1])))
    return torch.stack(losses)


@pytest.mark.parametrize("per_row", [1, 3])
def test_the_loss_and_its_gradients_are_the_papers(per_row):
    policy, reference, pairs = make_decoder(0), make_decoder(1), make_pairs(7)
    objective, rows = Preference(BETA, frozen_reference(reference)), rows_of(pairs, per_row)
    losses = objective.losses(policy, rows)
    assert objective.count(rows) == 7
    losses.sum().backward()
    gradients = [parameter.grad.clone() for parameter in policy.parameters()]
    policy.zero_grad()
    wanted = by_formula(policy, reference, pairs)
    wanted.sum().backward()
    torch.testing.assert_close(losses[losses != 0], wanted, atol=1e-5, rtol=1e-5)
    for found, parameter in zip(gradients, policy.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in reference.parameters())


@pytest.mark.usefixtures("takes_seconds")
def test_the_loss_is_trls():
    dpo_trainer = pytest.importorskip(
        "trl.trainer.dpo_trainer", reason="pip install trl, to compare with it"
    )
    policy, reference, pairs = make_decoder(0), make_decoder(1), make_pairs(5)
    # first the chosen answers, then the rejected ones
    texts = [[0, *prompt, *answers[i]] for i in (0, 1) for prompt, *answers in pairs]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    prompts = [1 + len(prompt) for _ in (0, 1) for prompt, *_ in pairs]
    mask = torch.tensor(
        [
            [int(a <= i < len(text)) for i in range(longest)]
            for a, text in zip(prompts, texts, strict=True)
        ]
    )

    def model(decoder):
        def forward(input_ids, labels, **_):
            scores = decoder(input_ids[:, :-1]).log_softmax(dim=-1)
            chosen = scores.gather(2, input_ids[:, 1:, None])[..., 0] * (
                labels[:, 1:] != IGNORE_INDEX
            )
            nothing = torch.zeros_like(chosen)
            return SimpleNamespace(
                log_probs=chosen, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
            )

        return forward

    class Accelerator:
        device = torch.device("cpu")
        gather = gather_for_metrics = staticmethod(lambda value: value)

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        ref_model=model(reference),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=BETA,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    dpo_trainer.is_peft_model = lambda _: False
    dpo_trainer.disable_gradient_checkpointing = lambda *_: contextlib.nullcontext()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
    theirs = dpo_trainer.DPOTrainer._compute_loss(
        trainer, model(policy), inputs, return_outputs=False
    )
    rows = rows_of(pairs, 2)
    ours = Preference(BETA, frozen_reference(reference)).losses(policy, rows).sum() / Preference(
        BETA, frozen_reference(reference)
    ).count(rows)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_the_reference_itself_is_indifferent():
    policy = make_decoder(0)
    losses = Preference(BETA, frozen_reference(make_decoder(0))).losses(
        policy, rows_of(make_pairs(4), 2)
    )
    torch.testing.assert_close(losses[losses != 0], torch.full((4,), math.log(2)))


def test_padding_and_rows_without_a_pair_count_nothing():
    objective = Preference(BETA, frozen_reference(make_decoder(1)))
    rows = rows_of(make_pairs(3), 2)
    rows = {
        name: torch.cat([values, torch.full((1, 64), IGNORE_INDEX if name == "labels" else 0)])
        for name, values in rows.items()
    }
    assert objective.count(rows) == 3
    assert (objective.losses(make_decoder(0), rows) != 0).sum() == 3
    assert not objective.losses(make_decoder(0), rows)[-1].any()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_validation_averages_over_pairs(size):
    policy, reference, pairs = make_decoder(0), make_decoder(1), make_pairs(5)
    rows = rows_of(pairs, 1)
    batches = [
        {name: values[first : first + size] for name, values in rows.items()}
        for first in range(0, 5, size)
    ]
    result = evaluate(policy, batches, np.ones(300), Preference(BETA, frozen_reference(reference)))
    assert (result.tokens, math.isnan(result.bits_per_byte)) == (5, True)
    assert result.loss == pytest.approx(
        by_formula(policy, reference, pairs).mean().item(), rel=1e-5
    )


def test_next_tokens_are_what_the_decoder_says():
    decoder, rows = make_decoder(0), rows_of(make_pairs(3), 1)
    objective = NextToken()
    assert objective.count(rows) == (rows["labels"] != IGNORE_INDEX).sum()
    torch.testing.assert_close(
        objective.losses(decoder, rows),
        decoder(rows["input_ids"], rows["labels"], rows["document_ids"]),
    )
