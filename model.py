"""The decoder, read from the top: `Decoder` is the whole model, then its parts, largest first.

A decoder-only transformer predicts each next token from the tokens before it. The default is
Llama-shaped: RMSNorm before each branch, rotary positions, grouped-query attention, a SwiGLU MLP,
no biases. A few fields of `ModelConfig` turn it into a Qwen3 or a GPT-2 (tests/model/test_model.py
holds all three against `transformers`, weight for weight).

Shapes are written in these letters:
    B  rows in the batch                D  width of the residual stream (d_model)
    T  positions in the input           H  query heads        K  key and value heads (K divides H)
    S  positions attended to            E  width of one head (D / H)
    V  vocabulary
"""

from __future__ import annotations

import math
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from lm.config.schema.model import ModelConfig
from lm.optim.loss import token_losses


class Decoder(nn.Module):
    """Token ids in, next-token logits (or their loss) out.

    `config.vocab_size` must be a number here; the commands fill it in from the tokenizer.
    `initialise=False` leaves the weights as torch made them, for callers that load their own.
    """

    def __init__(self, config: ModelConfig, initialise: bool = True):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size is still open; set it to the tokenizer's vocab_size")
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = (
            nn.Embedding(config.context_length, config.d_model)
            if config.positions == "learned"
            else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = make_norm(config, config.d_model)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.tie_weights()
        if initialise:
            self.initialise()

    def tie_weights(self) -> None:
        """Let the head share the embedding's storage. Needed again after loading with
        `assign=True`, which replaces parameters.
        """
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Predict the token after each position.

        Args:
            input_ids: (B, T) token ids.
            labels: (B, T) the token that should follow each position; IGNORE_INDEX (-100) where
                nothing is to be learned. They are already shifted: `labels[t]` answers
                `input_ids[t]`.
            document_ids: (B, T) equal numbers mark one document; attention stays inside it and
                positions restart at 0. Numbers never decrease along a row. None: a row is one
                document.
            cache: keys and values of earlier positions. `input_ids` continue them, and are added to
                it.

        Returns:
            With labels: the cross-entropy of each token in nats, (B, T) float32, 0 where the label
            is ignored. Else the logits, (B, T, V); with a cache only the last position's, (B, 1,
            V), since nothing else is sampled from.
        """
        start, padding = (cache.length, cache.padding) if cache is not None else (0, None)
        positions = self._positions(input_ids, document_ids, start, padding)  # (T,) or (B, T)
        mask = self._mask(input_ids, document_ids, start, padding)  # None means plainly causal
        x = self.embed_tokens(input_ids)  # (B, T, D)
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        rotation = (
            rope_rotation(self.config, positions) if self.config.positions == "rope" else None
        )
        x = self.dropout(x)
        for i, block in enumerate(self.layers):
            layer_cache = (cache, i) if cache is not None else None
            if self.config.gradient_checkpointing and self.training:
                x = recompute(block, x, rotation, mask, layer_cache, use_reentrant=False)
            else:
                x = block(x, rotation, mask, layer_cache)
        if cache is not None:
            cache.length += input_ids.shape[1]
            x = x[:, -1:]
        x = self.norm(x)
        return self.lm_head(x) if labels is None else token_losses(x, self.lm_head.weight, labels)

    def new_cache(self, batch_size: int, length: int | None = None) -> KVCache:
        """An empty cache for `length` positions (default: the context length), on the model's
        device and in its dtype.
        """
        weight = self.embed_tokens.weight
        shape = (
            self.config.n_layers,
            batch_size,
            self.config.kv_heads,
            length or self.config.context_length,
            self.config.head_dim,
        )
        return KVCache(
            torch.zeros(shape, dtype=weight.dtype, device=weight.device),
            torch.zeros(shape, dtype=weight.dtype, device=weight.device),
        )

    def initialise(self) -> None:
        """Draw all weights from the global random state.

        | weights                                | start                                         |
        |----------------------------------------|-----------------------------------------------|
        | embeddings, head and matrices          | normal, init_std                              |
        | o_proj, down_proj (they write to x)    | normal, init_std / sqrt(2 n_layers), or zero  |
        | biases                                 | zero                                          |
        | norms                                  | one                                           |

        2 n_layers branches add to the residual stream; the scale keeps its variance from growing
        with depth (GPT-2, Radford et al. 2019, section 2.3). Small logits make the first loss
        ln(V): every token is equally likely.
        """
        std = self.config.init_std
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                if self.config.residual_init == "zero":
                    nn.init.zeros_(parameter)
                else:
                    nn.init.normal_(parameter, std=std / math.sqrt(2 * self.config.n_layers))
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)

    def n_parameters(self) -> int:
        """Number of weights; a tied head counts once, and adapters beside them do not."""
        return sum(parameter.numel() for parameter in self._as_configured().parameters())

    def n_matmul_parameters(self) -> int:
        """Weights that take part in a matrix product for every token: all linear layers, the head
        included even where it is tied.
        """
        return sum(
            module.weight.numel()
            for module in self._as_configured().modules()
            if isinstance(module, nn.Linear)
        )

    def _as_configured(self) -> Decoder:
        """One without memory, to count in: whatever this one's layers were replaced by, and in
        however many bits they are kept.
        """
        with torch.device("meta"):
            return Decoder(self.config, initialise=False)

    def _positions(
        self, input_ids: Tensor, document_ids: Tensor | None, start: int, padding: Tensor | None
    ) -> Tensor:
        index = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)  # (T,)
        if padding is not None:
            # (B, T); the padding's own do not matter, but a table has none below 0
            return (index - padding[:, None]).clamp(min=0)
        if document_ids is None:
            return index
        # (B, T) true where a document begins
        changes = document_ids != F.pad(document_ids, (1, 0), value=-1)[:, :-1]
        begin = torch.where(changes, index, 0).cummax(dim=1).values
        return index - begin  # (B, T)

    def _mask(
        self, input_ids: Tensor, document_ids: Tensor | None, start: int, padding: Tensor | None
    ) -> Tensor | None:
        """Who may look at whom, (T, S) or (B, 1, T, S); true allows. None where SDPA's own causal
        mask is right.

        `is_causal=True` aligns the triangle with the top left corner: with earlier keys in the
        cache (T < S) that would hide the recent past and, in a second chunk of a prompt, show the
        future. So those cases compare absolute positions.
        """
        length = input_ids.shape[1]
        if document_ids is None and start == 0 and padding is None:
            return None
        query = torch.arange(start, start + length, device=input_ids.device)
        key = torch.arange(start + length, device=input_ids.device)
        causal = query[:, None] >= key[None, :]  # (T, S)
        if padding is not None:
            # Padding sees itself: where nothing is to be seen some kernels answer NaN, which would
            # reach all others through the values.
            seen = (key >= padding[:, None])[:, None] | (key == query[:, None])  # (B, T, S)
            return (causal & seen)[:, None]
        if document_ids is None:
            return causal
        assert start == 0, "documents are packed in training rows, which have no cache"
        same = document_ids[:, :, None] == document_ids[:, None, :]  # (B, T, T)
        return (causal & same)[:, None]


class Block(nn.Module):
    """One layer: tokens exchange information (attention), then each thinks for itself (MLP)."""

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

    Dropout acts on the residual branch, not on the attention weights: the fused kernels refuse it
    there and fall back to slow code.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=config.bias)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=config.bias)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        # One norm for all heads of a kind, over E, before the rotation: as Qwen3 has it.
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
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            kv_cache, layer = cache
            k, v = kv_cache.extend(layer, k, v)  # (B, K, S, E)
        # enable_gqa pairs query head h with key head h // (H / K): neighbours share, as drawn
        # above.
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.config.kv_heads != self.config.n_heads,
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class SwiGLU(nn.Module):
    """The gated MLP: down(silu(gate x) * up x) (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.mlp_width, bias=config.bias)
        self.up_proj = nn.Linear(config.d_model, config.mlp_width, bias=config.bias)
        self.down_proj = nn.Linear(config.mlp_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D) -> (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GeluMLP(nn.Module):
    """GPT-2's MLP: down(gelu(up x)), GELU in its tanh form."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.mlp_width, bias=config.bias)
        self.down_proj = nn.Linear(config.mlp_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D) -> (B, T, D)."""
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class KVCache:
    """Keys and values of the positions seen so far, in room set aside at the start. The caller
    makes it and passes it in.

    `keys` and `values` are (layers, B, K, capacity, E); the first `length` positions are filled.
    `Decoder.forward` moves `length` once per call, after all layers have written.

    `padding`, (B,) or None, is how many positions at the start of each row hold no text, so that
    rows of different lengths end together: whoever fills the cache sets it. Nothing looks at them,
    and positions are counted from behind them.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys = keys
        self.values = values
        self.length = 0
        self.padding: Tensor | None = None

    @property
    def capacity(self) -> int:
        """How many positions fit."""
        return self.keys.shape[3]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, E) of new positions; return all of this layer's, (B, K, S, E) with S =
        length + T.
        """
        end = self.length + k.shape[2]
        assert end <= self.capacity, f"{end} positions do not fit a cache of {self.capacity}"
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


LayerCache = tuple[KVCache, int]  # the cache and the layer's number in it
Rotation = tuple[Tensor, Tensor]  # cosines and sines, (1 or B, 1, T, E)


def rope_rotation(config: ModelConfig, positions: Tensor) -> Rotation:
    """Angles of the rotary embedding (Su et al. 2021): position p turns the pair (i, i + E/2) by p
    * theta^(-2i / E).

    Computed on the fly in float32 for just the positions at hand: bfloat16 cannot count past 256,
    and a table kept as a buffer would be cast with the model, saved with it, and end somewhere.
    (T,) or (B, T) positions give (1 or B, 1, T, E).
    """
    half = (
        torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device)
        / config.head_dim
    )
    angles = positions.float()[..., None] * config.rope_theta**-half  # (..., T, E/2)
    angles = torch.cat((angles, angles), dim=-1)
    angles = angles[None, None] if positions.dim() == 1 else angles[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn (B, heads, T, E) by the angles of each position.

    Element i is paired with i + E/2, as in the Hugging Face Llama. The paper and Meta's own files
    pair i with i + 1: the same function up to a permutation of the projection's rows, and nonsense
    if the two are mixed.
    """
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight (Zhang & Sennrich 2019). The weight follows x, which autocast may have
    made bfloat16; mixed, the fused kernel steps back with a warning.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) -> the same shape."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """The configured normalisation over the last dimension of size `width`."""
    if config.norm == "rmsnorm":
        return RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)


def __getattr__(name: str) -> NoReturn:
    if name == "load":
        raise ImportError("load has moved out of model.py: write `from lm import load`")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
