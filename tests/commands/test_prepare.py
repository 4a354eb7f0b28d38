"""tools.prepare as a user types it: python -m pytest tests/commands/test_prepare.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm.system.units import in_bytes
from lm.tokens.cache import open_cache
from tests.support.hub import Hub, client_environment
from tests.support.runs import ROOT, WORDS, config_file

pytestmark = pytest.mark.usefixtures("starts_processes")


def command(*arguments, environment=None):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=200,
    )


def prepare(config, *arguments, environment=None):
    done = command("-m", "tools.prepare", "--config", config, *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def caches(tmp_path):
    return [path for path in sorted((tmp_path / "cache").iterdir()) if path.is_dir()]


def mixture(tmp_path):
    """Write two filtered sources to train on and one to validate on; return the section `data`."""
    parts = []
    for name, filters in ("a", {"deduplicate": True}), ("b", {"max_documents": 30}), ("c", {}):
        texts = [f"{name} {i % 45} {WORDS[i % 45 % 7]} ü" for i in range(50)]
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts)
        )
        parts.append(
            {"format": "jsonl", "files": str(tmp_path / f"{name}.jsonl"), "filter": filters}
        )
    source = {"format": "mixture", "parts": [{"weight": 1, "source": part} for part in parts[:2]]}
    return {"source": source, "validation": parts[2], "cache_dir": str(tmp_path / "cache")}


def test_every_source_is_made_and_described_then_all_is_there(tmp_path):
    config = config_file(tmp_path, data={"val_fraction": 0.05, **mixture(tmp_path)})
    first, second, third, made = prepare(config)
    a, b, c = (re.search(r"written to (\S+?)(;|$)", line)[1] for line in (first, second, third))
    assert sorted(map(str, caches(tmp_path))) == sorted([a, b, c])
    tokens = 45 + 1 + sum(len(f"a {i} {WORDS[i % 7]} ü".encode()) for i in range(45))
    size = in_bytes(sum(path.stat().st_size for path in Path(a).iterdir()))
    assert size.endswith(" kB")
    assert first.startswith(
        f"data.source.parts[0].source: train 45 documents, {tokens:,} tokens, {size} on disk; 1.00"
        " bytes per token; "
    )
    assert first.endswith("; left out: 5 x repeated document")
    assert second.startswith("data.source.parts[1].source: train 30 documents, ")
    assert second.endswith("; the rest was not read (max_documents)")
    assert third.startswith("data.validation: val 50 documents, ")
    assert re.fullmatch(r"made in \d+\.\d s, [\d.]+ [kM]?B of text a second", made)
    again = prepare(config)
    assert again == [line.replace("written to", "read from") for line in (first, second, third)] + [
        "everything was there already"
    ]


def test_train_then_makes_nothing(tmp_path):
    config = config_file(tmp_path)
    prepare(config, "--processes", "1")
    files = {path: path.stat().st_mtime_ns for path in caches(tmp_path)[0].iterdir()}
    done = command("train.py", "--config", config, "--trainer.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert f"read from {caches(tmp_path)[0]}" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in caches(tmp_path)[0].iterdir()} == files


def test_with_ray_the_cache_is_the_same(tmp_path):
    config = config_file(tmp_path, data={"val_fraction": 0.05, **mixture(tmp_path)})
    contents = []
    for flags in (), ("--ray",):
        cache = tmp_path / "-".join(("cache", *flags))
        prepare(config, "--data.cache_dir", cache, *flags)
        contents.append(
            {str(path.relative_to(cache)): path.read_bytes() for path in cache.glob("*/*")}
        )
    assert contents[0] == contents[1]
    assert sum(name.endswith("train-00000.bin") for name in contents[0]) == 3


def test_without_ray_it_is_said_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\nfrom lm.system import errors\nfrom tools import"
        " prepare\nerrors.run(prepare.main)"
    )
    done = command("-c", code, "--config", config_file(tmp_path), "--ray")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        f"--ray: Ray is not installed: {sys.executable} -m pip install ray",
    )
    assert caches(tmp_path) == []


def test_a_stream_is_refused_and_its_advice_works(tmp_path):
    folder = tmp_path / "hub" / "datasets" / "someone" / "stories"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"text": [f"{i} {WORDS[i % 9]}" for i in range(200)]}), folder / "train.parquet"
    )
    stream = {"format": "hub", "dataset": "someone/stories", "streaming": True}
    rows = {"validation_rows": 8}
    config = config_file(tmp_path, data={"source": stream}, trainer=rows)
    with Hub(tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "home")
        refused = command("-m", "tools.prepare", "--config", config, environment=environment)
        assert hub.requests == []
        assert (refused.returncode, refused.stdout) == (2, "")
        [line] = refused.stderr.splitlines()
        assert line.startswith(
            "data.source: what is streamed is tokenised as training goes, not ahead; write"
            " streaming: false, "
        )
        [advice] = re.findall(r"\((--data\.\S+ false)\)", line)
        assert not (tmp_path / "cache").exists()
        lines = prepare(config, *advice.split(), environment=environment)
    assert lines[0].startswith("data.source: train 1")
    mixed = mixture(tmp_path)
    mixed["source"]["parts"].append({"weight": 1, "source": stream})
    refused = command(
        "-m",
        "tools.prepare",
        "--config",
        config_file(tmp_path, data={"val_fraction": 0.05, **mixed}, trainer=rows),
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(
        "data.source.parts[2].source: what is streamed is tokenised as training goes"
    )
    assert refused.stderr.endswith(" and keep its tokens\n"), "a flag reaches no part of a mixture"


def test_a_dataset_of_the_hub_is_then_no_longer_asked_for(tmp_path):
    folder = tmp_path / "hub" / "datasets" / "someone" / "stories"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"text": [f"{i} {WORDS[i % 9]}" for i in range(200)]}), folder / "train.parquet"
    )
    config = config_file(tmp_path, data={"source": {"format": "hub", "dataset": "someone/stories"}})
    with Hub(tmp_path / "hub") as hub:
        lines = prepare(config, environment=hub.environment(tmp_path / "home"))
    assert any("written to" in line for line in lines)
    # No server listens at this address, and no variable sets the client to offline.
    gone = client_environment("http://127.0.0.1:9", tmp_path / "home")
    [line, last] = prepare(config, environment=gone)
    assert f"read from {caches(tmp_path)[0]}, as the dataset was on 2" in line
    assert last == "everything was there already"


def test_verify_finds_and_mends_what_is_damaged(tmp_path):
    config = config_file(tmp_path, data={"val_fraction": 0.05, **mixture(tmp_path)})
    made = prepare(config)
    folder = re.search(r"written to (\S+?);", made[1])[1]
    shard = caches(tmp_path)[0].parent / folder / "train-00000.bin"
    content, manifest = shard.read_bytes(), open_cache(shard.parent)
    shard.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
    assert prepare(config)[-1] == "everything was there already", "by size, it was"
    lines = prepare(config, "--verify")
    assert lines[0] == (
        f"{folder} is damaged (train-00000.bin has another hash than manifest.json says): building"
        " it again"
    )
    assert [("written to" in line, "read from" in line) for line in lines[1:4]] == [
        (False, True),
        (True, False),
        (False, True),
    ]
    assert (shard.read_bytes(), open_cache(shard.parent)) == (content, manifest)
    assert prepare(config, "--verify")[3:] == [
        "everything was there already, and is as it was written"
    ]


def test_help_comes_at_once():
    code = (
        "import sys, tools.prepare\nsys.argv = ['x', '--help']\ntry: tools.prepare.main()\nexcept"
        " SystemExit: print(sys.modules.keys())"
    )
    done = command("-c", code)
    assert "--processes N" in done.stdout
    assert not {
        f"'{name}'"
        for name in ("torch", "lightning", "transformers", "datasets", "tokenizers", "pyarrow")
    } & set(re.findall(r"'\w+'", done.stdout))


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--processes=0"], 2, "argument --processes: '0' is no number from 1 to 1,024"),
        (["--processes=-1"], 2, "argument --processes: '-1' is no number from 1 to 1,024"),
        (["--processes=²"], 2, "argument --processes: '²' is no number from 1 to 1,024"),
        (["--processes=2", "--ray"], 2, "argument --ray: not allowed with argument --processes"),
        (
            ["--data.val_fraction=2"],
            2,
            "command line: --data.val_fraction: too large, got 2, write",
        ),
        (
            ["--data.source.files=missing.txt"],
            3,
            "data.source.files: missing.txt does not exist; relative paths start in",
        ),
        (
            ["--data.cache_dir=README.md/cache"],
            5,
            "data.cache_dir: README.md/cache cannot be written: Not a directory;",
        ),
    ],
)
def test_what_is_wrong_is_answered_in_a_line(tmp_path, arguments, code, line):
    done = command("-m", "tools.prepare", "--config", config_file(tmp_path), *arguments)
    assert done.returncode == code
    assert line in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
