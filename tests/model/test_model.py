"""model.py, compared with `transformers` and with slower computations, and checked for the known
traps.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lm.config.schema.model import ModelConfig
from lm.optim import early_gradients
from lm.optim.loss import IGNORE_INDEX
from model import Decoder, rope_rotation, rotate

GPT2 = {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True}
SHAPE = {
    "vocab_size": 97,
    "context_length": 48,
    "n_layers": 3,
    "d_model": 32,
    "n_heads": 4,
    "d_ff": 80,
}


def decoder(seed: int = 0, **changes: object) -> Decoder:
    torch.manual_seed(seed)
    made = Decoder(ModelConfig(**{**SHAPE, **changes}))  # type: ignore[arg-type]
    # Noise on the initial weights, so that norms, biases and zero projections take part.
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def ids(rows: int = 2, length: int = 24, seed: int = 1) -> Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


# --- the same function as transformers' models

LLAMA_NAMES = {
    "embed_tokens.": "model.embed_tokens.",
    "layers.": "model.layers.",
    "norm.": "model.norm.",
    ".attention.": ".self_attn.",
    ".input_norm.": ".input_layernorm.",
    ".post_attention_norm.": ".post_attention_layernorm.",
}


def llama_name(name: str) -> str:
    for ours, theirs in LLAMA_NAMES.items():
        name = (
            name.replace(ours, theirs, 1)
            if not ours[0].isalpha() or name.startswith(ours)
            else name
        )
    return name


def llama_like(model: Decoder, kind: str) -> torch.nn.Module:
    import transformers

    c = model.config
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.mlp_width,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        max_position_embeddings=c.context_length,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=c.tie_embeddings,
        attention_bias=c.bias,
        attn_implementation="eager",
    )
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    missing, unexpected = theirs.load_state_dict(
        {llama_name(k): v for k, v in model.state_dict().items()}, strict=False
    )
    assert not unexpected
    assert not missing
    return theirs


def check_same_function(ours: Decoder, theirs: torch.nn.Module, names: dict[str, str]) -> None:
    """Check that logits agree within 1e-5, and the gradients of the mean loss within 1e-4 for every
    parameter.
    """
    x, y = ids(), ids(seed=2)
    ours.eval()
    torch.testing.assert_close(ours(x), theirs(input_ids=x).logits, atol=1e-5, rtol=1e-5)
    ours(x, y).mean().backward()
    F.cross_entropy(theirs(input_ids=x).logits.flatten(0, 1), y.flatten()).backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = gradients[names[name]].grad
        assert parameter.grad is not None
        assert expected is not None
        expected = expected.T if expected.shape != parameter.grad.shape else expected
        torch.testing.assert_close(
            parameter.grad, expected, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_same_as_llama(kv_heads: int, tie: bool) -> None:
    ours = decoder(n_kv_heads=kv_heads, tie_embeddings=tie)
    check_same_function(
        ours,
        llama_like(ours, "Llama"),
        {name: llama_name(name) for name, _ in ours.named_parameters()},
    )


@pytest.mark.parametrize("rope_theta", [10_000.0, 1_000_000.0])
def test_same_as_qwen3(rope_theta: float) -> None:
    ours = decoder(n_kv_heads=2, qk_norm=True, rope_theta=rope_theta)
    check_same_function(
        ours,
        llama_like(ours, "Qwen3"),
        {name: llama_name(name) for name, _ in ours.named_parameters()},
    )


def test_same_as_gpt2() -> None:
    import transformers

    ours = decoder(**GPT2, d_ff=128)
    c = ours.config
    config = transformers.GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.context_length, n_embd=c.d_model,
        n_layer=c.n_layers, n_head=c.n_heads, n_inner=c.mlp_width,
        layer_norm_epsilon=c.norm_eps, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    names = {
        "embed_tokens.weight": "transformer.wte.weight",
        "embed_positions.weight": "transformer.wpe.weight",
    }
    names |= {f"norm.{kind}": f"transformer.ln_f.{kind}" for kind in ("weight", "bias")}
    parts = {
        "input_norm": "ln_1",
        "post_attention_norm": "ln_2",
        "attention.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    }
    for i in range(c.n_layers):
        names |= {
            f"layers.{i}.{a}.{k}": f"transformer.h.{i}.{b}.{k}"
            for a, b in parts.items()
            for k in ("weight", "bias")
        }
    target, state = dict(theirs.named_parameters()), ours.state_dict()
    with torch.no_grad():
        for name, other in names.items():  # GPT-2's Conv1D keeps (in, out)
            conv = other.endswith("weight") and (".c_" in other)
            target[other].copy_(state[name].T if conv else state[name])
        for i in range(c.n_layers):
            for kind in ("weight", "bias"):
                fused = torch.cat([state[f"layers.{i}.attention.{p}_proj.{kind}"] for p in "qkv"])
                target[f"transformer.h.{i}.attn.c_attn.{kind}"].copy_(
                    fused.T if kind == "weight" else fused
                )
    x = ids()
    torch.testing.assert_close(ours.eval()(x), theirs(input_ids=x).logits, atol=1e-5, rtol=1e-5)


# --- the cache


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 1, "qk_norm": True},
        {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True},
    ],
)
@pytest.mark.parametrize("chunks", [[1] * 24, [24], [7, 1, 1, 9, 6], [23, 1]])
def test_cached_decoding_equals_the_full_forward(
    changes: dict[str, object], chunks: list[int]
) -> None:
    model, x = decoder(**changes).eval(), ids()
    full = model(x)
    cache, end = model.new_cache(2, 24), 0
    for chunk in chunks:
        end += chunk
        out = model(x[:, end - chunk : end], cache=cache)
        assert out.shape == (2, 1, 97)
        torch.testing.assert_close(out[:, 0], full[:, end - 1], atol=2e-6, rtol=1e-5)
    assert cache.length == 24


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 1, "qk_norm": True},
        {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True},
    ],
)
@pytest.mark.parametrize("steps", [[24], [20, 1, 1, 1, 1], [3, 21], [1] * 24])
def test_a_left_padded_row_is_the_row_alone(changes: dict[str, object], steps: list[int]) -> None:
    """Rows of 24 positions have 0 to 23 of padding, whatever ids stand there. A piece of the prompt
    may be padding alone.
    """
    model, x = decoder(**changes).eval(), ids(rows=24)
    cache, end = model.new_cache(24, 24), 0
    cache.padding = torch.arange(24)
    for step in steps:
        end += step
        out = model(x[:, end - step : end], cache=cache)
        assert out.isfinite().all()
        for row in range(end):  # the others have no text yet
            torch.testing.assert_close(
                out[row, 0], model(x[row : row + 1, row:end])[0, -1], atol=2e-6, rtol=1e-5
            )


def test_even_padding_sees_something() -> None:
    """A query that sees nothing is NaN in some kernels. A NaN among the values reaches every query,
    however little it counts.
    """
    mask = decoder()._mask(ids(), None, 0, torch.tensor([0, 23]))
    assert mask is not None and mask.any(dim=-1).all()


def test_rows_without_padding_have_no_mask() -> None:
    """The fused causal kernel reads a prompt only without a mask."""
    model, x = decoder(), ids()
    assert model._mask(x, None, 0, None) is None
    assert model._positions(x, None, 0, None).dim() == 1


def test_the_cache_refuses_more_than_it_holds() -> None:
    model = decoder()
    with pytest.raises(AssertionError, match="do not fit"):
        model(ids(), cache=model.new_cache(2, 23))


# --- no leaks


def test_the_future_does_not_leak_into_the_past() -> None:
    model, x = decoder().eval(), ids()
    changed = x.clone()
    changed[:, 15:] = (changed[:, 15:] + 1) % 97
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :15], after[:, :15])
    assert not torch.allclose(before[:, 15], after[:, 15])


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_packed_documents_equal_separate_ones(positions: str) -> None:
    """The losses and the gradients are those of each document alone."""
    model = decoder(positions=positions)
    x, y = ids(rows=1), ids(rows=1, seed=2)
    lengths, documents, rows = [9, 1, 14], [], []
    for number, length in enumerate(lengths):
        documents += [number] * length
    model(x, y, torch.tensor([documents])).sum().backward()
    packed = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    model.zero_grad()
    start = 0
    for length in lengths:
        losses = model(x[:, start : start + length], y[:, start : start + length])
        losses.sum().backward()
        rows.append(losses)
        start += length
    torch.testing.assert_close(
        model(x, y, torch.tensor([documents])), torch.cat(rows, dim=1), atol=1e-5, rtol=1e-5
    )
    for one, other in zip(packed, [p.grad for p in model.parameters()], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_documents_are_told_apart_by_number_not_by_token() -> None:
    """The same text stands twice, as two documents and as one. Only as one does the second half see
    the first.
    """
    model = decoder()
    x = ids(rows=1, length=6).repeat(1, 2)
    one = model(x, x, torch.tensor([[0] * 6 + [1] * 6]))
    other = model(x, x, torch.tensor([[0] * 12]))
    torch.testing.assert_close(one[:, :6], one[:, 6:])
    assert not torch.allclose(one[:, 6:], other[:, 6:])


# --- the loss


def test_ignored_labels_score_zero_and_change_no_gradient() -> None:
    model, x, y = decoder(), ids(), ids(seed=2)
    y[0, 10:] = IGNORE_INDEX
    losses = model(x, y)
    assert losses[0, 10:].eq(0).all()
    assert losses[1].gt(0).all()
    y[:] = IGNORE_INDEX
    model(x, y).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.eq(0).all(), name


def test_the_loss_in_pieces_equals_the_loss_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = decoder(), ids(), ids(seed=2)
    y[0, 3] = IGNORE_INDEX
    whole = model(x, y)
    whole.sum().backward()
    gradients = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    model.zero_grad()
    monkeypatch.setattr("lm.optim.loss.MAX_LOGITS", 97 * 5)
    pieces = model(x, y)
    pieces.sum().backward()
    torch.testing.assert_close(pieces, whole)
    for one, other in zip(gradients, [p.grad for p in model.parameters()], strict=True):
        torch.testing.assert_close(one, other)


def test_the_loss_is_that_of_a_hand_written_loop() -> None:
    model, x, y = decoder(), ids(), ids(seed=2)
    logits, losses = model(x), model(x, y)
    for row in range(2):
        for t in range(24):
            expected = -torch.log_softmax(logits[row, t].double(), dim=-1)[y[row, t]]
            assert losses[row, t].item() == pytest.approx(expected.item(), abs=1e-5)


# --- start


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("residual_init", ["scaled", "zero"])
@pytest.mark.parametrize("vocab_size", [97, 2048])
def test_the_first_loss_is_that_of_guessing(
    tie: bool, residual_init: str, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss is within 5 % of ln(V), also where the gradients are made with it."""
    monkeypatch.setattr(early_gradients, "MOST_LOGITS", 0)
    torch.manual_seed(0)
    config = ModelConfig(
        **{**SHAPE, "vocab_size": vocab_size, "tie_embeddings": tie, "residual_init": residual_init}
    )  # type: ignore[arg-type]
    x = torch.randint(0, vocab_size, (8, 48))
    y = torch.randint(0, vocab_size, (8, 48))
    decoder = Decoder(config)
    total = decoder(x, y, total=True)
    assert "SummedLoss" in type(total.grad_fn).__name__
    for loss in (decoder(x, y).mean(), total / y.numel()):
        assert loss.item() == pytest.approx(math.log(vocab_size), rel=0.05)


def test_initialisation_is_as_documented() -> None:
    torch.manual_seed(0)
    model = Decoder(
        ModelConfig(
            **{
                **SHAPE,
                "d_model": 128,
                "d_ff": 512,
                "bias": True,
                "norm": "layernorm",
                "tie_embeddings": False,
            }
        )
    )  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        else:
            expected = (
                0.02 / math.sqrt(6)
                if name.endswith(("o_proj.weight", "down_proj.weight"))
                else 0.02
            )
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_zero_init_makes_every_block_the_identity() -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**{**SHAPE, "residual_init": "zero"}))  # type: ignore[arg-type]
    x = ids()
    torch.testing.assert_close(model(x), model.lm_head(model.norm(model.embed_tokens(x))))


# --- rope


def test_rope_is_computed_in_float32_and_never_saved() -> None:
    """Bfloat16 cannot tell position 257 from 256."""
    model = decoder(context_length=4096).to(torch.bfloat16)
    cos, _ = rope_rotation(model.config, torch.arange(4096))
    assert cos.dtype == torch.float32
    exact = torch.cos(torch.arange(4096, dtype=torch.float64))
    torch.testing.assert_close(cos[0, 0, :, 0].double(), exact, atol=1e-4, rtol=0)
    assert not [
        name for name in model.state_dict() if "rope" in name or "cos" in name or "rotat" in name
    ]
    assert model(ids()).dtype == torch.bfloat16


def test_rope_depends_on_distance_only() -> None:
    config = decoder().config
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(at: int, other: int) -> float:
        rotations = [rope_rotation(config, torch.tensor([p])) for p in (at, other)]
        return (rotate(q, *rotations[0]) * rotate(k, *rotations[1])).sum().item()

    assert score(7, 3) == pytest.approx(score(40, 36), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


# --- weights


def test_a_tied_head_is_one_tensor_everywhere() -> None:
    """A tied head is not among the parameters and stays shared after a conversion."""
    model = decoder(tie_embeddings=True)
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names
    assert "embed_tokens.weight" in names
    moved = model.to(torch.float64)
    assert moved.lm_head.weight is moved.embed_tokens.weight
    untied = decoder(tie_embeddings=False)
    assert untied.n_parameters == model.n_parameters + 97 * 32
    assert untied.n_matmul_parameters == model.n_matmul_parameters


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_initialisation_nothing_is_drawn(device: str) -> None:
    shape = decoder(positions="learned", norm="layernorm", mlp="gelu", bias=True).config
    before = torch.get_rng_state()
    with torch.device(device):
        bare = Decoder(shape, initialise=False)
    assert torch.equal(before, torch.get_rng_state())
    assert bare.state_dict().keys() == Decoder(shape).state_dict().keys()
    assert not torch.equal(before, torch.get_rng_state())


def test_weights_are_counted_before_anything_is_done_to_them() -> None:
    model = decoder()
    counts = model.n_parameters, model.n_matmul_parameters
    model.layers[0].attention.q_proj = torch.nn.Identity()
    assert (model.n_parameters, model.n_matmul_parameters) == counts


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, saving = decoder(), decoder(gradient_checkpointing=True)
    for model in (plain, saving):
        model.train()
        model(ids(), ids(seed=2)).sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_dropout_acts_in_training_only() -> None:
    model, x = decoder(dropout=0.5), ids()
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("branch", ["embedding", "attention", "mlp"])
def test_dropout_acts_on_the_embedding_and_on_both_branches(branch: str) -> None:
    """With the other places silenced, a half of this one's values is dropped."""
    model, x = decoder(dropout=0.5).train(), ids()
    if branch != "embedding":
        model.dropout.p = 0.0
    for block in model.layers:
        for name in {"attention": ("mlp",), "mlp": ("attention",)}.get(
            branch, ("attention", "mlp")
        ):
            for weight in getattr(block, name).parameters():
                torch.nn.init.zeros_(weight)
    assert not torch.equal(model(x), model(x))


@pytest.mark.usefixtures("takes_seconds")
def test_it_learns_to_copy_but_cannot_look_ahead() -> None:
    """The model learns to repeat the previous token. For the token after next of random text,
    its loss stays at ln(V).
    """

    def train(shift: int) -> float:
        torch.manual_seed(0)
        model = Decoder(
            ModelConfig(
                vocab_size=16, context_length=24, n_layers=2, d_model=32, n_heads=2, init_std=0.1
            )
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        losses = []
        for step in range(200):
            row = torch.randint(0, 16, (32, 26), generator=torch.Generator().manual_seed(step))
            labels = row[:, 1 + shift : 25 + shift]
            # what came before the first token is not in the row
            losses.append(model(row[:, 1:25], labels)[:, 1:].mean())
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        return torch.stack(losses[-20:]).mean().item()

    assert train(-1) < 0.02
    assert train(1) > 0.98 * math.log(16)
