"""A stream's windows are one sequence of tokens, whatever interrupted it; and a streamed run is the
same run, killed or not.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lm.commands import load_config
from lm.config.schema.source import HubSource
from lm.documents import hub
from lm.documents.reader import Reader, hash_of_text
from lm.system import errors
from lm.system.errors import CheckpointError, ConfigError, DataError
from lm.tokenizer.tokenizer import ByteTokenizer
from lm.tokens.corpus import open_corpora
from lm.tokens.prepare import Split
from lm.tokens.producer import AnnouncedSteps, Producer, await_window
from lm.tokens.stream import Stream, choose_revision
from tests.support.hub import COMMIT, Hub

ROOT = Path(__file__).parents[2]
BYTES = ByteTokenizer()
TEXTS = [f"document {i} " + "x" * (i % 13) for i in range(60)]
BATCH = 7
REAL_STREAM = hub.stream


def fake_hub(texts: list[object]) -> Any:
    def stream(
        source: HubSource, revision: str, state: int | None
    ) -> Iterator[tuple[list[object], int]]:
        for start in range(state or 0, len(texts), BATCH):
            yield texts[start : start + BATCH], start + BATCH

    return stream


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "newest_revision", lambda source: "0123456789abcdef")
    monkeypatch.setattr(hub, "stream", fake_hub(TEXTS))


def make_stream(
    folder: Path,
    rows: int = 5,
    length: int = 16,
    split: Split | None = None,
    on_bad_row: str = "stop",
) -> Stream:
    source = HubSource(format="hub", dataset="a/b", streaming=True)
    return Stream(
        folder,
        Reader(source, on_bad_row=on_bad_row),
        BYTES,
        split or Split("hash", 0.2),
        rows,
        length,
        COMMIT,
    )


def make_all(stream: Stream, last: int) -> None:
    """Make all windows up to `last`. Unlike in a run, all of them stay."""
    for window in range(last + 1):
        stream.make(window)


def slow_sequence(
    tokens: int, texts: list[str], fraction: float = 0.2
) -> tuple[list[int], list[int]]:
    """Return the first tokens of the endless sequence, and where its documents begin."""
    sequence: list[int] = []
    starts = []
    while len(sequence) < tokens:
        for text in texts:
            if hash_of_text(text) >= fraction * 2**64:
                starts.append(len(sequence))
                sequence += [BYTES.eos_id, *text.encode()]
    return sequence[:tokens], [start for start in starts if start < tokens]


@pytest.mark.parametrize(("rows", "length"), [(5, 16), (3, 7), (40, 16), (2, 300)])
def test_windows_are_the_sequence_cut_and_overlap_by_the_token_that_is_only_predicted(
    tmp_path: Path, rows: int, length: int
) -> None:
    """This also holds beyond the end of the dataset, and for a window that is larger than all of
    it.
    """
    stream, size, n = make_stream(tmp_path, rows, length), rows * length, 9
    make_all(stream, n - 1)
    expected, starts = slow_sequence(n * size + 1, TEXTS)
    for window in range(n):
        store = stream.window(window)
        assert store.read(0, size + 1).tolist() == expected[window * size : (window + 1) * size + 1]
        begin = [
            start - window * size
            for start in starts
            if window * size <= start <= (window + 1) * size
        ]
        assert store.document_starts.tolist() == begin


def test_windows_that_are_passed_are_closed(tmp_path: Path) -> None:
    """A removed window that stayed open would occupy disk space for as long as the run lasts."""
    stream = make_stream(tmp_path)
    make_all(stream, 5)
    for window in range(6):
        stream.window(window).read(0, 9)
        stream.clear(before=window)
    held = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert [
        path
        for path in held
        if str(tmp_path) in path and "deleted" in path and "window-000004" not in path
    ] == []


def test_a_window_is_made_again_from_what_was_kept(tmp_path: Path) -> None:
    stream = make_stream(tmp_path)
    make_all(stream, 6)
    before = {path: path.read_bytes() for path in tmp_path.glob("window-*/*")}
    stream.clear(before=6)
    assert [stream.is_whole(window) for window in range(7)] == [False] * 6 + [True]
    again = make_stream(tmp_path)
    again.make(4)
    assert [stream.is_whole(window) for window in range(7)] == [False] * 4 + [
        True,
        False,
        True,
    ], "and not those before it"
    stream.make(3)
    shutil.rmtree(tmp_path / "window-000001")
    shutil.rmtree(tmp_path / "window-000002")
    make_stream(tmp_path).make(2)
    for window in (2, 3, 4, 6):
        for path in (tmp_path / f"window-{window:06d}").iterdir():
            assert path.read_bytes() == before[path]


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("name", ["train-00000.bin", "train-starts.bin", "rest.bin"])
def test_a_damaged_window_is_not_learnt_from_and_made_again(tmp_path: Path, name: str) -> None:
    make_all(make_stream(tmp_path), 4)
    before = {path: path.read_bytes() for path in tmp_path.glob("window-*/*")}
    flip(tmp_path / "window-000002" / name)
    stream = make_stream(tmp_path)
    with pytest.raises(DataError, match=r"window-000002 is damaged \(.*; --resume auto makes"):
        stream.window(2)
    stream.clear_damaged(range(5))
    assert [stream.is_whole(window) for window in range(5)] == [True, True, False, True, True]
    stream.make(2)
    stream.window(2)
    assert {path: path.read_bytes() for path in tmp_path.glob("window-*/*")} == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position", {"passes": "many"}),
        ("position", []),
        ("rest_starts", [-1]),
        ("removed", {"x": 1.5}),
        ("dtype", "float64"),
        ("splits", {}),
        ("row", None),
    ],
)
def test_a_window_whose_manifest_says_something_else_is_made_again(
    tmp_path: Path, key: str, value: object
) -> None:
    make_all(make_stream(tmp_path), 3)
    before = {path: path.read_bytes() for path in tmp_path.glob("window-*/*")}
    file = tmp_path / "window-000002" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    stream = make_stream(tmp_path)
    shutil.rmtree(tmp_path / "window-000003")
    stream.make(3)
    stream.make(2)
    assert {path: path.read_bytes() for path in tmp_path.glob("window-*/*")} == before


def test_a_window_of_an_earlier_version_lists_no_files(tmp_path: Path) -> None:
    make_all(make_stream(tmp_path), 1)
    file = tmp_path / "window-000000" / "manifest.json"
    values = json.loads(file.read_text())
    del values["manifest_sha256"], values["splits"]["train"]["files"]
    file.write_text(json.dumps(values))
    make_stream(tmp_path).window(0)
    shutil.rmtree(tmp_path / "window-000001")
    make_stream(tmp_path).make(1)
    flip(tmp_path / "window-000000" / "train-00000.bin")
    with pytest.raises(DataError, match="is damaged"):
        make_stream(tmp_path).window(0)


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"revision": 5}', '{"revision": "../../x"}'])
def test_a_commit_that_is_none_is_looked_up_anew(tmp_path: Path, kept: str) -> None:
    (tmp_path / "stream.json").write_text(kept)
    source = HubSource(format="hub", dataset="a/b", streaming=True)
    assert choose_revision(tmp_path, source, None) == "0123456789abcdef"


def test_windows_on_the_way_to_one_leave_no_tokens(tmp_path: Path) -> None:
    """A run whose cache was lost goes on far inside the stream. The disk holds a few windows, not
    all before.
    """
    stream = make_stream(tmp_path)
    stream.make(6)
    assert [path.parent.name for path in tmp_path.glob("window-*/train-*.bin")] == [
        "window-000006"
    ] * 2


def test_a_dataset_that_has_changed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stream(tmp_path).make(3)
    monkeypatch.setattr(hub, "stream", fake_hub([text.upper() for text in TEXTS]))
    with pytest.raises(
        DataError, match="a/b: what was read before comes out otherwise now; start anew"
    ):
        make_stream(tmp_path).make(2)


def test_held_out_documents_are_never_trained_on(tmp_path: Path) -> None:
    stream = make_stream(tmp_path)
    held_out = [text for text in TEXTS if hash_of_text(text) < 0.2 * 2**64]
    store = stream.validation(10**6)
    assert store.documents == len(held_out) > 5
    assert BYTES.decode(store.read(0, 10**6)) == "".join(held_out)
    few = stream.validation(30)
    assert 30 < few.tokens < store.tokens
    assert few.read(0, few.tokens - 1).tolist() == store.read(0, few.tokens - 1).tolist()


def test_more_validation_rows_than_before_are_held_out_anew(tmp_path: Path) -> None:
    assert (
        make_stream(tmp_path).validation(30).tokens
        < 90
        < make_stream(tmp_path).validation(90).tokens
    )


def test_a_stream_of_which_nothing_is_held_out_is_not_read_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data.validation` names other text, so the stream is not searched. All of Wikipedia would
    take days.
    """
    monkeypatch.setattr(hub, "stream", lambda *_: pytest.fail("the stream was read"))
    assert make_stream(tmp_path, split=Split("none")).validation(0).documents == 0


def test_what_a_stream_leaves_out_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "stream", fake_hub(["a good text", "", "no", None, "über uns alle"]))
    source = HubSource(
        format="hub", dataset="a/b", streaming=True, filter={"min_length": 3, "ascii_only": True}
    )  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a/b:4: text is not a string: it is None"):
        Stream(tmp_path, Reader(source), BYTES, Split("none"), 1, 8, COMMIT).make(0)
    stream = Stream(
        tmp_path, Reader(source, on_bad_row="skip"), BYTES, Split("none"), 1, 24, COMMIT
    )
    stream.make(0)
    removed = Counter(
        json.loads((tmp_path / "window-000000" / "manifest.json").read_text())["removed"]
    )
    assert removed == {
        "empty document": 1,
        "document under 3 characters": 1,
        "text is not a string": 1,
        "character beyond ASCII": 1,
    }
    assert BYTES.decode(stream.window(0).read(0, 24)) == "a good text" + "ber uns all"


def test_a_run_that_a_bad_row_stopped_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run keeps its windows. Their content does not depend on `data.on_bad_row`, so this key
    may change.
    """
    [stop], [skip] = (
        open_corpora(
            load_config(
                config(tmp_path, "run"), ["--tokenizer.name=byte", f"--data.on_bad_row={word}"]
            ).config,
            BYTES,
            print,
        )
        for word in ("stop", "skip")
    )
    assert stop.folder == skip.folder
    monkeypatch.setattr(hub, "stream", fake_hub([*TEXTS, None]))
    stopping, skipping = make_stream(tmp_path), make_stream(tmp_path, on_bad_row="skip")
    with pytest.raises(DataError, match=r"skip such rows with data\.on_bad_row: skip"):
        make_all(stopping, 20)
    begun = [number for number in range(20) if stopping.is_whole(number)]
    make_all(skipping, 20)
    assert 3 < len(begun) < 20
    expected, _ = slow_sequence(21 * 80 + 1, TEXTS)
    assert [skipping.window(n).read(0, 81).tolist() for n in range(21)] == [
        expected[n * 80 : n * 80 + 81] for n in range(21)
    ]


def test_the_commit_of_a_run_is_its_checkpoints(tmp_path: Path) -> None:
    """The commit of a checkpoint takes precedence over the newest one. Starts without a checkpoint
    then use it, too.
    """
    source = HubSource(format="hub", dataset="a/b", streaming=True)
    newest = hub.newest_revision(source)
    assert choose_revision(tmp_path / "new", source, None) == newest
    assert choose_revision(tmp_path / "new", source, COMMIT) == COMMIT
    assert choose_revision(tmp_path / "new", source, None) == COMMIT


def test_a_dataset_without_text_is_refused_and_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "stream", fake_hub([" ", ""]))
    with pytest.raises(DataError, match=r"data\.source: a/b has no text to train on"):
        make_stream(tmp_path).make(0)


def test_each_loss_of_the_connection_is_waited_for_from_one_second_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    faults = iter([1, 1, 1, 0, 1, 1, 0])

    def batches(
        source: HubSource, revision: str, state: int | None
    ) -> Iterator[tuple[list[object], int]]:
        for number in range(state or 0, 2):
            if next(faults):
                raise ConnectionError("cut")
            yield [number], number + 1

    monkeypatch.setattr(hub, "_batches", batches)
    monkeypatch.setattr(hub.time, "sleep", waits.append)
    assert [
        values
        for values, _ in REAL_STREAM(
            HubSource(format="hub", dataset="a/b", streaming=True), "0123", None
        )
    ] == [[0], [1]]
    assert waits == [1, 2, 4, 1, 2]


# --- with the real client, against a hub on loopback


def serve(root: Path, files: int = 3, documents: int = 400) -> None:
    folder = root / "datasets" / "wikimedia" / "wikipedia"
    (folder / "20231101.en").mkdir(parents=True)
    split = "  data_files:\n  - split: train\n    path: 20231101.en/train-*\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: 20231101.en\n{split}---\n")
    for i in range(files):
        texts = [
            f"Article {i}.{j}. " + f"It tells of {j * 7919 % 1000}. " * (j % 9)
            for j in range(documents)
        ]
        pq.write_table(
            pa.table({"text": texts}),
            folder / "20231101.en" / f"train-{i:05d}-of-{files:05d}.parquet",
            row_group_size=100,
        )


def config(folder: Path, name: str, **trainer: Any) -> Path:
    source = {
        "format": "hub",
        "dataset": "wikimedia/wikipedia",
        "config": "20231101.en",
        "streaming": True,
        "window_tokens": 8000,
    }
    content = {
        "data": {"source": source, "val_fraction": 0.05, "cache_dir": str(folder / "cache")},
        "model": {"context_length": 32, "n_layers": 1, "d_model": 16, "n_heads": 2},
        "optimizer": {"warmup_steps": 1},
        "trainer": {
            "max_steps": 60,
            "batch_size": 16,
            "validation_rows": 8,
            "validate_every": 30,
            "device": "cpu",
            **trainer,
        },
        "checkpoint": {"directory": str(folder / name), "save_every": 10},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def command(path: Path, *flags: str) -> list[str]:
    return [sys.executable, "train.py", "--config", str(path), "--resume", "auto", *flags]


def weights(folder: Path) -> bytes:
    return (folder / "final.ckpt" / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("starts_processes")
def test_a_killed_streamed_run_sees_the_batches_of_a_straight_one(tmp_path: Path) -> None:
    """The run takes four windows; connections are cut, and the killed run's cache is lost once."""
    serve(tmp_path / "root")
    with Hub(tmp_path / "root", cut_every=3) as server:
        environment = os.environ | server.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        straight = subprocess.run(
            command(config(tmp_path, "straight")),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert straight.returncode == 0, straight.stderr
        assert "train as it comes" in straight.stdout
        assert server.cuts > 1
        killed = config(tmp_path, "killed")
        for checkpoint in ("step-00000020.ckpt", "step-00000040.ckpt"):
            process = subprocess.Popen(
                command(killed),
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while not (tmp_path / "killed" / checkpoint).exists():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            shutil.rmtree(tmp_path / "cache") if checkpoint.endswith("40.ckpt") else None
        last = subprocess.run(
            command(killed), cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert last.returncode == 0, last.stderr
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    assert "Traceback" not in last.stderr
    windows = [
        len(list(folder.glob("train-00000.bin")))
        for folder in sorted((tmp_path / "cache").glob(f"*/{COMMIT}/window-*"))
    ]
    assert sum(windows) <= 3 < len(windows)


@pytest.mark.long
@pytest.mark.usefixtures("starts_processes")
def test_a_run_that_was_moved_goes_on_in_the_commit_that_it_began_with(tmp_path: Path) -> None:
    """The dataset has a newer commit by then. If the old one is gone, the message says so."""
    serve(tmp_path / "root")
    began, moved, again = (
        config(tmp_path, name, max_steps=steps)
        for name, steps in (("began", 10), ("moved", 20), ("again", 30))
    )
    with Hub(tmp_path / "root") as server:

        def train(path: Path, home: str) -> subprocess.CompletedProcess[str]:
            environment = (
                os.environ | server.environment(tmp_path / home) | {"OMP_NUM_THREADS": "1"}
            )
            return subprocess.run(
                command(path), cwd=ROOT, env=environment, capture_output=True, text=True
            )

        assert train(began, "home").returncode == 0
        (tmp_path / "began").rename(tmp_path / "moved")
        server.commits.append(COMMIT[::-1])
        there = train(moved, "other home")
        assert there.returncode == 0, there.stderr
        assert json.loads((tmp_path / "moved" / "final.ckpt" / "meta.json").read_text())[
            "revisions"
        ] == {"data.source": COMMIT}
        (tmp_path / "moved").rename(tmp_path / "again")
        server.commits.remove(COMMIT)
        gone = train(again, "home")
    assert gone.returncode == DataError.exit_code
    assert (
        f"dataset_split 'train', revision: {COMMIT}: the hub no longer has this commit"
        in gone.stderr
    )
    assert gone.stderr.count("\n") == 1, gone.stderr


@pytest.mark.usefixtures("starts_processes")
def test_a_checkpoint_of_a_streamed_run_is_scored_on_what_the_run_validates_on(
    tmp_path: Path,
) -> None:
    serve(tmp_path / "root")
    path = config(tmp_path, "run", max_steps=3)
    with Hub(tmp_path / "root") as server:
        environment = os.environ | server.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command(path), cwd=ROOT, env=environment, check=True, capture_output=True)
        score = [
            sys.executable,
            "eval_val.py",
            "--ckpt",
            str(tmp_path / "run" / "final.ckpt"),
            "--config",
            str(path),
            "--json",
        ]
        done = subprocess.run(
            [*score, "--device", "cpu"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    scored, last = (
        json.loads(done.stdout),
        json.loads((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()[-1]),
    )
    assert scored["tokens"] == 8 * 32
    assert {key: scored[key] for key in ("step", "loss", "bits_per_byte", "tokens")} == {
        key: last[key] for key in ("step", "loss", "bits_per_byte", "tokens")
    }


@pytest.mark.usefixtures("starts_processes")
def test_config_yaml_as_it_is_shipped(tmp_path: Path) -> None:
    """config.yaml runs with its own data, from a hub that cuts connections. Only model, window and
    budget are smaller.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    serve(tmp_path / "root")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["It tells of an article."], trainer)
    (tmp_path / "root" / "models" / "gpt2").mkdir(parents=True)
    backend.save(str(tmp_path / "root" / "models" / "gpt2" / "tokenizer.json"))
    (tmp_path / "root" / "models" / "gpt2" / "tokenizer_config.json").write_text(
        '{"eos_token": "<|endoftext|>"}'
    )
    small = [
        "--model.vocab_size=null",
        "--model.n_layers=1",
        "--model.d_model=32",
        "--model.n_heads=2",
        "--model.n_kv_heads=1",
    ]
    short = [
        "--model.context_length=64",
        "--trainer.max_steps=8",
        "--optimizer.warmup_steps=1",
        "--trainer.validation_rows=4",
    ]
    short += ["--data.source.window_tokens=20000", "--trainer.device=cpu"]
    folders = [
        f"--data.cache_dir={tmp_path / 'cache'}",
        f"--checkpoint.directory={tmp_path / 'run'}",
    ]
    with Hub(tmp_path / "root", cut_every=3) as server:
        environment = os.environ | server.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command(ROOT / "config.yaml", *small, *short, *folders),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert "312 rows of 64 shuffled together" in done.stdout
    assert server.cuts > 0
    assert (tmp_path / "run" / "final.ckpt").resolve().name == "step-00000008.ckpt"


@pytest.mark.usefixtures("starts_processes")
def test_a_hub_that_stays_away_and_offline_mode(tmp_path: Path) -> None:
    serve(tmp_path / "root")
    with Hub(tmp_path / "root") as server:
        environment = os.environ | server.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        nothing = environment | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command(config(tmp_path, "offline")),
            cwd=ROOT,
            env=nothing,
            capture_output=True,
            text=True,
        )
    assert done.returncode == DataError.exit_code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "dataset 'wikimedia/wikipedia'" in done.stderr
    assert "python -m tools.prepare" in done.stderr
    away = subprocess.run(
        command(config(tmp_path, "away")), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert away.returncode == DataError.exit_code
    assert "Traceback" not in away.stderr


# --- the process that makes the windows


def test_a_producer_that_is_gone_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm.tokens.producer.STALE", 0.2)
    with pytest.raises(DataError, match="the process that reads the stream has ended"):
        await_window(make_stream(tmp_path), 0)


def test_who_waits_does_not_pass_for_a_producer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits looks at the lock. If others took it for a producer, many waiting
    processes would never give up.
    """
    monkeypatch.setattr("lm.tokens.producer.STALE", 0.2)
    with (tmp_path / "producer.lock").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        monkeypatch.setattr("lm.tokens.producer.time.sleep", limited(200))
        with pytest.raises(DataError, match="the process that reads the stream has ended"):
            await_window(make_stream(tmp_path), 0)


def limited(calls: int) -> Any:
    """Return a `time.sleep` that fails the test after so many calls."""
    left, sleep = iter(range(calls)), time.sleep
    return lambda seconds: (
        sleep(seconds) if next(left, None) is not None else pytest.fail("waits for ever")
    )


@pytest.mark.usefixtures("starts_processes")
def test_another_process_that_reads_the_same_stream_is_an_error(tmp_path: Path) -> None:
    """A training run may read the stream while the data are viewed. Its windows may never reach the
    ones that are wanted here.
    """
    stream = make_stream(tmp_path)
    make_all(stream, 5)
    running = Producer(stream, 4, 4)
    try:
        with pytest.raises(
            ConfigError,
            match=r"checkpoint.directory: another process reads data\.source for this run",
        ):
            Producer(stream, 0, 0)
        Producer(stream, 4, 4, shared=True).close()
    finally:
        running.close()


def test_a_disk_that_refuses_a_window_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make_stream(tmp_path)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lm.tokens.stream.sync", full)
    with pytest.raises(
        CheckpointError, match=r"window-000000 could not be written: No space left on device"
    ):
        stream.make(0)


def test_windows_have_to_hold_what_is_loaded_ahead(tmp_path: Path) -> None:
    """A batch would otherwise wait for a window that its stream makes only after the batch."""
    settings = load_config(config(tmp_path, "run"), ["--data.source.window_tokens=1536"]).config
    assert settings.data.streams
    with pytest.raises(
        ConfigError,
        match=r"window_tokens: 1535 is less than what may be loaded at once; write 1536",
    ):
        load_config(config(tmp_path, "run"), ["--data.source.window_tokens=1535"])
    with pytest.raises(ConfigError, match=r"write 2560"):
        load_config(
            config(tmp_path, "run"), ["--data.source.window_tokens=1536", "--data.workers=1"]
        )


@pytest.mark.usefixtures("starts_processes")
def test_what_goes_wrong_in_the_producer_is_raised_where_the_window_is_awaited(
    tmp_path: Path,
) -> None:
    """The producer's process has no stand-in for the hub, and so no such dataset."""
    stream = make_stream(tmp_path)
    environment = pytest.MonkeyPatch()
    environment.setenv("HF_HUB_OFFLINE", "1")
    producer = Producer(stream, 0, 3)
    try:
        with pytest.raises(
            DataError, match="dataset 'a/b', config None, dataset_split 'train': cannot be read on"
        ):
            await_window(stream, 0)
    finally:
        producer.close()
        environment.undo()


@pytest.mark.usefixtures("starts_processes")
def test_windows_are_made_one_ahead_and_removed_behind(tmp_path: Path) -> None:
    stream = make_stream(tmp_path)
    make_all(stream, 5)
    whole = lambda: [stream.is_whole(window) for window in range(6)]  # noqa: E731
    producer = Producer(stream, 0, 5)
    try:
        for window in range(2, 6):  # the first two stayed, and the producer may read them
            stream.make(window)  # the producer's process has no hub
        producer.advance(3)
        deadline = time.monotonic() + 30
        while whole() != [False] * 2 + [True] * 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert whole() == [False] * 2 + [True] * 4
    finally:
        producer.close()


@pytest.mark.parametrize("kind", [DataError, CheckpointError])
def test_what_the_producer_leaves_keeps_its_exit_code(
    tmp_path: Path, kind: type[DataError | CheckpointError]
) -> None:
    (tmp_path / "failed.json").write_text(
        json.dumps({"message": "what went wrong", "exit_code": kind.exit_code})
    )
    os.utime(tmp_path / "failed.json", (0, 0))  # a disk in a network has a clock of its own
    with pytest.raises(kind, match="what went wrong"):
        await_window(make_stream(tmp_path), 0)


def test_windows_are_kept_for_the_steps_that_loaders_may_still_read() -> None:
    """A loader's workers load ahead of the training, so an announced step frees no later one."""

    class Advances:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def advance(self, step: int) -> None:
            self.steps.append(step)

    producers = Advances()
    announced = AnnouncedSteps(range(5, 12), producers, ahead=4)  # type: ignore[arg-type]
    assert list(announced) == list(range(5, 12))
    assert producers.steps == [5, 5, 5, 5, 5, 6, 7]


@pytest.mark.usefixtures("starts_processes")
def test_a_mistake_in_the_producer_is_an_internal_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's file holds the producer's traceback."""
    stream = make_stream(tmp_path)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(errors, "_places", [])
    errors.keep_tracebacks_in(tmp_path / "run")
    wrong: Any = {"rows": "5"}
    producer = Producer(dataclasses.replace(stream, **wrong), 1, 1)
    try:
        with pytest.raises(SystemExit) as left:
            errors.run(partial(await_window, stream, 1))  # type: ignore[arg-type]
    finally:
        producer.close()
    [file] = (tmp_path / "run").iterdir()
    assert left.value.code == 1
    said = (
        "internal error: ChildProcessError: in the process that reads the stream: TypeError:"
        ' can only concatenate str (not "int") to str'
    )
    assert capsys.readouterr().err == f"{said} (the traceback is in {file})\n"
    assert "stream.make(window)" in file.read_text()


@pytest.mark.usefixtures("starts_processes")
def test_a_run_before_leaves_no_windows_elsewhere_and_no_fault(tmp_path: Path) -> None:
    stream = make_stream(tmp_path)
    for window in range(8):
        stream.make(window)
    (tmp_path / "failed.json").write_text(
        json.dumps({"message": "what went wrong before", "exit_code": 3})
    )
    producer = Producer(stream, 3, 6)
    assert not (tmp_path / "failed.json").exists()
    try:
        deadline = time.monotonic() + 30
        while (
            any(stream.is_whole(window) for window in (0, 1, 5, 6, 7))
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        assert [stream.is_whole(window) for window in range(8)] == [
            False,
            False,
            True,
            True,
            True,
            False,
            False,
            False,
        ]
    finally:
        producer.close()


@pytest.mark.usefixtures("starts_processes")
def test_what_a_session_left_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "stream", fake_hub([*TEXTS, "", " "]))
    stream = make_stream(tmp_path)
    make_all(stream, 19)
    producer = Producer(stream, 16, 19)
    try:
        producer.advance(18)
        assert producer.removed() == sum(
            (stream.removed(window) for window in (16, 17, 18)), start=Counter()
        )
        assert sum(stream.removed(window)["empty document"] for window in range(20)) > 0
        (tmp_path / "window-000018" / "train-00000.bin").unlink(missing_ok=True)  # not there yet
        assert producer.removed() == stream.removed(16) + stream.removed(17)
    finally:
        producer.close()


def test_rows_come_from_their_window(tmp_path: Path) -> None:
    from data import Rows
    from lm.tokens.plan import Plan
    from lm.tokens.rows import StreamedRows

    stream = make_stream(tmp_path)
    make_all(stream, 4)
    rows = Rows([StreamedRows(stream)], BYTES.pad_id, True)
    plan = Plan((5,), seed=4)
    expected, _ = slow_sequence(5 * 80 + 1, TEXTS)
    seen = []
    for step in range(5):
        addresses = plan.of_step(step, 5)
        assert (addresses[:, 1] == step).all()
        batch = rows[addresses]
        seen += sorted(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True))
    slow = [(expected[i : i + 16], expected[i + 1 : i + 17]) for i in range(0, 400, 16)]
    assert seen == [row for window in range(5) for row in sorted(slow[window * 5 : window * 5 + 5])]
    assert np.array_equal(rows[plan.of_step(1, 5)]["document_ids"].numpy()[:, 0], np.zeros(5))
