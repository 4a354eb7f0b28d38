"""Run model, objectives, validation, sampling and training steps on a pretended CUDA device.

A tensor made on the wrong device stops them there, as on a GPU. All values are computed on the CPU,
so each result must equal that of an ordinary CPU run to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader

import model as model_file
from lm.config.schema.config import Config
from lm.config.schema.finetune import LoraConfig
from lm.config.schema.model import ModelConfig
from lm.config.schema.optimizer import OptimizerConfig
from lm.evaluation.scoring import continued, score
from lm.evaluation.validation import evaluate
from lm.generation.sampling import Sampling, filter_logits, generate, sample_next
from lm.optim import loss
from lm.optim.averaging import WeightAverage
from lm.optim.objectives import NextToken, Preference, frozen_reference
from lm.optim.optimizers import clip_gradients, make_optimizer
from lm.runs.incidents import Incidents
from lm.surgery.lora import add_adapters
from lm.training.module import LanguageModel
from lm.training.parts import Parts
from model import Decoder
from tests.support.pretend_cuda import CPU, CudaGenerator, OnCuda, WrongDeviceError, pretend_cuda

VOCABULARY, LENGTH = 50, 16
LLAMA: dict[str, Any] = {"n_kv_heads": 2, "qk_norm": True}
GPT2: dict[str, Any] = {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True}
SHAPES = [LLAMA, GPT2 | {"tie_embeddings": False}, LLAMA | {"gradient_checkpointing": True}]
READINGS = ["logits", "labels", "document_ids", "cache", "padding"]


@pytest.fixture(autouse=True)
def cpu_like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU compute as a GPU does, so that results are equal to the bit."""
    monkeypatch.setattr(model_file, "by_hand", lambda _: False)


def on_both(action: Callable[[torch.device], Any]) -> Any:
    """Run `action` on the pretended device and on the CPU, compare all tensors, return the last."""
    with pretend_cuda() as device:
        pretended = action(device)
    real = action(CPU)
    for ours, theirs in zip(*(tree_flatten(x)[0] for x in (pretended, real)), strict=True):
        if isinstance(theirs, Tensor):
            assert isinstance(ours, OnCuda), "the result is not on the device"
            assert torch.equal(ours.held, theirs)
        else:
            assert ours == theirs
    return real


def make_decoder(device: torch.device, seed: int = 0, **shape: Any) -> Decoder:
    """Build on the CPU, then move, as a run does."""
    torch.manual_seed(seed)
    size = {"context_length": LENGTH, "n_layers": 2, "d_model": 16, "n_heads": 4, "init_std": 0.2}
    return Decoder(ModelConfig(**size, vocab_size=VOCABULARY, **(shape or LLAMA))).to(device)


def make_rows(rows: int = 4, length: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Return rows on the CPU, of four documents each: two pairs with a prompt of one token."""
    ids = torch.randint(0, VOCABULARY, (rows, length + 1), generator=chance(seed))
    documents = torch.arange(length).expand(rows, length) * 4 // length
    labels = ids[:, 1:].clone()
    labels[:, ::2] = loss.IGNORE_INDEX
    return {"input_ids": ids[:, :-1], "labels": labels, "document_ids": documents}


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read(decoder: Decoder, rows: dict[str, Tensor], reading: str) -> list[Tensor]:
    ids, labels = rows["input_ids"], rows["labels"]
    if reading in ("cache", "padding"):
        cache = decoder.new_cache(len(ids))
        if reading == "padding":
            cache.padding = torch.arange(len(ids), device=ids.device)
        return [decoder(ids[:, :5], cache=cache), decoder(ids[:, 5:], cache=cache)]
    documents = rows["document_ids"] if reading == "document_ids" else None
    return [decoder(ids, None if reading == "logits" else labels, documents)]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=["llama", "gpt2", "recomputed"])
def test_forward_and_backward(shape: dict[str, Any], reading: str) -> None:
    if "cache" in reading or "padding" in reading:
        shape = shape | {"gradient_checkpointing": False}

    def action(device: torch.device) -> list[Tensor]:
        decoder = make_decoder(device, **shape)
        rows = {name: value.to(device) for name, value in make_rows().items()}
        with torch.set_grad_enabled(reading not in ("cache", "padding")):
            results = read(decoder, rows, reading)
        if results[0].requires_grad:
            results[0].sum().backward()
        gradients = [w.grad for w in decoder.parameters() if w.grad is not None]
        return [result.detach() for result in results] + gradients

    assert len(on_both(action)) > 1


def test_a_loss_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[int] = []
    recompute = loss.recompute
    monkeypatch.setattr(
        loss, "recompute", lambda *given, **how: pieces.append(1) or recompute(*given, **how)
    )
    monkeypatch.setattr(loss, "MAX_LOGITS", 5 * VOCABULARY)
    test_forward_and_backward(LLAMA, "labels")
    assert len(pieces) > 2


def test_adapters() -> None:
    def action(device: torch.device) -> list[Tensor]:
        decoder = make_decoder(device)
        add_adapters(decoder, LoraConfig(rank=2, targets=["layers.*"]), four_bits=False)
        losses = decoder(*(value.to(device) for value in make_rows().values()))
        losses.sum().backward()
        return [w.grad for w in decoder.parameters() if w.grad is not None]

    assert len(on_both(action)) == 28


def test_attention_by_products_is_for_cpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Tensor) -> Tensor:
        raise AssertionError("by products")

    monkeypatch.setattr(model_file, "attend_by_products", refuse)
    ids = make_rows()["input_ids"]
    with pretend_cuda() as device:
        make_decoder(device).to(torch.bfloat16)(ids.to(device))
    with pytest.raises(AssertionError, match="by products"):
        make_decoder(CPU).to(torch.bfloat16)(ids)


def objectives() -> Iterator[NextToken | Preference]:
    yield NextToken()
    yield Preference(0.1, frozen_reference(make_decoder(CPU, seed=1)))


@pytest.mark.parametrize("number", [0, 1], ids=["next token", "preference"])
def test_objectives_and_validation(number: int) -> None:
    """The batches are on the CPU, as the loader makes them. The rows are of two sources."""
    sizes = np.arange(VOCABULARY, dtype=np.float64)

    def action(device: torch.device) -> Any:
        objective, decoder = list(objectives())[number], make_decoder(device)
        rows = {name: value.to(device) for name, value in make_rows().items()}
        losses = objective.losses(decoder, rows)
        source = {"source": torch.tensor([0, 1, 1, 0])}
        result = evaluate(
            decoder, [make_rows(seed=s) | source for s in (0, 1)], sizes, objective,
            {"a": sizes, "b": sizes},
        )  # fmt: skip
        figures = [result.loss, result.tokens, repr(result.figures_by_source)]
        return [losses.detach(), objective.count(rows), *figures]

    assert on_both(action)[3] > 0


def test_filters_and_draws() -> None:
    options = Sampling(0.7, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.2)

    def action(device: torch.device) -> list[Tensor]:
        logits = torch.randn(3, VOCABULARY, generator=chance(0)).to(device)
        seen = torch.arange(VOCABULARY, device=device).expand(3, -1) % 3 == 0
        generator = make_generator(device)
        drawn = [sample_next(logits, o, seen, generator) for o in (options, Sampling(0))]
        return [filter_logits(logits, options, seen), *drawn]

    assert len(on_both(action)) == 3


@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1, 2, 3], [4], [5] * 20]])
def test_generation_beyond_the_context(prompts: list[list[int]]) -> None:
    def action(device: torch.device) -> Any:
        arguments = prompts, Sampling(0.9, top_k=10, repetition_penalty=1.1), 24, {7}
        return list(generate(make_decoder(device), *arguments, make_generator(device), VOCABULARY))

    assert len(on_both(action)) > 1


def make_generator(device: torch.device) -> torch.Generator:
    return (chance(1) if device == CPU else CudaGenerator()).manual_seed(1)


def test_scores_of_given_tokens() -> None:
    rows = [continued(0, range(n), range(3), LENGTH) for n in (2, 5, 12)]

    def action(device: torch.device) -> list[list[float]]:
        return [scores.nats.tolist() for scores in score(make_decoder(device), rows, most=2)]

    assert len(on_both(action)) == len(rows)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])  # AdamW is fused, or not
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("cautious", [False, True])
def test_optimizers_and_averages(cautious: bool, name: str, precision: str) -> None:
    def action(device: torch.device) -> list[Tensor]:
        decoder = make_decoder(device, **GPT2)
        settings = OptimizerConfig(name=name, cautious_decay=cautious)
        optimizer = make_optimizer(decoder, settings, precision)
        average = WeightAverage(decoder, 0.5)
        for seed in range(2):
            decoder(*(value.to(device) for value in make_rows(seed=seed).values())).sum().backward()
            norm = nn.utils.get_total_norm(weight.grad for weight in decoder.parameters())
            clip_gradients(optimizer, 0.5, norm)
            optimizer.step()
            optimizer.zero_grad()
            average.update(decoder)
        with average.swapped_in(decoder):
            swapped = [weight.detach().clone() for weight in decoder.parameters()]
        average.load({key: value.cpu() for key, value in average.weights.items()})
        states = [
            value
            for state in optimizer.state.values()
            for key, value in state.items()
            # torch keeps the unfused AdamW's step on the CPU
            if key != "step" or (name, precision, cautious) != ("adamw", "fp16", False)
        ]
        return [*swapped, *states, *average.weights.values(), *decoder.state_dict().values()]

    assert len(on_both(action)) > 100


class PretendedGpu(CPUAccelerator):
    """Lets Lightning's CPU accelerator have the pretended device."""

    def setup_device(self, device: torch.device) -> None:
        pass


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("masked", [False, True])
def test_training_steps(name: str, masked: bool) -> None:
    """Lightning moves model and batches; then come three steps of two micro-batches."""
    config = Config.model_validate(
        {
            "data": {"source": {"format": "txt", "files": "unused"}, "document_mask": masked},
            "model": {"vocab_size": VOCABULARY},
            "optimizer": {"name": name, "warmup_steps": 0, "grad_clip": 0.5, "ema_decay": 0.5},
            "trainer": {"max_steps": 3, "batch_size": 4, "micro_batch_size": 2},
        }
    )
    names = ["input_ids", "labels"] + ["document_ids"] * masked
    steps = [make_rows(seed=step) for step in range(3)]
    batches = [
        {"step": step} | {key: rows[key].unflatten(0, (2, 2)) for key in names}
        for step, rows in enumerate(steps)
    ]

    def action(device: torch.device) -> list[Tensor]:
        nothing: Any = None
        parts = Parts(config, nothing, nothing, lambda: make_decoder(CPU, dropout=0.1))
        vars(parts)["precision"] = "fp32"
        module = Recorder(parts, Incidents(None, str, "stop", 10, print))
        strategy = SingleDeviceStrategy(device, PretendedGpu())
        trainer = lightning.Trainer(
            strategy=strategy, max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(batches, batch_size=None))
        return module.results

    assert len(on_both(action)) > 40


class Recorder(LanguageModel):
    """A model that keeps the results before Lightning moves it back to the CPU."""

    def on_train_end(self) -> None:
        assert self.average is not None
        weights = [weight.detach().clone() for weight in self.decoder.parameters()]
        self.results = [self.loss, self.grad_norm, *weights, *self.average.weights.values()]


def without_device(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: function(*args, **{**kwargs, "device": None})


@pytest.mark.parametrize(
    ("factory", "shape", "reading"),
    [
        ("arange", LLAMA, "logits"),
        ("arange", GPT2, "logits"),
        ("arange", LLAMA, "document_ids"),
        ("zeros", LLAMA, "cache"),
    ],
)
def test_a_missing_device_of_the_model_is_found(
    factory: str, shape: dict[str, Any], reading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, factory, without_device(getattr(torch, factory)))
    with pytest.raises(WrongDeviceError):
        test_forward_and_backward(shape, reading)


@pytest.mark.parametrize("factory", ["zeros", "tensor"])
def test_a_missing_device_of_the_loop_is_found(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, factory, without_device(getattr(torch, factory)))
    with pytest.raises(WrongDeviceError):
        test_generation_beyond_the_context([[1], [2, 3]])


def test_a_generator_of_the_cpu_is_found() -> None:
    with pretend_cuda() as device, pytest.raises(WrongDeviceError, match="generator on cpu"):
        torch.ones(2, 5, device=device).multinomial(1, generator=chance(0))
