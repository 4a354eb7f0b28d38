"""infer.py as a person types it, on a tiny model that has learned two texts by heart."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infer import main, print_samples
from lm.checkpoints.write import point
from lm.config.schema.model import ModelConfig
from lm.system.errors import ConfigError
from lm.tokenizer.tokenizer import load_tokenizer
from model import Decoder
from tests.support import runs

ROOT = Path(__file__).parents[2]
BYTE = load_tokenizer("byte")
POEM = "Attention is 語🙂, all you need."
CONTEXT = 96


def learned() -> Decoder:
    """Return a decoder that continues POEM and then ends, and counts 0123456789 without end."""
    torch.manual_seed(0)
    decoder = Decoder(
        ModelConfig(vocab_size=320, d_model=32, n_layers=2, n_heads=2, context_length=CONTEXT)
    )  # more rows than the tokenizer has
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    poem = [BYTE.eos_id, *BYTE.encode(POEM)] * 4
    for step in range(150):
        digits = [48 + (step + i) % 10 for i in range(CONTEXT + 1)]
        rows = torch.tensor([poem[: CONTEXT + 1], digits, [BYTE.eos_id, *digits[1:]]])
        optimizer.zero_grad()
        (decoder(rows[:, :-1], rows[:, 1:]).sum() / rows.numel()).backward()
        optimizer.step()
    return decoder


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "infer.py"), *map(str, arguments)]


def run(
    *arguments: str | Path, stdin: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*arguments), stdin=stdin, capture_output=True, cwd="/", timeout=120
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    runs.write_trained(folder, learned(), BYTE, {})
    point(folder, "best.ckpt", folder / "step-00000150.ckpt")
    return folder


class Pieces(io.TextIOWrapper):
    """A stdout that remembers what was in it at each flush."""

    def __init__(self) -> None:
        self.content = io.BytesIO()
        self.flushed: list[bytes] = []
        super().__init__(self.content, encoding="utf-8")

    def flush(self) -> None:
        super().flush()
        self.flushed.append(self.content.getvalue())


def infer(*arguments: str | Path, stdin: bytes = b"") -> list[bytes]:
    """Run infer.py in this process, because starting torch takes seconds; return what stdout holds
    at each flush.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["infer.py", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        stdout = Pieces()
        patch.setattr(sys, "stdout", stdout)
        main()
        stdout.flush()
        return stdout.flushed


def text_of(*arguments: str | Path, stdin: bytes = b"") -> str:
    return infer(*arguments, stdin=stdin)[-1].decode()


def report_of(*arguments: str | Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(text_of(*arguments, "--json"))
    return report


# What it writes


@pytest.mark.usefixtures("starts_processes")
def test_as_a_person_types_it(checkpoints: Path) -> None:
    """stdout gets the prompt, the continuation and one line break. Everything else is on stderr."""
    done = run(
        "--ckpt", checkpoints / "best.ckpt", "--prompt", "Attention is", "--temperature", "0"
    )
    assert (done.returncode, done.stdout.decode()) == (0, POEM + "\n")
    first, last = done.stderr.decode().splitlines()
    assert first.startswith("step-00000150.ckpt on ") and "--seed " in first
    assert last.endswith("tokens/s")


def test_json(checkpoints: Path) -> None:
    report = report_of(
        "--ckpt",
        checkpoints / "best.ckpt",
        "--prompt",
        "Attention",
        "--temperature",
        "0",
        "--seed",
        "7",
        "--num-samples",
        "2",
    )
    continuation = POEM.removeprefix("Attention")
    sample = {"text": continuation, "tokens": len(continuation.encode()) + 1, "finish": "eos"}
    assert report.pop("tokens_per_second") > 0
    assert report.pop("device") in ("cpu", "cuda", "mps")
    assert report == {
        "prompt": "Attention",
        "samples": [sample, sample],
        "checkpoint": str(checkpoints / "step-00000150.ckpt"),
        "step": 150,
        "seed": 7,
        "sampling": {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1},
    }


def test_stop_strings(checkpoints: Path) -> None:
    report = report_of(
        "--ckpt",
        checkpoints / "best.ckpt",
        "--prompt",
        "012",
        "--temperature",
        "0",
        "--stop",
        "x",
        "--stop",
        "890",
    )
    assert report["samples"] == [{"text": "34567", "tokens": 8, "finish": "stop"}]


@pytest.mark.usefixtures("takes_seconds")
def test_past_the_context_it_counts_on(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompt alone is longer than the context (96). It comes from stdin, with the line break of
    `echo`.
    """
    prompt = "0123456789" * 11
    flags = ("--ckpt", checkpoints / "best.ckpt", "--temperature", "0", "--max-new-tokens", "210")
    assert text_of(*flags, stdin=prompt.encode() + b"\n") == "0123456789" * 32 + "\n"
    assert (
        "the prompt has 111 tokens, the model's context 96: it reads the last 48"
        in capsys.readouterr().err
    )


@pytest.mark.usefixtures("takes_seconds")
def test_samples_one_after_another_and_the_same_again_with_the_same_seed(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--ckpt",
        checkpoints / "best.ckpt",
        "--prompt",
        "",
        "--temperature",
        "1.5",
        "--max-new-tokens",
        "40",
        "--num-samples",
        "3",
    )
    streamed = text_of(*flags)
    seed = capsys.readouterr().err.split("--seed ")[1].split()[0]
    assert text_of(*flags, "--seed", seed, "--no-stream") == streamed
    assert text_of(*flags) != streamed, "another seed is drawn each time"
    report = report_of(*flags, "--seed", seed)
    assert report["seed"] == int(seed)
    texts = [sample["text"] for sample in report["samples"]]
    assert len(set(texts)) == 3
    assert streamed == "".join(
        f"--- sample {n} of 3 ---\n{text}\n" for n, text in enumerate(texts, start=1)
    )


def test_it_streams_character_by_character(checkpoints: Path) -> None:
    flags = ("--ckpt", checkpoints / "best.ckpt", "--prompt", "Attention is", "--temperature", "0")
    expected = [*(POEM[:n] for n in range(len("Attention is"), len(POEM) + 1)), POEM + "\n"]
    assert list(dict.fromkeys(content.decode() for content in infer(*flags))) == expected
    assert list(dict.fromkeys(content.decode() for content in infer(*flags, "--no-stream"))) == [
        expected[0],
        *expected[-2:],
    ]


# How it ends early


def counting(checkpoints: Path) -> subprocess.Popen[bytes]:
    """Start an infer.py that would run for a long time."""
    flags = (
        "--ckpt",
        checkpoints / "best.ckpt",
        "--prompt",
        "0123",
        "--temperature",
        "0",
        "--max-new-tokens",
        "1000000",
    )
    return subprocess.Popen(command(*flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.usefixtures("starts_processes")
def test_ctrl_c(checkpoints: Path) -> None:
    with counting(checkpoints) as process:
        assert process.stdout is not None and process.stderr is not None
        shown = process.stdout.read(30)
        process.send_signal(signal.SIGINT)
        shown += process.stdout.read()
        text = shown.decode().removesuffix("\n")
        if text[-1] == text[-2]:  # an interrupt inside a print may make it print twice
            text = text[:-1]
        assert text == ("0123456789" * len(text))[: len(text)] and shown.endswith(b"\n")
        assert process.stderr.read().decode().endswith("\nstopped by Ctrl-C\n")
    assert process.returncode == 130


@pytest.mark.usefixtures("starts_processes")
def test_a_reader_that_leaves(checkpoints: Path) -> None:
    with counting(checkpoints) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(30)
        process.stdout.close()
        assert len(process.stderr.read().splitlines()) == 1, (
            "the line with the seed, and no complaint"
        )
    assert process.returncode == 141


# What it refuses, and what it imports


@pytest.fixture
def terminal() -> Iterator[int]:
    """Yield a stdin that is a terminal."""
    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def refusal(*arguments: str | Path, code: int, stdin: int = subprocess.DEVNULL) -> str:
    done = run(*arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (code, b"")
    message = done.stderr.decode()
    assert message.count("\n") == 1 and "Traceback" not in message, message
    return message


@pytest.mark.usefixtures("starts_processes")
def test_a_run_folder_stands_for_its_best_checkpoint(checkpoints: Path) -> None:
    done = run("--ckpt", checkpoints, "--prompt", "x", "--max-new-tokens", "1", "--seed", "1")
    used, seed, _ = done.stderr.decode().splitlines()
    assert used == f"{checkpoints}: a run's folder: best.ckpt is used (step-00000150.ckpt)"
    assert done.returncode == 0 and seed.startswith("step-00000150.ckpt on ")


@pytest.mark.usefixtures("starts_processes")
def test_one_clear_line_and_the_right_exit_code(
    checkpoints: Path, tmp_path: Path, terminal: int
) -> None:
    best = checkpoints / "best.ckpt"
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "plain.ckpt").write_text("text")
    assert "nowhere.ckpt: no such checkpoint" in refusal(
        "--ckpt", tmp_path / "nowhere.ckpt", "--prompt", "x", code=5
    )
    assert "plain.ckpt" in refusal("--ckpt", tmp_path / "plain.ckpt", "--prompt", "x", code=5)
    assert "stdin holds no text" in refusal("--ckpt", best, code=2)
    assert "there is no prompt" in refusal("--ckpt", best, code=2, stdin=terminal)
    assert "latin1.txt is not UTF-8" in refusal(
        "--ckpt", best, "--prompt-file", tmp_path / "latin1.txt", code=3
    )
    assert "gone.txt cannot be read: No such file" in refusal(
        "--ckpt", best, "--prompt-file", tmp_path / "gone.txt", code=3
    )
    assert "--top-p 2.0 " in refusal("--ckpt", best, "--prompt", "x", "--top-p", "2", code=2)
    for flag, value in (
        ("--max-new-tokens", "0"),
        ("--num-samples", "-1"),
        ("--seed", "-1"),
        ("--seed", str(2**63)),
    ):
        assert f"{flag} {value} " in refusal("--ckpt", best, "--prompt", "x", flag, value, code=2)
    dash = refusal("--ckpt", best, "--prompt", "-x", code=2)
    assert "write --prompt=VALUE for a value that begins with a dash" in dash
    refused = refusal("--ckpt", best, "--prompt", "x", "--seed", str(10**20), code=2)
    assert refused.strip() == f"--seed {10**20} is out of range; write 0 to 2**63 - 1"


def test_another_tokenizer_is_refused_by_name(checkpoints: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    other = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="byte") as caught:
        infer(
            "--ckpt",
            checkpoints / "best.ckpt",
            "--prompt",
            "x",
            "--tokenizer",
            tmp_path / "tokenizer.json",
        )
    assert str(tmp_path) in str(caught.value)


def imports_of(*arguments: str | Path) -> set[str]:
    program = (
        "import sys, infer\ntry: infer.main()\nexcept BaseException as e: pass\nprint('\\n' + '"
        " '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    return {name.split(".")[0] for name in done.stdout.decode().splitlines()[-1].split()}


HEAVY = {
    "lightning",
    "transformers",
    "datasets",
    "tokenizers",
    "matplotlib",
    "pandas",
    "pyarrow",
    "huggingface_hub",
    "tensorboard",
    "sklearn",
}


@pytest.mark.usefixtures("starts_processes")
def test_torch_is_the_only_heavy_import(checkpoints: Path) -> None:
    modules = imports_of(
        "--ckpt",
        checkpoints / "best.ckpt",
        "--prompt",
        "x",
        "--tokenizer",
        "byte",
        "--max-new-tokens",
        "3",
    )
    assert "torch" in modules
    assert not modules & HEAVY


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--ckpt", "nowhere.ckpt", "--prompt", "x"],
        ["--ckpt", "x", "--prompt", "x", "--top-p", "2"],
    ],
)
def test_help_and_mistakes_answer_without_torch(arguments: list[str]) -> None:
    assert not imports_of(*arguments) & (HEAVY | {"torch", "numpy"})


@pytest.mark.parametrize("screen", [True, False])
def test_no_text_commands_the_terminal(
    screen: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: screen, raising=False)
    sample: Any = SimpleNamespace(text="b\x1b[2J\r\n", finish="eos")
    print_samples([sample], iter(()), "\x9ba")
    assert capsys.readouterr().out == ("\ufffdab\ufffd[2J\n\n" if screen else "\x9bab\x1b[2J\r\n\n")


@pytest.mark.usefixtures("starts_processes")
def test_help_names_every_option() -> None:
    text = run("--help").stdout.decode()
    flags = (
        "--chat --system --template --ckpt --prompt --prompt-file --max-new-tokens --temperature"
        " --top-k --top-p --min-p"
    )
    for flag in (
        f"{flags} --repetition-penalty --seed --num-samples --stop --tokenizer --device --json"
        " --no-stream"
    ).split():
        assert f"  {flag}" in text
