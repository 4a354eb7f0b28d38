"""Properties that any decoder must have before a long run starts.

Each check takes a decoder and real rows, and returns what it measured. The first three concern
which token may attend to which. They run on `randomise`d weights: at the start of a run the
projections into the residual stream may be zero. No token then sees another one, and every mask
looks right.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lm.optim.loss import IGNORE_INDEX
from lm.optim.objectives import Objective
from lm.optim.optimizers import trained
from model import Decoder

ROUNDING = 1e-3  # of the logits' spread: float32 adds the same numbers in another order
USUAL_STD = 0.02  # of initial weights, as in GPT-2 and Llama
MOST_LOGITS = 2**24  # in memory at once
OVERFIT_TOKENS = 128  # length of the piece that is memorised
OVERFIT_LR = 1e-3  # at OVERFIT_WIDTH and wider
OVERFIT_WIDTH = 128
OVERFIT_WARMUP = 10
OVERFIT_STEPS = 200
OVERFIT_SECONDS = 60.0

Rows = Mapping[str, Tensor]  # `input_ids`, `labels` and perhaps `document_ids`, each (B, T)


class Result(NamedTuple):
    """The result of a check.

    Attributes:
        ok: None if there is nothing to check.
        figure: the measurement in words.
        where: the place to look at if the check failed.
    """

    ok: bool | None
    figure: str
    where: str = ""


def randomise(decoder: Decoder) -> Decoder:
    """Draw the decoder's trained matrices anew, in place, and return it in evaluation mode.

    Each matrix then writes numbers about as large as those it reads.
    """
    chance = torch.Generator().manual_seed(0)
    for parameter in trained(decoder).values():
        if parameter.dim() >= 2:
            parameter.data.copy_(
                torch.randn(parameter.shape, generator=chance) / math.sqrt(parameter.shape[-1])
            )
    return decoder.eval()


def future(decoder: Decoder, row: Rows) -> Result:
    """Check that tokens from position t on do not affect the logits before t.

    Other tokens must change none of these logits, and no gradient of the logits may reach them.
    `row` is (1, T). It is checked with its documents, as in training, and without, as in
    generation.
    """
    row = _short(decoder, row)
    ids, length = row["input_ids"], row["input_ids"].shape[1]
    places = sorted({1, 1 + length // 4, 1 + length // 2, length - 1} & set(range(1, length)))
    leak = 0.0
    least = math.inf
    pull = 0.0
    with_documents = [row["document_ids"]] if "document_ids" in row else []
    for documents in (None, *with_documents):
        before = _logits(decoder, ids, documents)
        for t in places:
            after = _logits(
                decoder, torch.cat([ids[:, :t], _others(decoder, ids[:, t:])], dim=1), documents
            )
            leak = max(leak, _gap(after[:, :t], before[:, :t]))
            least = min(least, _gap(after[:, t:], before[:, t:]))
        pull = max(pull, _largest_gradient(decoder, ids, documents, places[-1]))
    where = (
        "model.py: Decoder._mask and the attention's is_causal: a token may attend to itself and to"
        " earlier tokens"
    )
    if least == 0:
        return Result(
            False,
            "other tokens change no logit at all, not even their own",
            "model.py: Decoder.forward does not read its input",
        )
    figure = (
        f"largest change {leak:.3g} in {len(places)} places (up to {least:.3g} after them),"
        f" gradient {pull:.3g}"
    )
    return Result(leak <= 1e-5 * least < math.inf and pull <= 1e-5, figure, where)


def cache(decoder: Decoder, row: Rows) -> Result:
    """Check that the cache gives the logits of one forward pass.

    The tokens enter one by one, in chunks, and after left padding. `row` is (1, T).
    """
    ids = _short(decoder, row)["input_ids"][:, :96]
    expected = _logits(decoder, ids)[0]
    length, pad = len(expected), len(expected) // 3
    padded = torch.cat([ids[:, :1].expand(1, pad), ids[:, : length - pad]], dim=1)
    worst = {
        "one token at a time": _through_cache(decoder, ids, [1] * length, [0], expected),
        "in chunks": _through_cache(decoder, ids, [pad, 1, length - pad - 1], [0], expected),
        "with left padding": _through_cache(
            decoder, torch.cat([ids, padded]), [length - 1, 1], [0, pad], expected
        ),
    }
    bound = ROUNDING * expected.std().item()
    broken = [way for way, value in worst.items() if not value <= bound]
    figure = (
        f"logits differ by at most {max(worst.values()):.2g} (their spread is"
        f" {expected.std().item():.2g})"
    )
    figure = (
        f"logits differ by {worst[broken[0]]:.2g} {broken[0]} (rounding would be {bound:.1g})"
        if broken
        else figure
    )
    return Result(
        not broken,
        figure,
        "model.py: KVCache, Decoder._positions and Decoder._mask: where do the new tokens stand?",
    )


def documents(decoder: Decoder, row: Rows) -> Result:
    """Check that packed documents do not affect each other.

    Other tokens in one document must change no logit of another, and each document must have the
    logits that it has alone. `row` is (1, T), with its documents.
    """
    row = _short(decoder, row)
    ids, numbers = row["input_ids"], row["document_ids"]
    packed = _logits(decoder, ids, numbers)
    leak = 0.0
    apart = 0.0
    tested = numbers[0].unique().tolist()[:8]
    if len(tested) < 2:
        return Result(None, "no row of the first batch holds two documents")
    for number in tested:
        mine = numbers == number
        leak = max(
            leak,
            _gap(
                _logits(decoder, torch.where(mine, _others(decoder, ids), ids), numbers)[~mine],
                packed[~mine],
            ),
        )
        alone = _logits(decoder, ids[mine][None], torch.zeros_like(ids[mine])[None])[0]
        apart = max(apart, _gap(alone, packed[mine]))
    bound = ROUNDING * packed.std().item()
    figure = (
        f"largest change {leak:.3g} in the others of {len(tested)} documents; alone each has the"
        f" same logits, up to {apart:.2g}"
    )
    return Result(
        leak <= bound and apart <= bound,
        figure,
        "model.py: Decoder._mask (document_ids) and Decoder._positions (from 0 in each)",
    )


@torch.no_grad()
def initial_loss(decoder: Decoder, rows: Rows, objective: Objective, fresh: bool) -> Result:
    """Check the first loss against its expected value.

    It is ln V for random weights (all tokens are equally likely), less for a trained base, and ln 2
    for preferences (the policy is its own reference). The tolerance is 5 %, plus sampling noise,
    plus what init_std adds at this width: logits of variance v cost v / 2.

    An untrained tied head prefers the token that it has just read, so that token is excluded there.
    """
    decoder.eval()
    choices = decoder.lm_head.out_features if objective.per_token else 2
    n = int(objective.count(rows))
    loss = objective.losses(decoder, rows).sum().item() / n
    expected = math.log(choices)
    echo = ""
    beyond = 0.0
    if fresh and objective.per_token:
        ids, labels = rows["input_ids"][:1], rows["labels"][:1]
        logits = _logits(decoder, ids, rows["document_ids"][:1] if "document_ids" in rows else None)
        spread = logits.std().item()
        asked = (labels != IGNORE_INDEX) & (labels != ids)
        if decoder.config.tie_embeddings:
            logits.scatter_(-1, ids[..., None], -math.inf)
            echo = f"; {loss:.3f} with the token itself, which a tied head prefers at first"
            loss = nn.functional.cross_entropy(logits[asked], labels[asked]).item()
            n = int(asked.sum())
        beyond = 3 * spread / math.sqrt(max(1, n))
    figure = f"{loss:.3f} nats, ln {choices:,} is {expected:.3f}{echo}"
    if fresh or not objective.per_token:
        where = (
            "model.init_std is too large, or the loss is not a mean"
            if loss > expected
            else "model.py: the answer leaks into the input"
        )
        above = beyond + (USUAL_STD**2 * decoder.config.d_model / 2 if objective.per_token else 0)
        return Result(0.95 * expected - beyond <= loss <= 1.05 * expected + above, figure, where)
    return Result(
        loss < expected,
        figure,
        "finetune.base: a trained model does better than chance; is this text, or template, its"
        " own?",
    )


def gradients(
    decoder: Decoder, optimizer: Optimizer, rows: Rows, objective: Objective, adapters: bool = False
) -> Result:
    """Check that every parameter has a gradient within three steps, and is in the optimiser.

    One step is not enough. A parameter before a projection that starts at zero, such as an
    adapter's A, has a gradient only after that projection has moved. Parameters may be frozen only
    with `adapters`.
    """
    decoder.eval()
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    learnt = trained(decoder) if adapters else dict(decoder.named_parameters())
    without = dict(learnt)
    steps = 0
    while without and steps < 3:
        optimizer.zero_grad()
        (objective.total(decoder, rows) / objective.count(rows).clamp(min=1)).backward()
        if odd := [
            name
            for name, parameter in learnt.items()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]:
            return Result(
                False, f"that of {odd[0]} is not finite", "optimizer.lr and model.init_std"
            )
        without = {
            name: parameter
            for name, parameter in without.items()
            if parameter.grad is None or not parameter.grad.any()
        }
        optimizer.step()
        steps += 1
    missing = [*without, *(name for name, parameter in learnt.items() if id(parameter) not in held)]
    where = (
        "model.py: does forward use it? requires_grad, and lm/optim/optimizers.py: does the"
        " optimiser have it?"
    )
    if missing:
        return Result(
            False,
            f"none for {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}, of {len(learnt)}",
            where,
        )
    return Result(True, f"all {len(learnt)}, within {steps} step{'s' * (steps > 1)}")


def overfit_one_batch(
    decoder: Decoder,
    optimizer: Optimizer,
    row: Rows,
    objective: Objective,
    share: float,
    seconds: float = OVERFIT_SECONDS,
) -> Result:
    """Check that the loss of one row, or of a piece of it, falls below a `share` of its start.

    Dropout is off. A low learning rate is raised: the question is whether the weights can follow,
    not how fast they should.
    """
    decoder.eval()
    row = _piece(row) if objective.per_token else row
    count = int(objective.count(row))
    started = time.monotonic()
    # A logit sums over the width, and Adam moves each weight by about the learning rate. A model
    # of half the width therefore needs twice the rate to get as far in as many steps.
    least = OVERFIT_LR * max(1, OVERFIT_WIDTH / decoder.config.d_model)
    rates = [max(group["lr"], least) for group in optimizer.param_groups]
    losses: list[float] = []
    for step in range(OVERFIT_STEPS + 1):
        optimizer.zero_grad()
        loss = objective.total(decoder, row) / count
        losses.append(loss.item())
        bound = share * losses[0]
        figure = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {step} steps (wanted: {bound:.3f})"
        if losses[-1] < bound:
            return Result(True, figure)
        if not math.isfinite(losses[-1]):
            break
        if step and time.monotonic() - started > seconds:
            return Result(
                None,
                f"{figure}; undecided after its limit of {seconds:g} s",
            )
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / OVERFIT_WARMUP)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
    return Result(
        False,
        figure,
        "optimizer.lr (too high?), frozen weights, labels that do not belong to their tokens, too"
        " small a d_model",
    )


def _logits(decoder: Decoder, ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """Return the logits, (B, T, V), in float32."""
    with torch.no_grad():
        logits: Tensor = decoder(ids, document_ids=documents).float()
    return logits


def _gap(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, or infinity if there is a NaN, which `max` would ignore."""
    return (one - other).abs().nan_to_num(nan=math.inf, posinf=math.inf).max().item()


def _others(decoder: Decoder, ids: Tensor) -> Tensor:
    """Return tokens of which each differs from the given one."""
    return (ids + 1) % decoder.lm_head.out_features


def _short(decoder: Decoder, row: Rows) -> dict[str, Tensor]:
    length = max(2, MOST_LOGITS // decoder.lm_head.out_features)
    return {name: tensor[:1, :length] for name, tensor in row.items()}


def _piece(row: Rows) -> dict[str, Tensor]:
    """Return the piece of a row that is memorised, with the row's first labels in it."""
    asked = (row["labels"][0] != IGNORE_INDEX).nonzero()
    first = int(asked[0]) if len(asked) else 0
    start = max(0, min(first - OVERFIT_TOKENS // 4, row["labels"].shape[1] - OVERFIT_TOKENS))
    return {name: tensor[:1, start : start + OVERFIT_TOKENS] for name, tensor in row.items()}


def _largest_gradient(decoder: Decoder, ids: Tensor, documents: Tensor | None, t: int) -> float:
    """Return the largest gradient of logits before t in the embeddings read from t on."""
    read: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # A leaf has a gradient even if the table itself is frozen.
        read.append(output.detach().requires_grad_())
        return read[-1]

    handle = decoder.embed_tokens.register_forward_hook(keep)
    try:
        decoder(ids, document_ids=documents)[:, :t].float().square().sum().backward()
    finally:
        handle.remove()
        decoder.zero_grad()
    gradient = read[0].grad
    assert gradient is not None
    return _gap(gradient[:, t:], torch.zeros_like(gradient[:, t:]))


def _through_cache(
    decoder: Decoder, ids: Tensor, sizes: list[int], padding: list[int], expected: Tensor
) -> float:
    """Return the largest difference from `expected`, (T, V), at the end of each chunk.

    Each row of `ids` begins with the given padding.
    """
    store = decoder.new_cache(len(ids), ids.shape[1])
    if any(padding):
        store.padding = torch.tensor(padding, device=ids.device)
    worst = 0.0
    end = 0
    for size in filter(None, sizes):
        with torch.no_grad():
            logits = decoder(ids[:, end : end + size], cache=store)[:, -1].float()  # (B, V)
        end += size
        for row, pad in zip(logits, padding, strict=True):
            worst = max(worst, _gap(row, expected[end - 1 - pad]))
    return worst
