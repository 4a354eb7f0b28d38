"""Damaged, retyped, truncated and oversized files: whatever a command reads, it answers.

Each variant changes one file of a run, a cache, a checkpoint, a tokenizer or a data set at random.
The command then works, or it ends in one line and a documented exit code, in bounded time. It never
ends in an internal error.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.reliability.answers import answer
from tests.reliability.hostile_checkpoints import seal
from tests.support.runs import config_file, train

DOCUMENTED = {0, 2, 3, 4, 5}  # docs/TROUBLESHOOTING.md
STEP = "run/step-00000006.ckpt"
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x", "\x1b[2J", [], {}, [[]], {"a": {}},
)  # fmt: skip
PROMPT = ("--prompt", "a", "--max-new-tokens", "2", "--device", "cpu")


class Target(NamedTuple):
    """A file that commands read, and one of these commands."""

    file: str  # a pattern below the folder of the run
    command: tuple[str, ...]


RESUME = ("train", "--config", "config.yaml", "--checkpoint.directory", "run", "--resume", "auto")
GO_ON = (*RESUME, "--trainer.max_steps", "7")
INFER = ("infer", "--ckpt", STEP, *PROMPT)
SCORE = ("eval_val", "--config", "config.yaml", "--ckpt", STEP, "--device", "cpu")
LIST = ("list", "run")
REPORT = ("tools.report", "run", "--out", "report.html", "--no-model")
TARGETS = [
    *(
        Target(f"run/{name}", command)
        for name in ("evaluations.jsonl", "metrics.csv", "config.yaml")
        for command in (RESUME, LIST, REPORT)
    ),
    *(
        Target(f"{STEP}/{name}", command)
        for name in ("meta.json", "manifest.json", "tokenizer.json", "*.safetensors")
        for command in (GO_ON, INFER, LIST, REPORT)
    ),
    Target(f"{STEP}/train_state.pt", GO_ON),
    *(
        Target(f"cache/*/{name}", command)
        for name in ("manifest.json", "train-*.bin", "val-*.bin")
        for command in (GO_ON, SCORE)
    ),
    Target("corpus.txt", SCORE),
    Target("config.yaml", SCORE),
    Target("rows.jsonl", ("tools.prepare", "--config", "rows.yaml")),
    Target("table.csv", ("tools.prepare", "--config", "table.yaml")),
    Target("chats.jsonl", ("tools.prepare", "--config", "chats.yaml")),
    Target("words/tokenizer.json", ("tools.prepare", "--config", "words.yaml")),
    Target("words/tokenizer_config.json", ("tools.prepare", "--config", "words.yaml")),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, trains: None) -> Path:
    """Return a folder with a finished run of 6 steps, and with further files to prepare."""
    folder = tmp_path_factory.mktemp("finished")
    budget = {"max_steps": 6, "validate_every": 3, "threads": 1}
    path = config_file(folder, trainer=budget, logging={"sample_tokens": 2})
    train(path)
    config = yaml.safe_load(path.read_text().replace(f"{folder}/", ""))
    path.write_text(yaml.safe_dump(config))
    rows = [f"document number {i} of many, and it tells of {i * 7919 % 101}" for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (folder / "table.csv").write_text(
        "id,text\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(rows))
    )
    chats = [{"prompt": row, "completion": f"answer {i}"} for i, row in enumerate(rows)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "words").mkdir()
    shutil.copy(folder / STEP / "tokenizer.json", folder / "words")
    settings = {"eos_token": "<|eos|>", "pad_token": "<|pad|>", "model_max_length": 64}
    (folder / "words" / "tokenizer_config.json").write_text(json.dumps(settings))
    sources = {
        "rows": {"format": "jsonl", "files": "rows.jsonl"},
        "table": {"format": "csv", "files": "table.csv"},
        "chats": {"format": "chat", "files": "chats.jsonl", "template": "instruction-output"},
        "words": {"format": "jsonl", "files": "rows.jsonl"},
    }
    for name, source in sources.items():
        data = {"source": source, "cache_dir": f"cache-{name}", "val_fraction": 0.2}
        own = {"data": data, "trainer": {"max_steps": 3}, "optimizer": {"warmup_steps": 0}}
        own["data"]["document_mask"] = name == "chats"
        own["tokenizer"] = {"name": "words" if name == "words" else "byte"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(own))
    return folder


# --- the changes


def truncated(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 8, 100])):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def inserted(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content) + 1)
    more = chance.choice([b"\0" * 9, b"\xff\xfe", b"\r\n\r\n", b'"', b"}{", chance.randbytes(40)])
    return content[:place] + more + content[place:]


def cut_out(content: bytes, chance: random.Random) -> bytes:
    first, last = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:first] + content[last:]


def oversized(content: bytes, chance: random.Random) -> bytes:
    first, last = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    times = 2**20 // max(1, last - first) if chance.random() < 0.3 else chance.randrange(2, 50)
    return content[:last] + content[first:last] * times + content[last:]


def retyped(content: bytes, chance: random.Random) -> bytes:
    """Give a random value of JSON, of a line of JSON, or of YAML, another type."""
    lines = content.splitlines(keepends=True)
    number = chance.randrange(len(lines)) if lines else 0
    for whole, parse, write in (
        (content, json.loads, json.dumps),
        (lines[number] if lines else b"", json.loads, lambda value: json.dumps(value) + "\n"),
        (content, yaml.safe_load, yaml.safe_dump),
    ):
        try:
            value = parse(whole.decode())
        except (ValueError, yaml.YAMLError):
            continue
        if isinstance(value, (dict, list)):
            text = write(changed(value, chance)).encode()
            return (
                text
                if whole is content
                else b"".join([*lines[:number], text, *lines[number + 1 :]])
            )
    return flipped(content, chance)


def changed(value: Any, chance: random.Random) -> Any:
    """Return a copy in which a random inner value is replaced, removed or renamed."""
    value = copy.deepcopy(value)
    inner = value
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            return chance.choice(VALUES)
        key = chance.choice(keys)
        if not isinstance(inner[key], (dict, list)) or not inner[key] or chance.random() < 0.3:
            break
        inner = inner[key]
    act = chance.random()
    if act < 0.7:
        inner[key] = chance.choice(VALUES)
    elif act < 0.85:
        del inner[key]
    elif isinstance(inner, dict):
        inner[chance.choice(["", "x", "\x1b[2J", "step"])] = inner.pop(key)
    return value


def replaced(path: Path, chance: random.Random) -> str:
    """Put something that is no ordinary file in its place."""
    kind = chance.choice(["folder", "pipe", "/dev/zero", "nothing", "itself", "empty"])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind != "nothing":
        path.symlink_to(path if kind == "itself" else kind)
    return kind


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    truncated, flipped, inserted, cut_out, oversized, retyped, retyped,
)  # fmt: skip


def damage(folder: Path, target: Target, chance: random.Random) -> str:
    """Change a file that a target names; return what was done."""
    path = chance.choice(sorted(folder.glob(target.file)))
    if chance.random() < 0.08:
        return f"{path.relative_to(folder)}: {replaced(path, chance)}"
    change = chance.choice(CHANGES)
    path.write_bytes(change(path.read_bytes(), chance))
    sealed = path.parent == folder / STEP and path.name != "manifest.json" and chance.random() < 0.5
    if sealed:  # as by somebody who also corrects the hashes
        seal(path.parent)
    return f"{path.relative_to(folder)}: {change.__name__}{', sealed' * sealed}"


def test_every_variant_is_answered(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    amount: Callable[[int, int], int],
    figure: Callable[[str], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong, codes = [], Counter[int]()
    n = amount(len(TARGETS) * 3, 3000)
    for number in range(n):
        target, chance = TARGETS[number % len(TARGETS)], random.Random(number)
        folder = tmp_path / str(number)
        shutil.copytree(finished, folder, symlinks=True)
        monkeypatch.chdir(folder)
        done = damage(folder, target, chance)
        got = answer(*target.command)
        codes[got.code] += 1
        refused = got.code in DOCUMENTED - {0}
        short = got.code == 2 or len(got.lines) <= 1  # a configuration has a line for each mistake
        if got.code not in DOCUMENTED or "Traceback" in got.err or (refused and not short):
            wrong.append(f"{number}: {done}, {' '.join(target.command)}: {got.code} {got.err}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder)
    assert not wrong, f"{len(wrong)} of {n}:\n" + "\n".join(wrong[:40])
    figure(f"{n:,} variants of {len(TARGETS)} files and commands: {dict(sorted(codes.items()))}")
