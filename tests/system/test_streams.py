"""Test that printing can never end a run, and ends other commands with a documented code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lm.system import streams
from tests.support.faults import ROOT

FULL = Path("/dev/full")


def run(body: str, *, redirect: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with this `main`; `redirect` redirects its streams."""
    program = (
        "import os, sys\nfrom lm.system import errors, streams\n"
        f"def main():\n    {body}\nerrors.run(main)"
    )
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$@" {redirect}', "bash", sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "latin-1"])
def test_a_character_that_cannot_be_shown_is_replaced(encoding: str) -> None:
    done = run(
        "print('\\U0001f600 done'); print('\\U0001f600 x.txt', file=sys.stderr)",
        PYTHONIOENCODING=encoding,
    )
    assert (done.returncode, done.stdout) == (0, "? done\n")
    assert done.stderr == "\\U0001f600 x.txt\n"


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_the_null_device(redirect: str, tmp_path: Path) -> None:
    """A file that is opened later does not take the stream's number either."""
    file = tmp_path / "file"
    done = run(
        f"print('x'); print('y', file=sys.stderr); f = open({str(file)!r}, 'w');"
        " os.write(2, b'z'); f.write(str(f.fileno()))",
        redirect=redirect,
    )
    assert done.returncode == 0 and int(file.read_text()) > 2


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("redirect", "message"),
    [
        ("| true", ""),
        (
            "> /dev/full",
            "stdout could not be written: No space left on device; the command goes on without"
            " it\n",
        ),
        ("> /dev/full 2> /dev/full", ""),
    ],
)
def test_a_run_outlives_its_stdout(redirect: str, message: str, tmp_path: Path) -> None:
    body = (
        "streams.outlive_stdout(); import time\n"
        "    for _ in range(3): print('x' * 100_000, flush=True); time.sleep(0.1)\n"
        f"    open({str(tmp_path / 'saved')!r}, 'w').close()"
    )
    done = run(body, redirect=redirect)
    assert (done.returncode, done.stderr, (tmp_path / "saved").exists()) == (0, message, True)


@pytest.mark.usefixtures("starts_processes")
def test_a_lost_terminal_is_a_reader_that_has_gone() -> None:
    leader, follower = os.openpty()
    program = (
        "import sys\nfrom lm.system import errors\n"
        "def main():\n    sys.stdin.read(); print('x', flush=True)\nerrors.run(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=follower,
        stderr=subprocess.PIPE,
    )
    os.close(follower)
    os.close(leader)
    assert process.communicate(timeout=60) == (None, b"")
    assert process.returncode == 141


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)


def test_a_pipe_that_takes_nothing_at_the_moment_is_waited_for() -> None:
    """Another program may have made a pipe non-blocking. A write to it may then be partial."""
    content = bytes(range(256)) * 2048
    received = bytearray()
    with pipe() as (reader, writer):
        os.set_blocking(writer, False)

        def read() -> None:
            time.sleep(0.05)
            while len(received) < len(content):
                received.extend(os.read(reader, 2**14))

        thread = threading.Thread(target=read)
        thread.start()
        assert streams.Output(writer).write(content) == len(content)
        thread.join()
    assert received == content


def test_a_stream_other_than_stdout_drops_what_is_refused() -> None:
    with pipe() as (reader, writer):
        os.close(reader)
        assert streams.Output(writer).write(b"lost") == 4


@pytest.mark.usefixtures("starts_processes")
def test_programs_that_are_started_have_the_streams_that_were_closed() -> None:
    code = (
        "import os, subprocess, sys; from lm.system import streams; os.close(0); streams.protect();"
        " sys.exit(subprocess.call([sys.executable, '-c', 'import os; os.fstat(0)'],"
        " close_fds=False))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_a_notebook_keeps_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = io.StringIO()
    monkeypatch.setattr(sys, "stdout", collected)
    streams.protect()
    assert sys.stdout is collected


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", b'["\xc3\xa9\xf0\x9f\x98\x80", "\\u009b", "\\u202e"]\n'),
        ("latin-1", b'["\\u00e9\\ud83d\\ude00", "\\u009b", "\\u202e"]\n'),
    ],
)
def test_json_is_never_replaced(
    monkeypatch: pytest.MonkeyPatch, encoding: str, printed: bytes
) -> None:
    """Nor does it send commands to a terminal."""
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding, errors="replace"))
    streams.print_json(json.dumps(["é\U0001f600", "\x9b", "\u202e"], ensure_ascii=False))
    assert output.getvalue() == printed
