"""Test exit codes and messages of failed commands."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.system import errors
from lm.system.signals import SIGNALS
from tests.support.faults import ROOT


def command(main: str, *, before: str = "") -> list[str]:
    """Return the command of a Python program whose `main` has this body."""
    return [
        sys.executable,
        "-c",
        f"import sys, os\nfrom lm.system import errors\n{before}\n"
        f"def main():\n    {main}\n"
        "errors.run(main)",
    ]


def run(main: str, tmp_path: Path, before: str = "") -> tuple[int, str, str]:
    """Run such a program, with its traceback files in `tmp_path`, and return its exit code, stdout
    and stderr.
    """
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command(main, before=before), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("main", "code", "expected"),
    [
        ("print('fine')", 0, ""),
        ("raise errors.UserError('x.yaml: it went wrong')", 1, "x.yaml: it went wrong\n"),
        (
            "raise errors.ConfigError('x.yaml:3: model.d_model: é')",
            2,
            "x.yaml:3: model.d_model: é\n",
        ),
        ("raise errors.ConfigError('one\\ntwo')", 2, "one\ntwo\n"),
        ("raise errors.DataError('x.txt: no text')", 3, "x.txt: no text\n"),
        ("raise errors.NonFiniteError('step 3')", 4, "step 3\n"),
        ("raise errors.CheckpointError('x.ckpt is damaged')", 5, "x.ckpt is damaged\n"),
        ("raise errors.Stopped('stopped', 2)", 130, "stopped\n"),
        ("raise errors.Stopped('stopped', 15)", 143, "stopped\n"),
        ("raise errors.Stopped('stopped', 10)", 138, "stopped\n"),
        ("raise KeyboardInterrupt", 130, "stopped by Ctrl-C\n"),
        ("sys.exit(2)", 2, ""),
        ("sys.exit()", 0, ""),
        (
            "raise OSError(28, 'No space left on device', 'metrics.csv')",
            5,
            "metrics.csv could not be written: No space left on device; free some space there, or"
            " name another folder\n",
        ),
        (
            "raise OSError(30, 'Read-only file system', 'x')",
            5,
            "x could not be written: Read-only file system; mount it for writing (after a disk"
            " error, dmesg says why it is read-only), or name another folder\n",
        ),
        (
            "raise OSError(13, 'Permission denied', 'x')",
            5,
            "x could not be used: Permission denied; change its permissions (`ls -ld` shows"
            " them), or name another folder\n",
        ),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); open('x', 'w')",
            5,
            "x could not be used: Too many open files; this process may open no more files: raise"
            " the limit (`ulimit -n`)\n",
        ),
    ],
)
def test_every_exit_code_and_one_message(
    main: str, code: int, expected: str, tmp_path: Path
) -> None:
    assert run(main, tmp_path) == (code, "fine\n" if "fine" in main else "", expected)
    assert not [*tmp_path.iterdir()], "only what is unexpected leaves a traceback"


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("main", "expected"),
    [
        ("{}['lost']", "internal error: KeyError: 'lost' ("),
        (
            "raise ValueError('first line\\nsecond line')",
            "internal error: ValueError: first line (",
        ),
        ("raise ValueError", "internal error: ValueError:  ("),
        (
            "open('/nowhere/x')",
            (
                "internal error: FileNotFoundError: [Errno 2] No such file or directory:"
                " '/nowhere/x' ("
            ),
        ),
        (
            "raise BrokenPipeError(32, 'a worker is gone')",
            "internal error: BrokenPipeError: [Errno 32] a worker is gone (",
        ),
        (
            "raise MemoryError",
            "out of memory; in training, a smaller trainer.micro_batch_size needs less (",
        ),
        (
            "raise RuntimeError('CUDA out of memory. Tried to allocate')",
            "out of memory; in training",
        ),
        (
            'raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried")',
            "out of memory; in training",
        ),
        ("raise OSError(12, 'Cannot allocate memory')", "out of memory; in training"),
    ],
)
def test_an_internal_error_is_one_line_that_names_the_traceback(
    main: str, expected: str, tmp_path: Path
) -> None:
    code, out, message = run(main, tmp_path)
    [file] = tmp_path.iterdir()
    assert (code, out) == (1, "") and message.startswith(expected) and message.count("\n") == 1
    assert message.endswith(f"(the traceback is in {file})\n")
    assert (
        file.read_text().startswith("Traceback (most recent call last):")
        and "in main" in file.read_text()
    )


@pytest.mark.usefixtures("starts_processes")
def test_what_was_printed_before_a_mistake_is_not_lost(tmp_path: Path) -> None:
    assert run("print('half'); raise errors.DataError('rest')", tmp_path) == (
        3,
        "half\n",
        "rest\n",
    )


@pytest.mark.usefixtures("starts_processes")
def test_a_traceback_that_finds_no_room_is_shown_instead(tmp_path: Path) -> None:
    refuse = (
        "import tempfile\n"
        "def refuse(**_): raise OSError(28, 'No space left on device')\n"
        "tempfile.mkstemp = refuse"
    )
    code, _, message = run("1 / 0", tmp_path, refuse)
    first, second, *_ = message.splitlines()
    assert code == 1
    assert (
        first
        == "internal error: ZeroDivisionError: division by zero (the traceback could not be saved:"
        " No space left on device)"
    )
    assert second == "Traceback (most recent call last):"


@pytest.mark.usefixtures("starts_processes")
def test_text_that_is_no_unicode_can_be_printed(tmp_path: Path) -> None:
    code, _, message = run("raise errors.DataError('\\udcff.txt: no text')", tmp_path)
    assert code == 3 and message.endswith(".txt: no text\n") and "Traceback" not in message


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    "main",
    [
        "while True: print('x' * 1000)",
        "sys.stdin.read(); print('x')",  # fails only at the last flush
        "sys.stdin.read(); print('x'); raise errors.DataError('x')",
        "sys.stdin.read(); print('x'); sys.exit(0)",  # like `--help | head`
    ],
)
@pytest.mark.parametrize("merged", [False, True])
def test_a_reader_that_leaves_gets_no_answer(main: str, merged: bool) -> None:
    stderr = subprocess.STDOUT if merged else subprocess.PIPE
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        command(main),
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    assert process.stdout is not None and process.stdin is not None
    process.stdout.close()
    process.stdin.close()
    answer = process.stderr.read() if process.stderr is not None else b""
    code = process.wait()
    expected = 0 if "exit(0)" in main else 3 if "DataError" in main else 141
    assert (code, answer) == (expected, b"x\n" if expected == 3 and not merged else b"")


@pytest.mark.usefixtures("starts_processes")
def test_a_reader_of_stderr_alone_may_leave_too() -> None:
    with subprocess.Popen(
        command("sys.stdin.read(); print('x', file=sys.stderr); sys.exit(3)"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None and process.stdin is not None
        process.stderr.close()
        process.stdin.close()
    assert process.returncode == 3


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_output_onto_a_full_disk(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("print('x')"), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (
        5,
        "stdout could not be written: No space left on device\n",
    )


def test_a_line_has_an_end() -> None:
    message = str(errors.CheckpointError("x" * 10**6 + ": no such checkpoint"))
    assert message.startswith("xxx") and message.endswith("xxx: no such checkpoint")
    assert len(message) == errors.MOST_OF_A_LINE + len(" ... ")


@pytest.mark.usefixtures("starts_processes")
def test_notes_of_an_error_end_its_line(tmp_path: Path) -> None:
    main = "error = errors.DataError('x.txt: no text'); error.add_note('go on'); raise error"
    assert run(main, tmp_path) == (3, "", "x.txt: no text; go on\n")


@pytest.mark.usefixtures("starts_processes")
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    main = "raise RuntimeError('failed to bind, code: -98, name: EADDRINUSE')"
    code, _, message = run(main, tmp_path, "os.environ['MASTER_PORT'] = '15077'")
    assert code == 2 and message == (
        "the port 15077 between the processes is taken by another program; start again, or start"
        " with torchrun --master-port and a free one\n"
    )


@pytest.mark.usefixtures("starts_processes")
def test_a_file_size_limit_is_a_disk_that_refuses(tmp_path: Path) -> None:
    done = subprocess.run(
        command(f"with open({str(tmp_path / 'x')!r}, 'w') as file: file.write('x' * 5000)"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 5
    assert done.stderr.startswith("a file could not be written: File too large; the disk or `ulim")


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("error", "shown"), [("OSError(28, 'full')", False), ("ValueError('odd')", True)]
)
def test_what_the_disk_refuses_to_a_thread_is_reported_by_its_owner(
    error: str, shown: bool, tmp_path: Path
) -> None:
    main = (
        f"import threading\n    def fail(): raise {error}\n"
        "    thread = threading.Thread(target=fail); thread.start(); thread.join()"
    )
    code, _, message = run(main, tmp_path)
    assert code == 0 and (("Exception in thread" in message) if shown else message == "")


@pytest.mark.usefixtures("starts_processes")
def test_ctrl_c_as_the_terminal_sends_it() -> None:
    main = "print('here', flush=True); import time; time.sleep(60)"
    with subprocess.Popen(
        command(main), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        time.sleep(0.5)  # an interrupt inside a print may make it print twice
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "stopped by Ctrl-C\n")
    assert process.returncode == 130


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("end", "code", "message"),
    [("pass", 0, ""), ("raise errors.DataError('x.txt: no text')", 3, "x.txt: no text\n")],
)
def test_ctrl_c_after_the_end_changes_nothing(end: str, code: int, message: str) -> None:
    """Libraries are still closing then."""
    close = (
        "import atexit, time\n"
        "def close(): print('closing', flush=True); time.sleep(1); print('closed')\n"
        "atexit.register(close)"
    )
    with subprocess.Popen(
        command(end, before=close),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "closing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("closed\n", message)
    assert process.returncode == code


def test_the_table_of_codes_is_the_truth() -> None:
    kinds = {
        errors.ConfigError: 2,
        errors.DataError: 3,
        errors.NonFiniteError: 4,
        errors.CheckpointError: 5,
        errors.CheckFailed: 6,
    }
    table = {
        line.split("|")[1].strip()
        for line in (errors.__doc__ or "").splitlines()
        if line.startswith("| ")
    }
    assert {kind.exit_code for kind in kinds} == set(kinds.values())
    assert table == {"code", "0", "1", "2", "3", "4", "5", "6", "130, 143, 138, 129", "141"}
    assert all(kind.exit_code == code for kind, code in kinds.items())
    assert [128 + number for number in SIGNALS] == [130, 143, 138, 129]
