"""How much of what a model wrote stands in the text that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Memorised:
    """Of some continuations.

    Attributes:
        longest_run: the most consecutive tokens of a continuation that stand so in the training text; 0: none of them occurs there.
        longest_text: their text.
        n: how many tokens an n-gram has.
        ngrams: how many there are in the continuations, equal ones counted each time.
        novel_share: the share of them that the training text does not have; None where there are none.
        tokens_read: of the training text.
        seconds: that took.
        missing: what of the training text is not here, a line for each part: then the longest run is at least, and the novel share at most
            what is said.
    """

    longest_run: int
    longest_text: str
    n: int
    ngrams: int
    novel_share: float | None
    tokens_read: int
    seconds: float
    missing: tuple[str, ...] = ()
