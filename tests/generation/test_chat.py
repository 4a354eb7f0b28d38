"""A conversation with a model that has learnt three answers: python -m pytest
tests/generation/test_chat.py.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infer import main
from lm.config.schema.model import ModelConfig
from lm.documents.conversations import Conversation, Turn
from lm.documents.layouts import conversation_of
from lm.documents.templates import ChatFormat
from lm.generation.chat import Chat
from lm.generation.sampling import Sampling
from lm.generation.terminal import Terminal
from lm.system.errors import ConfigError, DataError
from lm.tokenizer.tokenizer import ByteTokenizer
from model import Decoder
from tests.support import runs

ROOT = Path(__file__).parents[2]
BYTE = ByteTokenizer()
FORM = ChatFormat("instruction-output", BYTE)
TALK = ("Hi", "Ho 語🙂", "And?", " two\n lines")  # the second answer begins with a space of its own
GREEDY = Sampling(temperature=0)


@functools.cache
def learned() -> Decoder:
    """Return a decoder that knows both turns of TALK by heart and answers "0" with many digits."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=BYTE.vocab_size, d_model=64, n_layers=2, n_heads=2, context_length=2048
    )
    decoder = Decoder(config)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    turns = tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(TALK))
    length = 200
    rows = []
    for known in (turns, (Turn("user", "0"), Turn("assistant", "0123456789" * length))):
        ids = [BYTE.eos_id, *FORM.encode(Conversation(known)).ids.tolist()]
        rows.append((ids + [BYTE.pad_id] * length)[: length + 1])
    batch = torch.tensor(rows)
    for _ in range(150):
        optimizer.zero_grad()
        (decoder(batch[:, :-1], batch[:, 1:]).sum() / batch.numel()).backward()
        optimizer.step()
    return decoder


def checkpoint(folder: Path, source: dict[str, object]) -> Path:
    trainer = {"max_steps": 150, "batch_size": 8, "micro_batch_size": 8}
    config = {
        "data": {"source": {"files": "x.jsonl", **source}, "document_mask": True},
        "trainer": trainer,
    }
    return runs.write_trained(folder, learned(), BYTE, config)


@pytest.fixture(scope="module")
def speaks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(
        tmp_path_factory.mktemp("speaks"), {"format": "chat", "template": "instruction-output"}
    )


@pytest.fixture(scope="module")
def writes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("writes"), {"format": "txt"})


# ---------------------------------------------------------------- what the model reads


def test_a_prompt_is_the_format_s_of_all_turns() -> None:
    chat = Chat(FORM, 1000, 100)
    assert chat.prompt("Hi") == FORM.prompt([Turn("user", "Hi")])
    chat.take("Hi", "Ho")
    assert chat.prompt("And?") == FORM.prompt(
        [Turn("user", "Hi"), Turn("assistant", "Ho"), Turn("user", "And?")]
    )
    assert chat.turns == [
        Turn("user", "Hi"),
        Turn("assistant", "Ho"),
    ], "asking for a prompt remembers nothing"
    # This asks for more than fits: half of the context is for an answer, half for the past.
    eager = Chat(FORM, 400, 1000)
    eager.turns = list(chat.turns)
    assert eager.prompt("And?") == chat.prompt("And?")
    chat.reset()
    assert (chat.turns, chat.prompt("Hi")) == ([], FORM.prompt([Turn("user", "Hi")]))


def test_the_oldest_turns_go_first_and_whole_and_the_system_stays() -> None:
    form = ChatFormat("alpaca", BYTE, system="Be brief.")
    chat = Chat(form, 200, 40)
    for i in range(9):
        # The lengths vary, so that often only the question makes the prompt too long.
        question = f"Question {i}" + "?" * (13 * i % 40)
        ids = chat.prompt(question)
        assert len(ids) <= 200 - 40
        assert ids[0] == BYTE.eos_id and BYTE.decode(ids).startswith(
            "Be brief.\n\n### Instruction:\nQuestion "
        )
        read = chat.turns[chat.forgotten :]
        assert ids == form.prompt([*read, Turn("user", question)])
        if chat.forgotten:  # one more pair would not fit
            assert (
                len(form.prompt([*chat.turns[chat.forgotten - 2 :], Turn("user", question)])) > 160
            )
        chat.take(question, f"Answer {i}")
    assert chat.forgotten > 0 and chat.forgotten % 2 == 0
    assert len(chat.turns) == 18, "what is forgotten is still there to be saved"


@settings(deadline=None)
@given(
    st.integers(1, 120),
    st.integers(8, 100),
    st.lists(st.text("ab", min_size=1, max_size=40), max_size=8),
)
def test_there_is_always_room_for_an_answer(
    longest: int, context: int, messages: list[str]
) -> None:
    """The prompt leaves room for `longest` tokens or half of the context. A message that stands
    alone leaves at least one token.
    """
    chat = Chat(FORM, context, longest)
    for message in messages:
        try:
            ids = chat.prompt(message)
        except DataError as error:
            assert len(FORM.prompt([Turn("user", message)])) >= context
            assert f"tokens, and the context {context}" in str(error)
            continue
        alone = chat.forgotten == len(chat.turns)
        assert len(ids) < context if alone else len(ids) + min(longest, context // 2) <= context
        chat.take(message, "b")


def test_what_cannot_be_sent_changes_nothing() -> None:
    chat = Chat(FORM, 80, 10)
    chat.take("Hi", "Ho")
    cases = (
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("\ud800", "half a surrogate pair"),
        ("x" * 80, "122 tokens"),
    )
    for message, told in cases:
        with pytest.raises(DataError, match=f"^the message was not sent: .*{told}"):
            chat.prompt(message)
        assert chat.turns == [Turn("user", "Hi"), Turn("assistant", "Ho")]
        assert chat.forgotten == 0


def test_a_conversation_is_saved_as_it_can_be_learnt() -> None:
    chat = Chat(FORM, 1000, 100)
    for i in (0, 2):
        chat.take(TALK[i], TALK[i + 1])
    assert conversation_of(json.loads(chat.to_json()), "auto") == Conversation(tuple(chat.turns))
    chat.format = ChatFormat("instruction-output", BYTE, system="Be brief.")
    assert conversation_of(json.loads(chat.to_json()), "auto") == Conversation(
        (Turn("system", "Be brief."), *chat.turns)
    )


# ---------------------------------------------------------------- what it answers


def replies(chat: Chat, message: str, decoder: Any = None, **options: Any) -> Generator[str]:
    return chat.reply(message, decoder or learned(), GREEDY, torch.Generator(), **options)


@pytest.mark.usefixtures("takes_seconds")
def test_a_talk_goes_on_as_it_was_learnt() -> None:
    """The answer comes token by token, without the template's white space around it, but with its
    own.
    """
    chat = Chat(FORM, 1000, 100)
    pieces = list(replies(chat, TALK[0]))
    assert pieces == ["H", "o", " ", "語", "🙂"]
    assert "".join(replies(chat, TALK[2])) == TALK[3]
    assert [turn.content for turn in chat.turns] == list(TALK)
    whole = FORM.encode(Conversation(tuple(chat.turns))).ids.tolist()
    assert [BYTE.eos_id, *whole] == [
        *FORM.prompt(chat.turns[:3]),
        *FORM.answer(TALK[3]),
    ], "read again as it was in training"


@pytest.mark.usefixtures("takes_seconds")
def test_an_answer_ends_at_its_longest_and_where_the_context_ends() -> None:
    prompt = len(FORM.prompt([Turn("user", "0")]))
    # One token of the answer is the space before it.
    for context, longest, said in (
        (1000, 20, "0123456789012345678"),
        (prompt + 11, 500, "0123456789"),
    ):
        assert "".join(replies(Chat(FORM, context, longest), "0")) == said
    assert "".join(replies(Chat(FORM, 1000, 500), "0", stops=["56"])) == "01234"


def test_an_answer_that_is_broken_off_is_remembered_and_one_that_never_began_is_not() -> None:
    chat = Chat(FORM, 1000, 100)
    reply = replies(chat, "0")
    assert [next(reply) for _ in range(3)] == ["0", "1", "2"]
    assert chat.turns == []
    reply.close()
    assert chat.turns == [Turn("user", "0"), Turn("assistant", "012")]
    reply = replies(chat, "0")
    reply.close()
    assert len(chat.turns) == 2
    chat.take("x", " ")
    assert len(chat.turns) == 2, "to an answer that says nothing, nothing can be learnt"


# ---------------------------------------------------------------- the terminal


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return `typed(chat, lines)`, which gives stdout and stderr as when a person types the lines.
    A line that is an exception is raised.
    """

    def run(
        chat: Chat, *lines: str | type[BaseException], reply: Any = None, stream: bool = True
    ) -> tuple[str, list[str]]:
        stdin = io.StringIO()
        stdin.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stdin)
        waiting = iter(lines)

        def typing(prompt: str = "") -> str:
            line = next(waiting, EOFError)
            if not isinstance(line, str):
                raise line
            return line

        monkeypatch.setattr("builtins.input", typing)
        Terminal(chat, reply or functools.partial(replies, chat), stream).run()
        assert next(waiting, None) is None
        printed = capsys.readouterr()
        return printed.out, [
            line
            for line in printed.err.replace("> ", "").splitlines()
            if line and line != "/help shows the commands"
        ]

    return run


def test_messages_are_answered_and_commands_obeyed(typed: Any, tmp_path: Path) -> None:
    chat, file = Chat(FORM, 1000, 100), tmp_path / "talk.jsonl"
    printed, told = typed(chat, "Hi", "", "  ", "And?", f"/save {file}", "/reset", "Hi", "/quit")
    assert printed == "Ho 語🙂\n two\n lines\nHo 語🙂\n"
    assert told == [f"{file}: 4 messages"]
    assert [
        message["content"] for message in json.loads(file.read_text(encoding="utf-8"))["messages"]
    ] == list(TALK)
    assert len(chat.turns) == 2


def test_help_and_what_is_no_command(typed: Any) -> None:
    chat = Chat(FORM, 1000, 100)
    printed, told = typed(
        chat, "/help", "/halp me", "/", " /etc", reply=lambda message: iter_of(f"<{message}>")
    )
    assert printed == "</etc>\n"
    assert [line.split()[0] for line in told[:4]] == ["/reset", "/save", "/help", "/quit"]
    assert told[-2:] == [
        f"there is no {name}; /help shows the commands, and a space before it makes it a message"
        " to the model"
        for name in ("/halp", "/")
    ]


def iter_of(*pieces: str) -> Generator[str]:
    yield from pieces


def test_what_is_saved_and_what_is_not(typed: Any, tmp_path: Path) -> None:
    """A file of somebody else is not overwritten. The chat's own file is, until another
    conversation begins.
    """
    chat, file, other = Chat(FORM, 1000, 100), tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    other.write_text("mine", encoding="utf-8")
    lines = [
        f"/save {file}",
        "Hi",
        "/save",
        "/save x.txt",
        f"/save {other}",
        f"/save {file}",
        "And?",
        f"/save {file}",
    ]
    wrong = [f"/save {tmp_path}/gone/a.jsonl", "/save ~nobody-here/a.jsonl", "/save a\0b.jsonl"]
    _, told = typed(chat, *lines, "/reset", "Hi", f"/save {file}", *wrong)
    assert told[:6] == [
        "there is nothing to save yet; write a message first",
        *["write /save FILE.jsonl: it holds JSON lines, and data.source knows them by that ending"]
        * 2,
        f"{other} is there already; name another",
        f"{file}: 2 messages",
        f"{file}: 4 messages",
    ]
    assert told[6] == f"{file} is there already; name another"
    assert told[7].startswith(
        f"{tmp_path}/gone/a.jsonl could not be written: No such file or directory"
    )
    assert told[8].startswith("~nobody-here/a.jsonl: ")
    assert told[9:] == ["a\ufffdb.jsonl: embedded null byte"]
    assert other.read_text(encoding="utf-8") == "mine"
    assert len(json.loads(file.read_text(encoding="utf-8"))["messages"]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_that_something_is_forgotten_is_said_once(typed: Any) -> None:
    chat = Chat(FORM, 160, 20)

    def reply(message: str) -> Generator[str]:
        chat.prompt(message)
        yield from ("y", "es")
        chat.take(message, "yes")

    printed, told = typed(chat, *["0"] * 5, "/reset", *["0"] * 5, reply=reply)
    assert printed == "yes\n" * 10
    assert [line[:46] for line in told] == ["the conversation no longer fits the context: f"] * 2


def test_that_something_is_forgotten_is_said_where_nothing_is_answered(typed: Any) -> None:
    chat = Chat(FORM, 1000, 100)

    def reply(message: str) -> Generator[str]:
        chat.forgotten = 2
        yield from ()

    _, told = typed(chat, "x", "x", reply=reply)
    assert [line[:20] for line in told] == ["(no answer)", "the conversation no ", "(no answer)"]


@pytest.mark.parametrize("screen", [True, False])
def test_no_answer_commands_the_terminal(
    typed: Any, monkeypatch: pytest.MonkeyPatch, screen: bool
) -> None:
    """Answers and typed commands send no control characters to a terminal. Any other output gets
    the answer as it is.
    """
    hostile = "a\x1b[2J\x9b1m\x7f\r\n\t語\u200d🙂\xa0b"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: screen, raising=False)
    printed, told = typed(
        Chat(FORM, 1000, 100), "x", "/\x1b[2J", reply=lambda message: iter_of(*hostile)
    )
    assert printed == (
        "a\ufffd[2J\ufffd1m\ufffd\n\t語\u200d🙂\xa0b\n" if screen else hostile + "\n"
    )
    assert told == [
        "there is no /\ufffd[2J; /help shows the commands, and a space before it makes it a"
        " message to the model"
    ]


def test_a_message_that_is_too_long_is_answered_with_a_line(typed: Any) -> None:
    printed, told = typed(Chat(FORM, 160, 20), "x" * 200, "0", "\udc80")
    assert printed == "0123456789012345678\n"
    assert told == [
        "the message was not sent: with its template it has 242 tokens, and the context 160",
        (
            "the message was not sent: half a surrogate pair, '\\udc80' is no character, so UTF-8"
            " cannot hold it"
        ),
    ]


class Interrupted:
    """A decoder at whose `n`th step somebody presses Ctrl-C."""

    def __init__(self, n: int):
        self._left = n

    def __getattr__(self, name: str) -> Any:
        return getattr(learned(), name)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return learned()(*arguments, **keywords)


@pytest.mark.parametrize(("step", "printed", "turns"), [(8, "012345\n", 2), (1, "", 0)])
@pytest.mark.parametrize("stream", [True, False])
def test_ctrl_c_stops_an_answer_which_stays_as_far_as_it_came(
    typed: Any, step: int, printed: str, turns: int, stream: bool
) -> None:
    chat = Chat(FORM, 1000, 100)
    reply = functools.partial(replies, chat, decoder=Interrupted(step))
    assert typed(chat, "0", reply=reply, stream=stream) == (printed, ["(stopped)"])
    assert [turn.content for turn in chat.turns] == ["0", printed.strip()][:turns]


def test_ctrl_c_at_the_prompt_ends_all(typed: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        typed(Chat(FORM, 1000, 100), KeyboardInterrupt)


def test_nothing_said_is_told(typed: Any) -> None:
    chat = Chat(FORM, 1000, 100)
    assert typed(chat, "x", reply=lambda message: iter_of()) == ("\n", ["(no answer)"])


# ---------------------------------------------------------------- the command


def infer(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Run infer.py in this process and return what stdout holds in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["infer.py", *map(str, arguments), "--temperature", "0", "--device", "cpu"]
        )
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setattr(sys, "stdout", stdout := io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
        main()
        stdout.flush()
        return stdout.buffer.getvalue().decode()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("starts_processes")
def test_piped_lines_are_answered_in_turn(speaks: Path) -> None:
    """A shell runs the program: stdout has the answers and nothing else, and the exit code is 0."""
    command = [
        sys.executable,
        str(ROOT / "infer.py"),
        "--ckpt",
        str(speaks),
        "--chat",
        "--temperature",
        "0",
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, input=b"Hi\r\n\nAnd?", capture_output=True, timeout=120, cwd="/")
    assert (done.returncode, done.stdout.decode()) == (0, "Ho 語🙂\n two\n lines\n")
    assert done.stderr.decode().startswith("step-00000150.ckpt on cpu, --seed ")
    assert done.stderr.count(b"\n") == 1


def test_piped_commands_and_bytes_that_are_no_text(
    speaks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        infer(
            "--ckpt", speaks, "--chat", stdin=b"\xef\xbb\xbfHi\n\xff\nAnd?\n/reset\nHi\n/quit\nHi\n"
        )
        == "Ho 語🙂\n two\n lines\nHo 語🙂\n"
    )
    assert capsys.readouterr().err.splitlines()[1:] == [
        "the message was not sent: it is not UTF-8 (invalid start byte)"
    ]


def test_one_message_and_the_flags_that_count(speaks: Path, tmp_path: Path) -> None:
    common = ("--ckpt", speaks, "--chat")
    (tmp_path / "m.txt").write_text("0\n", encoding="utf-8")
    assert infer(*common, "--prompt", "Hi") == "Ho 語🙂\n"
    assert infer(*common, "--prompt", "/help", "--max-new-tokens", "1") == "\n", (
        "a message, not a command; its one token is the space"
    )
    assert (
        infer(*common, "--prompt-file", tmp_path / "m.txt", "--max-new-tokens", "6", "--no-stream")
        == "01234\n"
    )
    assert infer(*common, "--prompt", "0", "--stop", "34") == "012\n"
    with pytest.raises(DataError, match="the message was not sent"):
        infer(*common, "--prompt", "x" * 4000)


def test_what_it_was_fine_tuned_with_unless_something_else_is_given(tmp_path: Path) -> None:
    """The prompt that the model gets shows the template and the system message."""
    ckpt = checkpoint(tmp_path, {"format": "chat", "template": "alpaca", "system": "Trained."})
    prompts = []

    class Seen(Chat):
        def prompt(self, message: str) -> list[int]:
            prompts.append(BYTE.decode(super().prompt(message)))
            return super().prompt(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.generation.chat.Chat", Seen)
        for flags in (
            [],
            ["--system", "Given."],
            ["--system", ""],
            ["--template", "instruction-output"],
        ):
            infer("--ckpt", ckpt, "--chat", "--prompt", "x", "--max-new-tokens", "1", *flags)
    ask = "### Instruction:\nx\n\n### Response:\n"
    other = "### System: Trained.\n### Instruction: x\n### Input: \n### Output:"
    assert prompts == ["Trained.\n\n" + ask, "Given.\n\n" + ask, ask, other]


def test_mistakes_are_one_line(writes: Path, speaks: Path) -> None:
    for ckpt, flags, told in (
        (
            writes,
            ["--chat"],
            (
                f"{writes} was not fine-tuned on conversations, so it has no template; give"
                " --template alpaca|chatml|instr"
            ),
        ),
        (
            speaks,
            ["--chat", "--template", "vicuna"],
            "--template vicuna: there is alpaca, chatml, instruction-output",
        ),
        (
            speaks,
            ["--chat", "--template", "chatml"],
            "template chatml needs <|im_end|> and <|im_start|>, and the tokenizer byte has",
        ),
        (speaks, ["--chat", "--system", "\udcff"], "--system: half a surrogate pair, "),
        (speaks, ["--chat", "--json"], "--json cannot be had with --chat"),
        (speaks, ["--chat", "--num-samples", "2"], "--num-samples cannot be had with --chat"),
        (speaks, ["--system", "x"], "--system is for --chat"),
        (speaks, ["--template", "alpaca"], "--template is for --chat"),
    ):
        with pytest.raises(ConfigError) as raised:
            infer("--ckpt", ckpt, *flags)
        assert str(raised.value).startswith(told)
        assert "\n" not in str(raised.value)
    assert (
        infer("--ckpt", writes, "--chat", "--template", "instruction-output", "--prompt", "Hi")
        == "Ho 語🙂\n"
    )


@pytest.mark.usefixtures("starts_processes")
def test_what_cannot_be_spoken_to_is_refused_without_torch(writes: Path) -> None:
    program = "import sys, infer\ntry: infer.main()\nfinally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, "--ckpt", str(writes), "--chat"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (1, b"False\n") and b"ConfigError" in done.stderr


# ---------------------------------------------------------------- a person at a terminal


class Person:
    """A person who types into a terminal and reads its screen."""

    def __init__(self, ckpt: Path):
        self._ours, theirs = pty.openpty()
        command = [
            sys.executable,
            str(ROOT / "infer.py"),
            "--ckpt",
            str(ckpt),
            "--chat",
            "--temperature",
            "0",
            "--device",
            "cpu",
        ]
        command += ["--max-new-tokens", "1000"]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.screen = ""

    def types(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def waits_for(self, text: str) -> None:
        """Wait until `text` is on the screen, below the text of the last wait."""
        deadline = time.monotonic() + 120
        while text not in self.screen:
            assert time.monotonic() < deadline, self.screen
            if select.select([self._ours], [], [], 1)[0]:
                self.screen += os.read(self._ours, 4096).decode(errors="replace")
        self.screen = self.screen.partition(text)[2]

    def leaves(self) -> int:
        deadline = time.monotonic() + 120
        with contextlib.suppress(OSError):  # the other end is closed
            data = b"..."
            while data:
                assert time.monotonic() < deadline, self.screen
                if select.select([self._ours], [], [], 1)[0]:
                    data = os.read(self._ours, 4096)
                    self.screen += data.decode(errors="replace")
        return self.process.wait(120)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def person(speaks: Path, starts_processes: None) -> Iterator[Person]:
    with contextlib.closing(Person(speaks)) as result:
        yield result


@pytest.mark.usefixtures("starts_processes")
def test_a_person_types_stops_an_answer_and_leaves_by_ctrl_d(person: Person) -> None:
    person.waits_for("/help shows the commands")
    person.waits_for("> ")
    person.types("Hi\n")
    person.waits_for("Ho 語🙂\r\n")
    person.waits_for("> ")
    person.types("/reset\n0\n")
    person.waits_for("01234")
    # what Ctrl-C does in a terminal that controls its program
    os.killpg(person.process.pid, signal.SIGINT)
    person.waits_for("(stopped)")
    person.waits_for("> ")
    person.types("/reset\nHi\n")
    person.waits_for("Ho 語🙂\r\n")
    person.waits_for("> ")
    person.types("\x04")
    assert person.leaves() == 0
    assert "Traceback" not in person.screen


@pytest.mark.usefixtures("starts_processes")
def test_ctrl_c_at_a_persons_prompt_ends_the_program(person: Person) -> None:
    person.waits_for("> ")
    # Python checks for signals before it waits for a key. It would notice a signal in between only
    # with the next key.
    time.sleep(1)
    os.killpg(person.process.pid, signal.SIGINT)
    assert person.leaves() == 130
    assert "stopped by Ctrl-C" in person.screen and "Traceback" not in person.screen
