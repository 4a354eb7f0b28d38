"""The text that a model continues: where it comes from, and its ids."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lm.system.disk import read_start
from lm.system.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer

MOST_PROMPT = 2**24  # bytes: a file such as /dev/zero must not be read for ever


def read_prompt(text: str | None, file: str | None) -> str:
    """Return the prompt: `text` unchanged, else the content of `file`, else that of stdin.

    The last line break of a file or of stdin comes from an editor or from `echo` and is dropped, as
    is a BOM. An empty `text` asks the model to begin a text; an empty file is probably a mistake.

    Raises:
        DataError: the file cannot be read, or the prompt is too long or not UTF-8.
        ConfigError: there is no prompt.
    """
    if text is None and file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ConfigError(
            "there is no prompt; write --prompt TEXT or --prompt-file FILE, or pipe a text in"
        )
    source = (
        "--prompt" if text is not None else "stdin" if file is None else file or "--prompt-file"
    )
    try:
        if text is not None:
            # Bytes of an argument that are not UTF-8 arrive as surrogates.
            return text.encode(errors="surrogateescape").decode()
        data = (
            sys.stdin.buffer.read(MOST_PROMPT + 1)
            if file is None
            else read_start(file, MOST_PROMPT)
        )
        if len(data) > MOST_PROMPT:
            raise DataError(
                f"{source} is larger than {MOST_PROMPT // 2**20} MiB; write a file that holds only"
                " the end of the text"
            )
        prompt = data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise DataError(f"{source} is not UTF-8 text: {error}") from error
    if not prompt:
        raise ConfigError(
            f'{source} holds no text to continue; write --prompt "" to let the model begin one'
        )
    return prompt


def open_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return a prompt's ids: one EOS, as before every document in training, then the text. An empty
    prompt is the EOS alone.
    """
    return [tokenizer.eos_id, *tokenizer.encode(text)]
