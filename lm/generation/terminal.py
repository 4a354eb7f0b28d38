"""A chat in the terminal, or with lines from a pipe. Answers go to stdout, everything else to
stderr.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from pathlib import Path

from lm.generation.chat import Chat
from lm.generation.continuation import shown
from lm.generation.prompt import MOST_PROMPT
from lm.system.disk import replace
from lm.system.errors import CheckpointError, DataError, printable
from lm.system.paths import expand

HELP = """/reset      begin anew; the model forgets what was said
/save FILE  write the conversation to FILE.jsonl, from which data.source.format: chat can learn
/help       show this
/quit       end, as Ctrl-D does; Ctrl-C stops an answer
Anything else is a message to the model. To begin one with a /, write a space before it."""
FORGETTING = (
    "the conversation no longer fits the context: from now on its oldest questions and answers are"
    " left out"
)

Reply = Callable[[str], Generator[str]]


class Terminal:
    """A loop over lines from stdin: commands, and messages with their answers."""

    def __init__(self, chat: Chat, reply: Reply, stream: bool):
        """`reply` is `Chat.reply` with all arguments but the message; `stream` shows answers while
        they grow.
        """
        self.chat = chat
        self._reply = reply
        self._stream = stream
        self._saved: Path | None = None
        self._person = sys.stdin is not None and sys.stdin.isatty()

    def run(self) -> None:
        """Answer lines until the last one. In a terminal Ctrl-C stops the current answer; from a
        pipe it ends the command.
        """
        if self._person:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives `input` line editing and history
            _note("/help shows the commands")
        while (line := self._read()) is not None:
            try:
                if line.startswith("/"):
                    if not self._command(*line.split(maxsplit=1)):
                        return
                elif line.strip():
                    self.say(line.strip())
            except KeyboardInterrupt:
                if not self._person:
                    raise
                _note("(stopped)")
            except (DataError, CheckpointError) as error:
                # The message is too long, or the file cannot be written: the conversation goes on.
                _note(str(error))

    def say(self, message: str) -> None:
        """Print the answer to a message. Raises DataError if the message cannot be sent."""
        complete = not self.chat.forgotten
        pieces: list[str] = []
        with contextlib.closing(self._reply(message)) as reply:
            try:
                for piece in reply:
                    if complete and self.chat.forgotten and not pieces:
                        _note(FORGETTING)
                    pieces.append(shown(piece))
                    if self._stream:
                        print(pieces[-1], end="", flush=True)
            finally:
                if pieces:
                    print("" if self._stream else "".join(pieces), flush=True)
        if not pieces:
            print(flush=True)
            _note("(no answer)")
            if complete and self.chat.forgotten:
                _note(FORGETTING)

    def _command(self, name: str, argument: str = "") -> bool:
        """Run a command; return whether the chat goes on."""
        match name:
            case "/quit":
                return False
            case "/help":
                _note(HELP)
            case "/reset":
                self.chat.reset()
                self._saved = None
            case "/save":
                self._save(argument.strip())
            case _:
                _note(
                    f"there is no {name}; /help shows the commands, and a space before it makes it"
                    " a message to the model"
                )
        return True

    def _save(self, name: str) -> None:
        if not name.endswith(".jsonl"):
            raise DataError(
                "write /save FILE.jsonl: it holds JSON lines, and data.source knows them by that"
                " ending"
            )
        if not self.chat.turns:
            raise DataError("there is nothing to save yet; write a message first")
        try:
            path = Path(expand(name))
            if path.exists() and path != self._saved:
                raise DataError(f"{path} is there already; name another")
            replace(path, self.chat.to_json() + "\n")
        except (OSError, ValueError) as error:  # no such home folder, or a NUL in the name
            raise DataError(f"{name}: {error}") from error
        self._saved = path
        _note(f"{path}: {len(self.chat.turns)} messages")

    def _read(self) -> str | None:
        """Return the next line without its end; None at the end of the input."""
        if sys.stdin is None:
            return None
        try:
            if not self._person:
                line = sys.stdin.buffer.readline(MOST_PROMPT + 1)
                if len(line) > MOST_PROMPT:
                    raise DataError(f"stdin: a line is longer than {MOST_PROMPT // 2**20} MiB")
                return line.decode("utf-8-sig").rstrip("\r\n") if line else None
            if sys.stdout.isatty():
                return input("> ")  # readline redraws the line, so it must know the prompt
            print("> ", end="", file=sys.stderr, flush=True)
            return input()
        except EOFError:
            _note("")
            return None
        except UnicodeDecodeError as error:
            _note(f"the message was not sent: it is not UTF-8 ({error.reason})")
            return ""


def _note(text: str) -> None:
    print(printable(text, "\n"), file=sys.stderr, flush=True)
