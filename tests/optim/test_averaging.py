"""Test the average of the weights: python -m pytest tests/optim/test_averaging.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lm.config.schema.model import ModelConfig
from lm.optim.averaging import WeightAverage
from model import Decoder


def decoder(seed: int = 0, tie_embeddings: bool = True) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(
        ModelConfig(
            vocab_size=11, context_length=8, n_layers=1, d_model=16, tie_embeddings=tie_embeddings
        )
    )


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def test_it_starts_as_a_copy_of_its_own() -> None:
    model = decoder()
    average, before = WeightAverage(model, 0.9), copied(model)
    assert same(average.weights, before)
    disturb(model)
    assert same(average.weights, before)  # the storage is not shared
    assert not any(tensor.requires_grad for tensor in average.weights.values())


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_equals_the_slow_loop(decay: float) -> None:
    model = decoder()
    average = WeightAverage(model, decay)
    slow = {name: tensor.double() for name, tensor in copied(model).items()}
    for _ in range(50):
        disturb(model)
        average.update(model)
        for name, parameter in model.named_parameters():
            slow[name] = decay * slow[name] + (1 - decay) * parameter.detach().double()
    for name, tensor in average.weights.items():
        torch.testing.assert_close(tensor.double(), slow[name], rtol=1e-5, atol=1e-5)


def test_a_decay_near_one_moves_by_its_share_each_time() -> None:
    """The form average + share * difference keeps small steps. The form decay * average would round
    them away.
    """
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.99999)
    nn.init.ones_(model.weight)
    for _ in range(1000):
        average.update(model)
    assert average.weights["weight"].item() == pytest.approx(1 - 0.99999**1000, rel=1e-4)


def test_without_movement_it_stays_to_the_bit() -> None:
    model = decoder()
    average, before = WeightAverage(model, 0.9), copied(model)
    for _ in range(10):
        average.update(model)
    assert same(average.weights, before)


def test_updating_leaves_the_model_alone() -> None:
    model = decoder()
    average = WeightAverage(model, 0.5)
    disturb(model)
    before = copied(model)
    average.update(model)
    assert same(copied(model), before)
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_swapped_in_the_model_has_the_averages_and_then_its_own_weights(
    tie_embeddings: bool,
) -> None:
    model = decoder(tie_embeddings=tie_embeddings)
    average = WeightAverage(model, 0.7)
    disturb(model)
    average.update(model)
    own, averaged = (
        copied(model),
        {name: tensor.clone() for name, tensor in average.weights.items()},
    )
    storages = [parameter.data_ptr() for parameter in model.parameters()]
    with average.swapped_in(model):
        assert same(copied(model), averaged)
        assert (model.lm_head.weight is model.embed_tokens.weight) is tie_embeddings
        # compiled code and DDP keep references to this storage
        assert [parameter.data_ptr() for parameter in model.parameters()] == storages
    assert same(copied(model), own)
    assert same(average.weights, averaged)


def test_swapped_out_after_an_exception_too() -> None:
    model = decoder()
    average = WeightAverage(model, 0.7)
    disturb(model)
    own, averaged = (
        copied(model),
        {name: tensor.clone() for name, tensor in average.weights.items()},
    )
    with pytest.raises(KeyboardInterrupt), average.swapped_in(model):
        raise KeyboardInterrupt
    assert same(copied(model), own)
    assert same(average.weights, averaged)


def test_before_the_first_update_swapping_changes_nothing() -> None:
    model = decoder()
    own = copied(model)
    with WeightAverage(model, 0.9).swapped_in(model):
        assert same(copied(model), own)


def test_training_goes_on_as_if_nothing_had_been_swapped() -> None:
    def train(validate: bool) -> dict[str, Tensor]:
        model = decoder()
        average = WeightAverage(model, 0.9)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        ids = torch.arange(8)[None]
        for _ in range(3):
            model(ids, ids).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
            if validate:
                with average.swapped_in(model), torch.no_grad():
                    model(ids, ids)
        return copied(model) | {
            f"average {name}": tensor for name, tensor in average.weights.items()
        }

    assert same(train(validate=True), train(validate=False))


def test_saved_averages_are_taken_up() -> None:
    saved = WeightAverage(decoder(seed=1), 0.9).weights
    model = decoder(seed=2)
    average, own = WeightAverage(model, 0.9), copied(model)
    average.load(saved)
    assert same(average.weights, saved)
    assert same(copied(model), own)
    disturb(model)
    average.update(model)
    assert same(saved, WeightAverage(decoder(seed=1), 0.9).weights)  # copied, not kept


@pytest.mark.usefixtures("takes_seconds")
def test_names_are_those_of_the_uncompiled_model() -> None:
    """A compiled run's averages have plain names, so that the file loads into an eager model."""
    model = decoder()
    names = list(copied(model))
    model.compile(backend="eager")
    average = WeightAverage(model, 0.9)
    assert list(average.weights) == names
    average.update(model)
