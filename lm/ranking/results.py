"""The results of one decoder on one set of cases: the likelihood of the targets, the choices, and
the continuations.

Each distinct question is scored once, in a batch with others of similar length. This changes the
time and none of the numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm.config.schema.cases import Case
from lm.evaluation.answers import Written, write_greedily
from lm.evaluation.memorisation import Memorised, memorised
from lm.evaluation.scoring import ROWS, continued, score
from lm.evaluation.training_text import TrainingText
from lm.generation.sampling import NOT_FINITE
from lm.ranking.cases import CaseSet
from lm.ranking.expressions import REGEX_SECONDS, at_most
from lm.ranking.questions import CaseEncoder, EncodedCase, Question
from lm.system.errors import ConfigError, NonFiniteError
from lm.tokens.round_trip import is_lost

if TYPE_CHECKING:
    from lm.documents.templates import ChatFormat
    from lm.tokenizer.tokenizer import Tokenizer
    from model import Decoder

REPEATED = 4  # tokens of an n-gram in `repetition`


@dataclass(frozen=True)
class CaseResult:
    """The results on one case.

    Attributes:
        nats: the negative log-probability of the likeliest accepted target. None if there is no
            target, or one does not fit the context.
        target_tokens: the scored tokens of that target. In a chat they include what the template
            puts around an answer, and the end of the turn.
        target_bytes: the UTF-8 bytes of the target's own text; 0 if its tokens lose a part of it,
            because then no bits per byte are of this text. Both are 0 if `nats` is None.
        chosen: the choice with the highest total log-probability. None if there are no choices, or
            one of them does not fit the context.
        right: whether the chosen one is an accepted target.
        continuation: the greedy continuation without its end; in a chat the answer without white
            space around it.
        ids: the tokens of the continuation, without its end.
        ended: whether the continuation ended by itself. None if the context had no room for it.
        repetition: the share of the continuation's 4-grams that occurred earlier in it. None if it
            has less than 5 tokens.
        exact: whether the continuation of a text begins with an accepted target, and no letter or
            digit follows; or whether an answer equals an accepted target. None without targets.
        contains, regex: whether the continuation has what the case looks for. None if it looks for
            nothing.
        cut: whether the prompt is longer than the context and lost its oldest tokens. Never in a
            chat.
        fits: False if the context has no room for the prompt, a target or a choice, and some result
            is therefore None.
    """

    nats: float | None
    target_tokens: int
    target_bytes: int
    chosen: str | None
    right: bool | None
    continuation: str
    ids: tuple[int, ...]
    ended: bool | None
    repetition: float | None
    exact: bool | None
    contains: bool | None
    regex: bool | None
    cut: bool = False
    fits: bool = True


@dataclass(frozen=True)
class SetResult:
    """The results on a set of cases.

    Attributes:
        results: the result on each case, in the file's order.
        distinct_1, distinct_2: the number of distinct tokens (pairs of tokens) in all continuations
            divided by the number of all. None without tokens.
        repetition: the mean repetition of the continuations that have one.
        ended_share: the share of the continuations that ended by themselves.
        scored_per_second: the tokens read per second to score targets and choices, including
            prompts. None if nothing was scored.
        generated_per_second: the tokens generated per second.
        memorised: the copies of the training text in the continuations. None before
            `look_for_copies`.
    """

    results: tuple[CaseResult, ...]
    distinct_1: float | None
    distinct_2: float | None
    repetition: float | None
    ended_share: float | None
    scored_per_second: float | None
    generated_per_second: float | None
    memorised: Memorised | None = None

    @property
    def cut(self) -> int:
        """Return the number of cases whose prompt was cut."""
        return sum(result.cut for result in self.results)


def measure_set(
    decoder: Decoder,
    tokenizer: Tokenizer,
    chat: ChatFormat | None,
    cases: CaseSet,
    rows: int = ROWS,
) -> SetResult:
    """Measure a decoder on all cases of a set. The decoder's mode (train or eval) is restored.

    Args:
        tokenizer: the decoder's own tokenizer.
        chat: the format of the chat if the cases are messages, else None.
        rows: how many sequences are read together.

    Raises:
        NonFiniteError: a score is NaN or infinite.
        ConfigError: a case's regular expression takes too long.
    """
    assert (chat is not None) == cases.chat
    encoder = CaseEncoder(tokenizer, chat, decoder.config.context_length)
    encoded = [encoder.encode(case) for case in cases.cases]
    # Warm up: a device's first pass takes seconds.
    score(decoder, [continued(tokenizer.eos_id, (), (tokenizer.eos_id,), encoder.context)])
    # Each distinct prompt once, sorted: the order of the cases must not change a single bit.
    prompts = sorted({case.prompt for case in encoded if encoder.can_continue(case.prompt)})
    started = time.perf_counter()
    written = write_greedily(
        decoder, tokenizer, prompts, cases.max_new_tokens, encoder.stop_ids, rows
    )
    seconds = time.perf_counter() - started
    n_generated = sum(len(continuation.ids) + continuation.ended for continuation in written)
    nats, scored_per_second = _score(decoder, encoder, encoded, rows)
    by_prompt = dict(zip(prompts, written, strict=True))
    results = tuple(
        _result(encoder, case, ids, by_prompt.get(ids.prompt), nats, f"{cases.path}: cases[{i}]")
        for i, (case, ids) in enumerate(zip(cases.cases, encoded, strict=True))
    )
    continuations = _continuations(results)
    return SetResult(
        results=results,
        distinct_1=_distinct(continuations, 1),
        distinct_2=_distinct(continuations, 2),
        repetition=_mean(
            [result.repetition for result in results if result.repetition is not None]
        ),
        ended_share=_mean([result.ended for result in results if result.ended is not None]),
        scored_per_second=scored_per_second,
        generated_per_second=n_generated / seconds if n_generated else None,
    )


def look_for_copies(text: TrainingText, results: Sequence[SetResult]) -> list[SetResult]:
    """Search the training text for copies in the continuations of one decoder, and return the
    results with `memorised`. Raises OSError if the tokens of the text were removed.
    """
    copies = memorised(text, [_continuations(result.results) for result in results])
    return [
        dataclasses.replace(result, memorised=copied)
        for result, copied in zip(results, copies, strict=True)
    ]


def repetition(ids: Sequence[int]) -> float | None:
    """Return the share of n-grams of REPEATED tokens that occurred earlier among the ids, or None
    with less than two n-grams.
    """
    ngrams = list(zip(*(ids[i:] for i in range(REPEATED)), strict=False))
    return (len(ngrams) - len(set(ngrams))) / len(ngrams) if len(ngrams) > 1 else None


def begins_with(text: str, target: str) -> bool:
    """Return whether a text begins with a target, and no letter or digit follows: " Paris." begins
    with " Paris", and " Parisians" does not.
    """
    return text.startswith(target) and not text[len(target) : len(target) + 1].isalnum()


def search(pattern: str, text: str, place: str) -> bool:
    """Return whether a regular expression matches anywhere in a text.

    Args:
        place: the place of the pattern, for messages.

    Raises:
        ConfigError: the search takes longer than REGEX_SECONDS. Outside the main thread there is no
            such limit.
    """
    try:
        with at_most(REGEX_SECONDS):
            return re.search(pattern, text) is not None
    except TimeoutError:
        wanted = "write it without repeats inside of repeats"
        raise ConfigError(
            f"{place}: took more than {REGEX_SECONDS:g} s for {len(text):,} characters, got"
            f" {pattern!r}, {wanted}"
        ) from None


def _score(
    decoder: Decoder, encoder: CaseEncoder, cases: Sequence[EncodedCase], rows: int
) -> tuple[dict[Question, float], float | None]:
    """Return the negative log-probability of each question that fits the context, and the number of
    tokens read per second.
    """
    questions = sorted(
        {
            question
            for case in cases
            for question in (*case.targets, *case.choices)
            if encoder.can_score(question)
        }
    )
    sequences = [
        continued(encoder.tokenizer.eos_id, *question, encoder.context) for question in questions
    ]
    started = time.perf_counter()
    nats = [float(scores.nats.sum()) for scores in score(decoder, sequences, rows)]
    seconds = time.perf_counter() - started
    if not all(map(math.isfinite, nats)):
        raise NonFiniteError(NOT_FINITE)
    return dict(zip(questions, nats, strict=True)), (
        sum(len(row.ids) for row in sequences) / seconds if sequences else None
    )


def _result(
    encoder: CaseEncoder,
    case: Case,
    encoded: EncodedCase,
    written: Written | None,
    nats: dict[Question, float],
    place: str,
) -> CaseResult:
    """Return the results on one case. `place` names the case in messages."""
    cost, target = min(
        ((nats[question], i) for i, question in enumerate(encoded.targets) if question in nats),
        default=(None, None),
    )
    if not all(question in nats for question in encoded.targets):
        cost = target = None
    costs = [nats[question] for question in encoded.choices if question in nats]
    chosen = (
        case.choices[costs.index(min(costs))] if costs and len(costs) == len(case.choices) else None
    )
    ids = written.ids if written is not None else ()
    text = encoder.text(encoded.prompt, ids)
    generated = written is not None
    matches = str.__eq__ if encoder.chat is not None else begins_with
    return CaseResult(
        nats=cost,
        target_tokens=len(encoded.targets[target].continuation) if target is not None else 0,
        target_bytes=(
            len(case.targets[target].encode())
            if target is not None and not is_lost(encoder.tokenizer, case.targets[target])
            else 0
        ),
        chosen=chosen,
        right=chosen in case.targets if chosen is not None else None,
        continuation=text,
        ids=ids,
        ended=written.ended if written is not None else None,
        repetition=repetition(ids),
        exact=(
            any(matches(text, target) for target in case.targets)
            if generated and case.targets
            else None
        ),
        contains=(
            any(wanted in text for wanted in case.contains) if generated and case.contains else None
        ),
        regex=(
            search(case.regex, text, f"{place}.regex")
            if generated and case.regex is not None
            else None
        ),
        cut=encoder.cuts(encoded),
        fits=generated
        and all(question in nats for question in (*encoded.targets, *encoded.choices)),
    )


def _continuations(results: Sequence[CaseResult]) -> list[tuple[int, ...]]:
    return [result.ids for result in results if result.ended is not None]


def _distinct(continuations: Sequence[Sequence[int]], n: int) -> float | None:
    ngrams = [
        ngram for ids in continuations for ngram in zip(*(ids[i:] for i in range(n)), strict=False)
    ]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
