"""What must hold of any decoder, before a long run is spent on it: each check is handed one with
real rows, and says what it measured.

The first three are about who may look at whom, and are made on `lively` weights: at the start of a
run the projections that write to the residual stream may be zero, and then a token sees nobody, and
every mask looks right.
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
USUAL_STD = 0.02  # of initial weights, as GPT-2 and Llama have it
MOST_LOGITS = 2**24  # that a check holds at once
HEART_TOKENS = 128  # of the row that is learned by heart
HEART_WARMUP = 10
HEART_STEPS = 200
HEART_SECONDS = 60.0

Rows = Mapping[str, Tensor]  # `input_ids`, `labels` and perhaps `document_ids`, each (B, T)


class Result(NamedTuple):
    """What a check found: `ok` is None where there is nothing to check, `figure` what was measured,
    `where` to look if it is not ok.
    """

    ok: bool | None
    figure: str
    where: str = ""


def lively(decoder: Decoder) -> Decoder:
    """The decoder, in place, in evaluation mode, its trained matrices drawn so that each makes
    numbers about as large as those it reads.
    """
    chance = torch.Generator().manual_seed(0)
    for parameter in trained(decoder).values():
        if parameter.dim() >= 2:
            parameter.data.copy_(
                torch.randn(parameter.shape, generator=chance) / math.sqrt(parameter.shape[-1])
            )
    return decoder.eval()


def future(decoder: Decoder, row: Rows) -> Result:
    """Other tokens from place t on change no logit before t, and no gradient of those logits
    reaches them. `row` is (1, T); with its documents, as in training, and without, as in writing.
    """
    row = _short(decoder, row)
    ids, length = row["input_ids"], row["input_ids"].shape[1]
    places = sorted({1, 1 + length // 4, 1 + length // 2, length - 1} & set(range(1, length)))
    leak, least, pull = 0.0, math.inf, 0.0
    for documents in {id(each): each for each in (None, row.get("document_ids"))}.values():
        before = _logits(decoder, ids, documents)
        for t in places:
            after = _logits(
                decoder, torch.cat([ids[:, :t], _others(decoder, ids[:, t:])], dim=1), documents
            )
            leak, least = (
                max(leak, _gap(after[:, :t], before[:, :t])),
                min(least, _gap(after[:, t:], before[:, t:])),
            )
        pull = max(pull, _pull(decoder, ids, documents, places[-1]))
    where = (
        "model.py: Decoder._mask and the attention's is_causal: a token may look at itself and what"
        " came before"
    )
    if least == 0:
        return Result(
            False,
            "other tokens change no logit at all, not even their own",
            "model.py: Decoder.forward does not read its input",
        )
    figure = (
        f"largest change {leak:.3g} in {len(places)} places (up to {least:.3g} from there on),"
        f" gradient {pull:.3g}"
    )
    return Result(leak <= 1e-5 * least < math.inf and pull <= 1e-5, figure, where)


def cache(decoder: Decoder, row: Rows) -> Result:
    """Logits through the cache, token by token, in chunks, and behind left padding, against those
    of one forward pass. `row` is (1, T).
    """
    ids = _short(decoder, row)["input_ids"][:, :96]
    whole = _logits(decoder, ids)[0]
    length, pad = len(whole), len(whole) // 3
    padded = torch.cat([ids[:, :1].expand(1, pad), ids[:, : length - pad]], dim=1)
    worst = {
        "one token at a time": _through_cache(decoder, ids, [1] * length, [0], whole),
        "in chunks": _through_cache(decoder, ids, [pad, 1, length - pad - 1], [0], whole),
        "with left padding": _through_cache(
            decoder, torch.cat([ids, padded]), [length - 1, 1], [0, pad], whole
        ),
    }
    bound = ROUNDING * whole.std().item()
    broken = [way for way, value in worst.items() if not value <= bound]
    figure = (
        f"logits differ by at most {max(worst.values()):.2g} (their spread is"
        f" {whole.std().item():.2g})"
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
    """Other tokens in one document change nothing in another, and each reads as if it were alone.
    `row` is (1, T), with its documents.
    """
    row = _short(decoder, row)
    ids, numbers = row["input_ids"], row["document_ids"]
    packed, leak, apart = _logits(decoder, ids, numbers), 0.0, 0.0
    found = numbers[0].unique().tolist()[:8]
    if len(found) < 2:
        return Result(None, "no row of the first batch holds two documents")
    for number in found:
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
        f"largest change {leak:.3g} in the others of {len(found)} documents; alone each reads the"
        f" same, up to {apart:.2g}"
    )
    return Result(
        leak <= bound and apart <= bound,
        figure,
        "model.py: Decoder._mask (document_ids) and Decoder._positions (from 0 in each)",
    )


@torch.no_grad()
def initial_loss(decoder: Decoder, rows: Rows, objective: Objective, fresh: bool) -> Result:
    """Of untrained weights ln V, since every token is as likely; of a base less; of preferences ln
    2, since it is its own reference. Let pass are 5 %; of tokens what chance does to so few; and
    above, what the usual std adds at this width: logits of variance v cost v / 2.

    A tied head that nothing has been added to finds the token that it has just read more likely:
    that one is left out there.
    """
    decoder.eval()
    of, n, echo, beyond = (
        decoder.lm_head.out_features if objective.per_token else 2,
        int(objective.count(rows)),
        "",
        0.0,
    )
    loss, expected = objective.losses(decoder, rows).sum().item() / n, math.log(of)
    if fresh and objective.per_token:
        ids, labels = rows["input_ids"][:1], rows["labels"][:1]
        logits = _logits(decoder, ids, rows["document_ids"][:1] if "document_ids" in rows else None)
        spread, asked = logits.std().item(), (labels != IGNORE_INDEX) & (labels != ids)
        if decoder.config.tie_embeddings:
            logits.scatter_(-1, ids[..., None], -math.inf)
            echo = f"; {loss:.3f} with the token itself, which a tied head prefers at first"
            loss, n = (
                nn.functional.cross_entropy(logits[asked], labels[asked]).item(),
                int(asked.sum()),
            )
        beyond = 3 * spread / math.sqrt(max(1, n))
    figure = f"{loss:.3f} nats, ln {of:,} is {expected:.3f}{echo}"
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
    """Within three steps each parameter has had a gradient, and the optimiser has it. One step is
    not enough: what lies behind a projection that is zero at first, or an adapter's A, gets its
    first gradient once that has moved. Only beside `adapters` may anything be frozen.
    """
    decoder.eval()
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    learnt = trained(decoder) if adapters else dict(decoder.named_parameters())
    without, steps = dict(learnt), 0
    while without and steps < 3:
        optimizer.zero_grad()
        (objective.losses(decoder, rows).sum() / objective.count(rows).clamp(min=1)).backward()
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


def heart(
    decoder: Decoder,
    optimizer: Optimizer,
    row: Rows,
    objective: Objective,
    share: float,
    seconds: float = HEART_SECONDS,
) -> Result:
    """The loss of one row, or of a piece of it, falls below a `share` of what it was, without
    dropout. A rate below 1e-3 is raised to that: what is asked is whether the weights can follow,
    not how fast they should.
    """
    decoder.eval()
    row = _piece(row) if objective.per_token else row
    count, started = int(objective.count(row)), time.monotonic()
    rates = [max(group["lr"], 1e-3) for group in optimizer.param_groups]
    losses: list[float] = []
    for step in range(HEART_STEPS + 1):
        optimizer.zero_grad()
        loss = objective.losses(decoder, row).sum() / count
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
                f"{figure}; more than {seconds:g} s are not given to it, so that this stays open",
            )
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / HEART_WARMUP)
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
    """(B, T, V), float32."""
    with torch.no_grad():
        logits: Tensor = decoder(ids, document_ids=documents).float()
    return logits


def _gap(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite where there is a NaN, which Python's `max` and `min` would
    pass over.
    """
    return (one - other).abs().nan_to_num(nan=math.inf, posinf=math.inf).max().item()


def _others(decoder: Decoder, ids: Tensor) -> Tensor:
    """Other tokens than these."""
    return (ids + 1) % decoder.lm_head.out_features


def _short(decoder: Decoder, row: Rows) -> dict[str, Tensor]:
    length = max(2, MOST_LOGITS // decoder.lm_head.out_features)
    return {name: tensor[:1, :length] for name, tensor in row.items()}


def _piece(row: Rows) -> dict[str, Tensor]:
    """So much of a row as is learned by heart, with its first labels in it."""
    asked = (row["labels"][0] != IGNORE_INDEX).nonzero()
    first = int(asked[0]) if len(asked) else 0
    start = max(0, min(first - HEART_TOKENS // 4, row["labels"].shape[1] - HEART_TOKENS))
    return {name: tensor[:1, start : start + HEART_TOKENS] for name, tensor in row.items()}


def _pull(decoder: Decoder, ids: Tensor, documents: Tensor | None, t: int) -> float:
    """The largest gradient that logits before t send to the embeddings read from t on."""
    read: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # a leaf, also where the table itself is frozen
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
    decoder: Decoder, ids: Tensor, sizes: list[int], padding: list[int], whole: Tensor
) -> float:
    """How far the last row's logits are off `whole`, (T, V), at the end of each chunk; that row
    begins with so much padding.
    """
    store = decoder.new_cache(len(ids), ids.shape[1])
    if any(padding):
        store.padding = torch.tensor(padding, device=ids.device)
    worst, end = 0.0, 0
    for size in filter(None, sizes):
        with torch.no_grad():
            logits = decoder(ids[:, end : end + size], cache=store)[:, -1].float()  # (B, V)
        end += size
        for row, pad in zip(logits, padding, strict=True):
            worst = max(worst, _gap(row, whole[end - 1 - pad]))
    return worst
