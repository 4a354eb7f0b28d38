"""Decode a sequence of ids while it grows."""

from __future__ import annotations

from collections.abc import Sequence

from lm.tokenizer.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class TextStream:
    """The text of a growing sequence of ids, piece by piece and never half a character.

    The pieces together equal `decode` of all ids. A token is decoded after its predecessors,
    because its text may depend on them: on the first bytes of a character, or for a word's leading
    space. Only the few tokens since the second-last complete text are decoded again.
    """

    # Tokens that may wait for the rest of a character. If more wait, the bytes are not UTF-8 or the
    # text contains U+FFFD itself.
    LONGEST = 16
    # After this many tokens, a decoder that starts inside a character is in step again.
    ALIGNED = 8

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()):
        """Start after `context`, such as the ids of a prompt, whose text is not repeated."""
        self._tokenizer = tokenizer
        self._rebase(list(context))

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes: often a word, sometimes nothing."""
        if token_id in self._tokenizer.special_ids:
            # Many of them would push the text that the next word continues out of the window.
            return ""
        self._window.append(token_id)
        overdue = len(self._window) - self._settled > self.LONGEST
        text = self._tokenizer.decode(self._window)
        complete = text.rstrip(REPLACEMENT) if not overdue else text.removesuffix(REPLACEMENT)
        fresh = complete[self._sent :]
        if fresh and complete == text:
            self._rebase(self._window[self._settled :])
        elif overdue:
            self._rebase(self._window[-self.ALIGNED :], held=len(text) - len(complete))
        else:
            self._sent += len(fresh)
        return fresh

    def flush(self) -> str:
        """Return the rest of the text; half a character becomes U+FFFD."""
        rest = self._tokenizer.decode(self._window)[self._sent :]
        self._sent += len(rest)
        return rest

    def _rebase(self, window: list[int], held: int = 0) -> None:
        """Continue after `window`; all but the last `held` characters of its text are sent."""
        self._window = window
        self._settled = len(window)
        self._sent = len(self._tokenizer.decode(window)) - held


def continuation_text(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text of `ids` as a continuation of `context`."""
    stream = TextStream(tokenizer, context)
    return "".join([*map(stream.push, ids), stream.flush()])
