"""Text of a sequence of ids that grows."""

from __future__ import annotations

from collections.abc import Sequence

from lm.tokenizer.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class TextStream:
    """Text of a growing sequence of ids, piece by piece and never half a character: the pieces
    together are `decode` of all ids.

    A token is decoded behind its predecessors, for what it means may depend on them (a character's
    first bytes; whether a word's space is shown). They are few: those since the last but one place
    where the text was whole.
    """

    # Tokens that may wait for the rest of a character. More are not UTF-8, or U+FFFD itself.
    LONGEST = 16
    # Tokens after which a decoder that starts in the middle of a character is in step again.
    ALIGNED = 8

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()):
        """`context`: the ids that come before, such as the prompt's; their text is not repeated."""
        self._tokenizer = tokenizer
        self._rebase(list(context))

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes: often a word, sometimes nothing."""
        if token_id in self._tokenizer.special_ids:
            # In the window, a row of them would push out the text that the next word continues.
            return ""
        self._window.append(token_id)
        overdue = len(self._window) - self._settled > self.LONGEST
        text = self._tokenizer.decode(self._window)
        whole = text.rstrip(REPLACEMENT) if not overdue else text.removesuffix(REPLACEMENT)
        fresh = whole[self._sent :]
        if fresh and whole == text:
            self._rebase(self._window[self._settled :])
        elif overdue:
            self._rebase(self._window[-self.ALIGNED :], held=len(text) - len(whole))
        else:
            self._sent += len(fresh)
        return fresh

    def flush(self) -> str:
        """What is left at the end; half a character shows as U+FFFD."""
        rest = self._tokenizer.decode(self._window)[self._sent :]
        self._sent += len(rest)
        return rest

    def _rebase(self, window: list[int], held: int = 0) -> None:
        """Go on behind `window`, whose text is out but for the last `held` characters."""
        self._window = window
        self._settled = len(window)
        self._sent = len(self._tokenizer.decode(window)) - held


def text_behind(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` where they stand behind `context`."""
    stream = TextStream(tokenizer, context)
    return "".join([*map(stream.push, ids), stream.flush()])
