"""Make one optimiser step over 24 rows with very uneven masks; the first process writes its
gradients. Run this alone or under torchrun:

python -m tests.support.one_step FOLDER CASE...

A case is MICRO_BATCH, followed by -fsdp, -lora, -qlora, -dropout, -muon, -cautious, -untied,
-pieces or -early. With -pieces each micro-batch is computed row by row. With -early the loss makes
its gradients in the forward pass, although there are few logits. The result is FOLDER/CASE.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, Dataset

from lm.config.schema.config import Config
from lm.config.schema.finetune import LoraConfig
from lm.config.schema.model import ModelConfig
from lm.optim import early_gradients
from lm.optim.loss import IGNORE_INDEX
from lm.optim.objectives import NextToken
from lm.optim.optimizers import trained
from lm.runs.incidents import Incidents
from lm.surgery.fsdp import full_tensor
from lm.surgery.lora import add_adapters
from lm.training.module import LanguageModel
from lm.training.parts import Parts
from lm.training.processes import disconnect
from model import Decoder

ROWS, LENGTH, VOCABULARY = 24, 12, 50


class OneStep(Dataset[dict[str, object]]):
    """A data set with this process's part of the step, distributed as in data.TrainingSteps."""

    def __init__(self, micro_batch: int, rank: int, world_size: int):
        chance = torch.Generator().manual_seed(0)
        ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1), generator=chance)
        labels = ids[:, 1:].clone()
        for row, scored in enumerate([12, 0, 1, 7, 2, 12, 0, 3] * 3):
            labels[row, scored:] = IGNORE_INDEX
        shape = (-1, world_size, micro_batch, LENGTH)
        self.input_ids, self.labels = (
            part.reshape(shape)[:, rank] for part in (ids[:, :-1], labels)
        )

    def __len__(self) -> int:
        return 1

    def __getitem__(self, step: int) -> dict[str, object]:
        return {"step": step, "input_ids": self.input_ids, "labels": self.labels}


class Recorder(LanguageModel):
    """A model that keeps the gradients that the optimiser receives."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.gradients = {
            name: full_tensor(parameter.grad).clone()
            for name, parameter in trained(self.decoder).items()
        }


def adapted(decoder: Decoder, four_bits: bool) -> Decoder:
    """Add adapters whose B is not zero, so that A learns too."""
    add_adapters(decoder, LoraConfig(rank=3, targets=["layers.*"]), four_bits)
    for name, parameter in trained(decoder).items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.2)
    return decoder


def main(micro_batch: int, out: Path, world_size: int, *options: str) -> None:
    fsdp = "fsdp" in options
    config = Config.model_validate(
        {
            "data": {"source": {"format": "txt", "files": "unused"}},
            "model": {
                "context_length": LENGTH,
                "n_layers": 2,
                "d_model": 16,
                "n_heads": 2,
                "vocab_size": VOCABULARY,
                "init_std": 0.2,
                "tie_embeddings": "untied" not in options,
                "d_ff": 42,  # two and four processes cannot share it evenly
                "dropout": 0.5 if "dropout" in options else 0.0,
            },
            "optimizer": {
                "name": "muon" if "muon" in options else "adamw",
                "cautious_decay": "cautious" in options,
                "warmup_steps": 0,
                "grad_clip": 0,
            },
            "trainer": {
                "max_steps": 1,
                "batch_size": ROWS,
                "micro_batch_size": micro_batch,
                "devices": world_size,
                "device": "cpu",
                "precision": "fp32",
            },
        }
    )
    incidents = Incidents(None, str, "stop", 10, print)

    def make_decoder() -> Decoder:
        decoder = Decoder(ModelConfig(**config.model.model_dump()))
        return adapted(decoder, "qlora" in options) if {"lora", "qlora"} & {*options} else decoder

    nothing: Any = None
    parts = Parts(config, nothing, nothing, make_decoder, NextToken())
    module = Recorder(parts, incidents)
    if "pieces" in options:
        module.rows_at_once = 1
    strategy = ModelParallelStrategy(world_size, 1) if fsdp else "ddp" if world_size > 1 else "auto"
    trainer = lightning.Trainer(
        accelerator="cpu", devices=world_size, strategy=strategy, max_epochs=1,
        use_distributed_sampler=False,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    rank = trainer.global_rank
    few = {"MOST_LOGITS": 0, "PIECE": 1, "LEAST_ROWS": 5, "BLOCK": 7} if "early" in options else {}
    early = mock.patch.object(
        early_gradients._SummedLoss, "apply", wraps=early_gradients._SummedLoss.apply
    )
    with mock.patch.dict(vars(early_gradients), few), early as applied:
        trainer.fit(module, DataLoader(OneStep(micro_batch, rank, world_size), batch_size=None))
    assert applied.called == ("early" in options)
    assert module.sharded == fsdp
    state = {
        f"after {name}": full_tensor(parameter).detach()
        for name, parameter in module.decoder.named_parameters()
    }
    if rank == 0:
        torch.save(
            {"loss": module.loss, "grad_norm": module.grad_norm, **module.gradients, **state}, out
        )


if __name__ == "__main__":
    import os

    folder, *cases = sys.argv[1:]
    for case in cases:
        micro_batch, *options = case.split("-")
        main(
            int(micro_batch),
            Path(folder, f"{case}.pt"),
            int(os.environ.get("WORLD_SIZE", "1")),
            *options,
        )
    disconnect()
