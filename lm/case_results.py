"""What one decoder makes of one set of cases: how likely it finds the targets, what it chooses, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass

from lm.memorisation import Memorised


@dataclass(frozen=True)
class CaseResult:
    """Of one case.

    Attributes:
        nats: the negative log-probability of the likeliest accepted target. None: it has none, or it does not fit the context.
        target_tokens: of that target, as they are scored: in a chat with what the template puts around an answer, its end included.
        target_bytes: of the target's own text in UTF-8; 0 where there is no target or it does not fit.
        chosen: the choice with the highest total log-probability. None: there are none, or one of them does not fit the context.
        right: whether that is an accepted target.
        continuation: what is written greedily, without its end; in a chat the answer, without white space around it.
        ids: its tokens, without its end.
        ended: it ended by itself.
        repetition: the share of its 4-grams of tokens that occurred earlier in it. None: it has less than 5 tokens.
        exact: in a text, whether the continuation begins with an accepted target and no letter or digit follows; in a chat, whether the
            answer is one. None: there is no target.
        contains, regex: whether the continuation has what the case looks for. None: it looks for nothing.
        cut: the prompt is longer than the context and lost its oldest tokens; never in a chat.
        fits: False where the context has no room for the prompt, a target or a choice, and something is None because of that.
    """

    nats: float | None
    target_tokens: int
    target_bytes: int
    chosen: str | None
    right: bool | None
    continuation: str
    ids: tuple[int, ...]
    ended: bool
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
        distinct_1, distinct_2: the different tokens (pairs of tokens) of all continuations, by all of them. None: there are none.
        repetition: the mean of the continuations that have one.
        ended_share: the share of what was continued that ended by itself.
        scored_per_second: tokens a second that were read to score targets and choices, prompts included. None: nothing was asked.
        generated_per_second: tokens a second that were written.
        memorised: what of the continuations stands in the training text, where that was given.
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

    @property
    def unfit(self) -> int:
        """Cases of which something could not be measured, for want of room in the context."""
        return sum(not result.fits for result in self.results)
