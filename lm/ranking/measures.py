"""The measures of a decoder on a set of cases, and which of two values is the better one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lm.config.schema.cases import Case
from lm.ranking.cases import CaseSet
from lm.ranking.results import CaseResult, SetResult
from lm.system.errors import ConfigError

Kind = Literal["share", "number", "count"]  # printed in percent, with decimals, as an integer
Counted = tuple[float, float] | None


@dataclass(frozen=True)
class Measure:
    """A quotient of two sums over cases. Resampling the cases gives its interval.

    Attributes:
        key: its name in files and in --by.
        label: its name in tables.
        words: the unit of a difference, for sentences.
        higher: whether the higher value is the better one.
        asks: return whether a case asks for this measure.
        count: return what a case adds to the numerator and to the denominator, or None if it could
            not be measured.
    """

    key: str
    label: str
    words: str
    kind: Kind
    higher: bool
    asks: Callable[[Case], bool]
    count: Callable[[CaseResult], Counted]


@dataclass(frozen=True)
class Figure:
    """A number about all continuations of a set, or about the machine. No ranking uses it."""

    key: str
    label: str
    kind: Kind
    read: Callable[[SetResult], float | None]


def _yes(value: bool | None) -> Counted:
    return None if value is None else (float(value), 1.0)


def _bits_per_byte(result: CaseResult) -> Counted:
    return (
        None
        if result.nats is None or not result.target_bytes
        else (result.nats / math.log(2), float(result.target_bytes))
    )


def _nats_per_token(result: CaseResult) -> Counted:
    return None if result.nats is None else (result.nats, float(result.target_tokens))


def _has_target(case: Case) -> bool:
    return bool(case.targets)


ACCURACY = Measure(
    "accuracy",
    "accuracy",
    "points of accuracy",
    "share",
    True,
    lambda case: bool(case.choices),
    lambda result: _yes(result.right),
)
# rank_set computes it from the accuracy of a set, so that single cases add nothing.
CENTRED = Measure(
    "centred_accuracy",
    "centred",
    "points of centred accuracy",
    "share",
    True,
    lambda case: False,
    lambda result: None,
)
BITS_PER_BYTE = Measure(
    "bits_per_byte", "bits/byte", "bits per byte", "number", False, _has_target, _bits_per_byte
)
NATS_PER_TOKEN = Measure(
    "nats_per_token", "nats/token", "nats per token", "number", False, _has_target, _nats_per_token
)
MEASURES = (
    ACCURACY,
    BITS_PER_BYTE,
    NATS_PER_TOKEN,
    Measure(
        "exact",
        "exact",
        "points of exact matches",
        "share",
        True,
        _has_target,
        lambda result: _yes(result.exact),
    ),
    Measure(
        "contains",
        "contains",
        "points of hits",
        "share",
        True,
        lambda case: bool(case.contains),
        lambda result: _yes(result.contains),
    ),
    Measure(
        "regex",
        "regex",
        "points of hits",
        "share",
        True,
        lambda case: case.regex is not None,
        lambda result: _yes(result.regex),
    ),
)
RANKED_BY = tuple(measure.key for measure in MEASURES)
FIGURES = (
    Figure("ended_share", "stops", "share", lambda result: result.ended_share),
    Figure("repetition", "repeats", "share", lambda result: result.repetition),
    Figure("distinct_1", "distinct-1", "share", lambda result: result.distinct_1),
    Figure("distinct_2", "distinct-2", "share", lambda result: result.distinct_2),
    Figure(
        "longest_copied",
        "longest copy",
        "count",
        lambda result: result.memorised.longest_run if result.memorised else None,
    ),
    Figure(
        "novel_share",
        "novel",
        "share",
        lambda result: result.memorised.novel_share if result.memorised else None,
    ),
    Figure("scored_per_second", "read/s", "count", lambda result: result.scored_per_second),
    Figure(
        "generated_per_second", "written/s", "count", lambda result: result.generated_per_second
    ),
)


def check_by(by: str | None, sets: Sequence[CaseSet], tokenizers: set[str]) -> None:
    """Check, before anything is measured, that checkpoints can be ranked by a measure.

    Args:
        by: the measure's key from --by, or None.
        tokenizers: the hashes of the checkpoints' tokenizers.

    Raises:
        ConfigError: the measure does not exist, no case asks for it, or its unit differs between
            the checkpoints.
    """
    if by is None:
        return
    if by not in RANKED_BY:
        raise ConfigError(
            f"--by: there is no measure {by!r} to rank by; write one of {', '.join(RANKED_BY)}"
        )
    measure = next(measure for measure in MEASURES if measure.key == by)
    if not any(measure.asks(case) for cases in sets for case in cases.cases):
        raise ConfigError(
            f"--by {by}: no case of {', '.join(str(cases.path) for cases in sets)} asks for it;"
            " leave --by out"
        )
    if measure is NATS_PER_TOKEN and len(tokenizers) > 1:
        raise ConfigError(
            f"--by {by}: these checkpoints have different tokenizers, whose tokens are no common"
            " unit; write bits_per_byte"
        )
