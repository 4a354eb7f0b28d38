"""What one decoder makes of one set of cases: how likely it finds the targets, what it chooses, and
what it writes.

Each different question is asked once, and those of like lengths together, which changes the time
and none of the numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm.config.schema.cases import Case
from lm.evaluation.answers import Written, write_greedily
from lm.evaluation.memorisation import Memorised, memorised
from lm.evaluation.scoring import ROWS, continued, score
from lm.evaluation.training_text import TrainingText
from lm.ranking.cases import CaseSet
from lm.ranking.questions import Asked, Asking, Question
from lm.system.errors import ConfigError, NonFiniteError

if TYPE_CHECKING:
    from lm.documents.templates import ChatFormat
    from lm.tokenizer.tokenizer import Tokenizer

REGEX_SECONDS = 5.0  # a pattern with repeats inside of repeats may take years


@dataclass(frozen=True)
class CaseResult:
    """Of one case.

    Attributes:
        nats: the negative log-probability of the likeliest accepted target. None: there is none, or
            one does not fit the context.
        target_tokens: of that target, as they are scored: in a chat with what the template puts
            around an answer, its end included.
        target_bytes: of the target's own text in UTF-8. Both are 0 where `nats` is None.
        chosen: the choice with the highest total log-probability. None: there are none, or one of
            them does not fit the context.
        right: whether that is an accepted target.
        continuation: what is written greedily, without its end; in a chat the answer, without white
            space around it.
        ids: its tokens, without its end.
        ended: it ended by itself. None: there was no room to write anything, and what is said of
            the continuation is nothing.
        repetition: the share of its 4-grams of tokens that occurred earlier in it. None: it has
            less than 5 tokens.
        exact: in a text, whether the continuation begins with an accepted target and no letter or
            digit follows; in a chat, whether the answer is one. None: there is no target.
        contains, regex: whether the continuation has what the case looks for. None: it looks for
            nothing.
        cut: the prompt is longer than the context and lost its oldest tokens; never in a chat.
        fits: False where the context has no room for the prompt, a target or a choice, and
            something is None because of that.
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

    @property
    def tokens(self) -> int:
        """How many were written."""
        return len(self.ids)


@dataclass(frozen=True)
class SetResult:
    """Of all cases, in their order.

    Attributes:
        distinct_1, distinct_2: the different tokens (pairs of tokens) of all continuations, by all
            of them. None: there are none.
        repetition: the mean of the continuations that have one.
        ended_share: the share of what was continued that ended by itself.
        scored_per_second: tokens a second that were read to score targets and choices, prompts
            included. None: nothing was asked.
        generated_per_second: tokens a second that were written.
        memorised: what of the continuations stands in the training text, where that was looked for
            (`look_for_copies`).
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
        """Cases whose prompt was cut."""
        return sum(result.cut for result in self.results)


def measure(
    decoder: Any, tokenizer: Tokenizer, chat: ChatFormat | None, cases: CaseSet, rows: int = ROWS
) -> SetResult:
    """Ask a decoder all cases of a set; it is left in the mode it came in.

    Args:
        decoder: a `model.Decoder`.
        tokenizer: its own.
        chat: how it is spoken with, where the cases are messages; else None.
        cases: what is asked.
        rows: how many are read together.

    Raises:
        NonFiniteError: its scores are NaN or infinite.
        ConfigError: a case's regular expression takes too long.
    """
    assert (chat is not None) == cases.chat
    asking = Asking(tokenizer, chat, decoder.config.context_length)
    asked = [asking.of(case) for case in cases.cases]
    # a device's first pass takes seconds
    score(decoder, [continued(tokenizer.eos_id, (), (tokenizer.eos_id,), asking.context)])
    # Each different one once, in an order of their own: so that of the cases cannot matter, to the
    # last bit.
    prompts = sorted({each.prompt for each in asked if asking.can_continue(each.prompt)})
    started = time.perf_counter()
    written = write_greedily(
        decoder, tokenizer, prompts, cases.max_new_tokens, asking.stop_ids, rows
    )
    seconds = time.perf_counter() - started
    drawn = sum(len(each.ids) + each.ended for each in written)
    nats, scored_per_second = _score(decoder, asking, asked, rows)
    of_prompt = dict(zip(prompts, written, strict=True))
    results = tuple(
        _result(
            asking, case, each, of_prompt.get(each.prompt), nats, f"{cases.path}: cases[{i}].regex"
        )
        for i, (case, each) in enumerate(zip(cases.cases, asked, strict=True))
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
        generated_per_second=drawn / seconds if drawn else None,
    )


def look_for_copies(text: TrainingText, results: Sequence[SetResult]) -> list[SetResult]:
    """The results with `memorised`, of what one decoder has written. Raises OSError where the
    tokens were removed.
    """
    found = memorised(text, [_continuations(each.results) for each in results])
    return [
        dataclasses.replace(each, memorised=copies)
        for each, copies in zip(results, found, strict=True)
    ]


def repetition(ids: Sequence[int], n: int = 4) -> float | None:
    """The share of n-grams that occurred earlier among the ids; None where there are less than two
    of them, which could not repeat.
    """
    ngrams = list(zip(*(ids[i:] for i in range(n)), strict=False))
    return (len(ngrams) - len(set(ngrams))) / len(ngrams) if len(ngrams) > 1 else None


def begins_with(text: str, target: str) -> bool:
    """Whether a text begins so, and no letter or digit follows: " Paris" begins " Paris.", and not
    " Parisians".
    """
    return text.startswith(target) and not text[len(target) : len(target) + 1].isalnum()


def search(pattern: str, text: str, place: str) -> bool:
    """Whether a regular expression is found in a text.

    Raises:
        ConfigError: that takes longer than REGEX_SECONDS; names the place. Outside the main thread
            there is no such limit.
    """

    def ring(*_: object) -> None:
        raise TimeoutError

    if threading.current_thread() is not threading.main_thread():
        return re.search(pattern, text) is not None
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, REGEX_SECONDS)
        return re.search(pattern, text) is not None
    except TimeoutError:
        wanted = "write it without repeats inside of repeats"
        raise ConfigError(
            f"{place}: took more than {REGEX_SECONDS:g} s for {len(text):,} characters, got"
            f" {pattern!r}, {wanted}"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _score(
    decoder: Any, asking: Asking, asked: Sequence[Asked], rows: int
) -> tuple[dict[Question, float], float | None]:
    """The negative log-probability of each question that there is room for, and how many tokens a
    second were read for that.
    """
    questions = sorted(
        {
            question
            for each in asked
            for question in (*each.targets, *each.choices)
            if asking.can_score(question)
        }
    )
    sequences = [
        continued(asking.tokenizer.eos_id, *question, asking.context) for question in questions
    ]
    started = time.perf_counter()
    nats = [float(scores.nats.sum()) for scores in score(decoder, sequences, rows)]
    seconds = time.perf_counter() - started
    if not all(map(math.isfinite, nats)):
        raise NonFiniteError(
            "the model's scores are not finite: its weights are damaged or diverged; try an earlier"
            " checkpoint"
        )
    return dict(zip(questions, nats, strict=True)), (
        sum(len(row.ids) for row in sequences) / seconds if sequences else None
    )


def _result(
    asking: Asking,
    case: Case,
    asked: Asked,
    written: Written | None,
    nats: dict[Question, float],
    regex: str,
) -> CaseResult:
    """`regex` is what messages call the case's."""
    cost, target = min(
        ((nats[each], i) for i, each in enumerate(asked.targets) if each in nats),
        default=(None, None),
    )
    if not all(each in nats for each in asked.targets):
        cost = target = None
    costs = [nats[each] for each in asked.choices if each in nats]
    chosen = (
        case.choices[costs.index(min(costs))] if costs and len(costs) == len(case.choices) else None
    )
    ids = written.ids if written is not None else ()
    said = asking.text(asked.prompt, ids)
    looked_at = written is not None
    matches = str.__eq__ if asking.chat is not None else begins_with
    return CaseResult(
        nats=cost,
        target_tokens=len(asked.targets[target].continuation) if target is not None else 0,
        target_bytes=len(case.targets[target].encode()) if target is not None else 0,
        chosen=chosen,
        right=chosen in case.targets if chosen is not None else None,
        continuation=said,
        ids=ids,
        ended=written.ended if written is not None else None,
        repetition=repetition(ids),
        exact=(
            any(matches(said, each) for each in case.targets)
            if looked_at and case.targets
            else None
        ),
        contains=(
            any(each in said for each in case.contains) if looked_at and case.contains else None
        ),
        regex=search(case.regex, said, regex) if looked_at and case.regex is not None else None,
        cut=asking.cuts(asked),
        fits=looked_at and all(each in nats for each in (*asked.targets, *asked.choices)),
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
