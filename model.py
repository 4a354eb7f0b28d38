"""The decoder, top down: `Decoder` is the whole model, then come its parts, largest first.

A decoder-only transformer predicts each token from the tokens before it. The default is Llama's
shape: RMSNorm before each branch, rotary positions, grouped-query attention, a SwiGLU MLP, no
biases. A few fields of `ModelConfig` turn it into a Qwen3 or a GPT-2 (tests/model/test_model.py
compares all three with `transformers`, weight for weight). The LightningModule that trains it is
in lm/training/module.py.

Shapes are written in these letters:
    B  rows in the batch                D  width of the residual stream (d_model)
    T  positions in the input           H  query heads        K  key and value heads (K divides H)
    S  positions attended to            E  width of one head (D / H)
    V  vocabulary
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint as recompute

from lm.config.schema.model import ModelConfig
from lm.optim.cpu_kernels import RMSNormalise, Rotate, attend_by_products, by_hand
from lm.optim.early_gradients import summed_loss
from lm.optim.loss import token_losses

MOST_SCORES = 512 * 512  # of a head: beyond, attention by products is slower and takes much memory


class Decoder(nn.Module):
    """Token ids in, next-token logits (or their loss) out.

    `config.vocab_size` must be a number; the commands take it from the tokenizer.
    `initialise=False` draws no weights, for callers that load their own. `n_parameters` counts a
    tied head once; `n_matmul_parameters` counts all linear layers, the head even if it is tied.
    """

    def __init__(self, config: ModelConfig, initialise: bool = True):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size is still open; set it to the tokenizer's vocab_size")
        self.config = config
        width = config.d_model
        learned = config.positions == "learned"
        with nullcontext() if initialise else EmptyInit():  # seeds count torch's own draws too
            self.embed_tokens = nn.Embedding(config.vocab_size, width)
            self.embed_positions = nn.Embedding(config.context_length, width) if learned else None
            self.dropout = nn.Dropout(config.dropout)
            self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
            self.norm = make_norm(config, width)
            self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.tie_weights()
        if initialise:
            self.initialise()
        # Counted now: adapters, 4-bit weights and FSDP change parameters() later.
        matrices = [layer.weight for layer in self.modules() if isinstance(layer, nn.Linear)]
        self.n_parameters = sum(weight.numel() for weight in self.parameters())
        self.n_matmul_parameters = sum(weight.numel() for weight in matrices)

    def tie_weights(self) -> None:
        """Let the head share the embedding's weight, also after loading with `assign=True`."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        total: bool = False,
    ) -> Tensor:
        """Predict the token after each position.

        Args:
            input_ids: (B, T) token ids.
            labels: (B, T) the token that follows each position, already shifted; IGNORE_INDEX
                (-100) excludes a position from the loss.
            document_ids: (B, T) equal numbers mark one document; attention stays inside it and
                positions restart at 0. Numbers never decrease along a row. None: one document.
            cache: keys and values of the positions before `input_ids`, which are appended to it.
            total: with labels, return the sum of the losses, a scalar. It needs less memory.

        Returns:
            With labels, the cross-entropy of each token in nats, (B, T) float32, 0 where the label
            is ignored. Otherwise the logits, (B, T, V); with a cache only those of the last
            position, (B, 1, V), because sampling needs no others.
        """
        config = self.config
        start, padding = (cache.length, cache.padding) if cache is not None else (0, None)
        positions = self._positions(input_ids, document_ids, start, padding)  # (T,) or (B, T)
        rotation = rope_rotation(config, positions) if config.positions == "rope" else None
        mask = self._mask(input_ids, document_ids, start, padding)  # None: plain causal
        x = self.embed_tokens(input_ids)  # (B, T, D)
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        x = self.dropout(x)
        for i, block in enumerate(self.layers):
            layer_cache = (cache, i) if cache is not None else None
            if config.gradient_checkpointing and self.training:
                x = recompute(block, x, rotation, mask, layer_cache, use_reentrant=False)
            else:
                x = block(x, rotation, mask, layer_cache)
        if cache is not None:
            cache.length += input_ids.shape[1]
            x = x[:, -1:]
        x = self.norm(x)
        if labels is None:
            return self.lm_head(x)
        if total and config.kernels == "auto":
            return summed_loss(x, self.lm_head.weight, labels)
        losses = token_losses(x, self.lm_head.weight, labels)
        return losses.sum() if total else losses

    def new_cache(self, batch_size: int, length: int | None = None) -> KVCache:
        """Return an empty cache, on the model's device; `length` is the context's by default."""
        config, weight = self.config, self.embed_tokens.weight
        capacity = length or config.context_length
        shape = (config.n_layers, batch_size, config.kv_heads, capacity, config.head_dim)
        keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        return KVCache(keys, torch.zeros_like(keys))

    def initialise(self) -> None:
        """Draw all weights from the global random state.

        | weights                                | initial value                                 |
        |----------------------------------------|-----------------------------------------------|
        | embeddings, head and matrices          | normal, init_std                              |
        | o_proj, down_proj (they write to x)    | normal, init_std / sqrt(2 n_layers), or zero  |
        | biases                                 | zero                                          |
        | norms                                  | one                                           |

        2 n_layers branches add to the residual stream. The scale keeps its variance from growing
        with depth (GPT-2, Radford et al. 2019, section 2.3). Small logits: the first loss is ln(V).
        """
        std = self.config.init_std
        residual_std = std / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            if name.endswith("bias") or (residual and self.config.residual_init == "zero"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=residual_std if residual else std)

    def _positions(
        self, input_ids: Tensor, document_ids: Tensor | None, start: int, padding: Tensor | None
    ) -> Tensor:
        index = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)  # (T,)
        if padding is not None:
            # (B, T). Positions of padding have no effect, but a learned table has no row below 0.
            return (index - padding[:, None]).clamp(min=0)
        if document_ids is None:
            return index
        first = document_ids != F.pad(document_ids, (1, 0), value=-1)[:, :-1]  # of its document
        return index - torch.where(first, index, 0).cummax(dim=1).values  # (B, T)

    def _mask(
        self, input_ids: Tensor, document_ids: Tensor | None, start: int, padding: Tensor | None
    ) -> Tensor | None:
        """Return which keys each query sees, (T, S) or (B, 1, T, S); None: plain causal is right.

        `is_causal=True` aligns the triangle with the top left corner. With earlier keys in the
        cache (T < S) it would hide the recent past and, in a second chunk of a prompt, show the
        future. Those cases compare absolute positions instead.
        """
        length = input_ids.shape[1]
        if document_ids is None and start == 0 and padding is None:
            return None
        query = torch.arange(start, start + length, device=input_ids.device)
        key = torch.arange(start + length, device=input_ids.device)
        causal = query[:, None] >= key[None, :]  # (T, S)
        if padding is not None:
            # Padding sees itself: for a query that sees nothing some kernels return NaN, and the
            # values would carry it to all other positions.
            seen = (key >= padding[:, None])[:, None] | (key == query[:, None])  # (B, T, S)
            return (causal & seen)[:, None]
        if document_ids is None:
            return causal
        assert start == 0, "rows of packed documents have no cache"
        same = document_ids[:, :, None] == document_ids[:, None, :]  # (B, T, T)
        return (causal & same)[:, None]


class Block(nn.Module):
    """One layer: tokens exchange information (attention), then each is processed alone (MLP)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_norm = make_norm(config, config.d_model)
        self.attention = Attention(config)
        self.post_attention_norm = make_norm(config, config.d_model)
        self.mlp = SwiGLU(config) if config.mlp == "swiglu" else GeluMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotation: Rotation | None, mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        """x: (B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.input_norm(x), rotation, mask, cache))
        return x + self.dropout(self.mlp(self.post_attention_norm(x)))


class Attention(nn.Module):
    """Causal self-attention with grouped queries: H query heads share K key and value heads
    (Ainslie et al. 2023).

        H = 6, K = 2:    q0 q1 q2   q3 q4 q5
                           \\ | /      \\ | /
                            kv0        kv1          the cache shrinks to K / H of its size

    Dropout acts on the residual branch: on attention weights it would turn off the fused kernels.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=config.bias)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=config.bias)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        # Qwen3: one norm over E for all query heads, one for all key heads, before the rotation.
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, rotation: Rotation | None, mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        """x: (B, T, D) -> (B, T, D)."""
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.config.head_dim)
        q = self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2)  # (B, H, T, E)
        k = self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2)  # (B, K, T, E)
        v = self.v_proj(x).view(heads).transpose(1, 2)  # (B, K, T, E)
        auto = self.config.kernels == "auto"
        if rotation is not None:
            turn = Rotate.apply if auto and by_hand(x) else rotate
            q, k = turn(q, *rotation), turn(k, *rotation)
        if cache is not None:
            kv_cache, layer = cache
            k, v = kv_cache.extend(layer, k, v)  # (B, K, S, E)
        by_products = auto and (q.dtype, q.device.type) == (torch.bfloat16, "cpu")
        by_products = by_products and length * k.shape[2] <= MOST_SCORES
        out = attend_by_products(q, k, v, mask) if by_products else attend(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(E)) v, where the mask allows (None: causal), by torch's fused kernels.

    (B, H, T, E) queries and (B, K, S, E) keys and values give (B, H, T, E).
    """
    # enable_gqa pairs query head h with key head h // (H / K): neighbours share, as drawn.
    grouped = q.shape[1] != k.shape[1]
    causal = mask is None
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)


class SwiGLU(nn.Module):
    """The gated MLP: down(silu(gate x) * up x) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.mlp_width, bias=config.bias)
        self.up_proj = nn.Linear(config.d_model, config.mlp_width, bias=config.bias)
        self.down_proj = nn.Linear(config.mlp_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D) -> (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GeluMLP(nn.Module):
    """GPT-2's MLP: down(gelu(up x)), GELU in its tanh form or exact (by the error function)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.mlp_width, bias=config.bias)
        self.down_proj = nn.Linear(config.mlp_width, config.d_model, bias=config.bias)
        self.approximate = "tanh" if config.mlp == "gelu" else "none"

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D) -> (B, T, D)."""
        return self.down_proj(F.gelu(self.up_proj(x), approximate=self.approximate))


class KVCache:
    """Keys and values of the positions so far, in memory reserved at the start.

    `keys` and `values` are (layers, B, K, capacity, E); the first `length` positions are filled.
    `Decoder.forward` moves `length` once per call, after all layers have written.

    `padding`, (B,) or None, is the number of positions without text at the start of each row, so
    that rows of different lengths end together. The caller sets it. No query sees them, and
    positions are counted from the first token after them.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys = keys
        self.values = values
        self.length = 0
        self.padding: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Return how many positions fit."""
        return self.keys.shape[3]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, E) of new positions; return the layer's (B, K, S, E), S = length + T."""
        end = self.length + k.shape[2]
        assert end <= self.capacity, f"{end} positions do not fit a cache of {self.capacity}"
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


LayerCache = tuple[KVCache, int]  # the cache and the layer's number in it
Rotation = tuple[Tensor, Tensor]  # cosines and sines, (1 or B, 1, T, E)


def rope_rotation(config: ModelConfig, positions: Tensor) -> Rotation:
    """Return the rotary embedding's angles (Su et al. 2021): position p turns the pair
    (i, i + E/2) by p * theta^(-2i / E). (T,) or (B, T) positions give (1 or B, 1, T, E).

    They are computed in float32 for each call. bfloat16 cannot count past 256, and a table in a
    buffer would be cast and saved with the model, and would have a last position.
    """
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device)
    half = pairs / config.head_dim
    angles = positions.float()[..., None] * config.rope_theta**-half  # (..., T, E/2)
    angles = torch.cat((angles, angles), dim=-1)
    angles = angles[None, None] if positions.dim() == 1 else angles[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, heads, T, E) by the angles of each position, given by cosine and sine.

    Element i is paired with i + E/2, as in Hugging Face's Llama. The paper and Meta's files pair
    i with i + 1. The weights of the two differ by a permutation of the projection's rows.
    """
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight (Zhang & Sennrich 2019). The weight is cast to x's type, which autocast
    may have made bfloat16, because the fused kernel does not take mixed types.
    """

    def __init__(self, config: ModelConfig, width: int):
        super().__init__(width, eps=config.norm_eps)
        self.auto = config.kernels == "auto"

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) -> the same shape."""
        if self.auto and by_hand(x):
            return RMSNormalise.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """Return the configured normalisation over the last dimension, of size `width`."""
    if config.norm == "rmsnorm":
        return RMSNorm(config, width)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)


class EmptyInit(TorchFunctionMode):
    """Within the block torch.nn.init does nothing, so new modules draw no weights."""

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        initialises = getattr(call, "__module__", None) == "torch.nn.init"
        return None if initialises else call(*args, **(kwargs or {}))


def __getattr__(name: str) -> NoReturn:
    if name == "load":
        raise ImportError("load has moved out of model.py: write `from lm import load`")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
