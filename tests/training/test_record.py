"""The files of a run in training, and the work of a step: lm/training/record.py."""

from __future__ import annotations

from lm.training.record import flops_per_token


def test_a_frozen_matrix_needs_no_gradient_of_its_own() -> None:
    """LoRA costs 4 FLOP for each weight of the base and 6 for each of the adapters."""
    with_adapters = flops_per_token(
        1_000_000 + 10_000, n_layers=1, context=8, d_model=16, n_frozen=1_000_000
    )
    assert with_adapters == 4_000_000 + 60_000 + 12 * 8 * 16


def test_flops_per_token_of_gpt2() -> None:
    """The figures of 124M at T = 1024 by hand: 12 blocks of 12 d^2 weights and a head of 50,257 d.
    Attention has 12 * 12 * 1024 * 768 = 113.2 MFLOP.
    """
    matrices = 12 * 12 * 768**2 + 50_257 * 768
    assert matrices == 123_532_032
    assert (
        flops_per_token(matrices, n_layers=12, context=1024, d_model=768)
        == 741_192_192 + 113_246_208
    )
    # nanoGPT also counts the norms, and pads the vocabulary to 50,304: 854.8 MFLOP.
    assert round(flops_per_token(123_587_328, 12, 1024, 768) / 1e6, 1) == 854.8
