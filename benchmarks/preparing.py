"""Measure how fast text becomes tokens, and tokens become batches.

    python benchmarks/preparing.py TOKENIZER FILE.jsonl
    python benchmarks/preparing.py TOKENIZER FILE.jsonl --only one_core --before OTHER/CHECKOUT

TOKENIZER is GPT-2's, a folder or tokenizer.json. FILE has a few megabytes of {"text": ...} lines,
which are repeated. All methods read the same text and take turns. The best time of each counts,
because other work on the machine can only add time. The part `one_core` prints medians of CPU time
instead, and compares with another checkout. Exits with 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from tiktoken import Encoding  # noqa: E402

from lm.commands import load_config  # noqa: E402
from lm.config.schema.source import JsonlSource  # noqa: E402
from lm.documents.reader import Reader  # noqa: E402
from lm.system.machine import processor  # noqa: E402
from lm.tokenizer.fast_bpe import GPT2, SPACES, FastBpe  # noqa: E402
from lm.tokenizer.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer  # noqa: E402
from lm.tokens.cache import open_cache  # noqa: E402
from lm.tokens.engines import on_this_machine  # noqa: E402
from lm.tokens.manifest import Manifest, SplitEntry, SplitName, sealed  # noqa: E402
from lm.tokens.prepare import Split, prepare  # noqa: E402
from lm.tokens.store import SplitWriter, TokenStore  # noqa: E402

TURNS = 2
MEGABYTES = 100  # of text for the comparison of speeds
MEMORY_MEGABYTES = 1000  # of text for the measurement of memory
ROUNDS = 5  # of the measurement of one core
REVIEW = 1300  # characters of a short review

# Hugging Face's own way: arguments tokenizer.json, FILE.jsonl, folder.
DATASETS_PROGRAM = """
import sys, datasets, transformers
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=sys.argv[1])
rows = datasets.load_dataset(
    "json", data_files=sys.argv[2], split="train", cache_dir=sys.argv[3]
)
ids = rows.map(
    lambda batch: {"ids": tokenizer(batch["text"])["input_ids"]},
    batched=True, num_proc=2, remove_columns=["text"],
)
ids.save_to_disk(sys.argv[3] + "/ids")
"""
# Prints the peak of resident memory in the first tenth of the work and in all of it, in MB:
# arguments root of the project, FILE.jsonl, folder.
MEMORY_PROGRAM = """
import sys, resource
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lm.config.schema.source import JsonlSource
from lm.documents.reader import Reader
from lm.tokenizer.tokenizer import ByteTokenizer
from lm.tokens.engines import in_this_process
from lm.tokens.prepare import Split, prepare
peaks = []
def engine(function, pieces):
    for tokens in in_this_process(function, pieces):
        yield tokens
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        peaks.append(pages * resource.getpagesize() // 2**20)
reader = Reader(JsonlSource(format="jsonl", files=[sys.argv[2]]))
Path(sys.argv[3]).mkdir()
prepare(Path(sys.argv[3]), reader, ByteTokenizer(), Split("hash", 0.01), engine)
print(max(peaks[: len(peaks) // 10]), max(peaks))
"""
# Prints for the second of two preparations in one process: CPU seconds, wall seconds, and a hash of
# all files. Arguments: root of the project, source, tokenizer, folder. The first preparation also
# pays for memory that the process has not used before.
CORE_PROGRAM = """
import sys, hashlib, json, os, shutil, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pydantic import TypeAdapter
from lm.config.schema.source import SingleSource
from lm.documents.reader import Reader
from lm.tokenizer.tokenizer import load_tokenizer
from lm.tokens.engines import in_this_process
from lm.tokens.prepare import Split, prepare
source = TypeAdapter(SingleSource).validate_python(json.loads(sys.argv[2]))
tokenizer, folder = load_tokenizer(sys.argv[3]), Path(sys.argv[4])
for _ in range(2):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    reader = Reader(source)
    before = time.process_time(), time.perf_counter()
    prepare(folder, reader, tokenizer, Split("hash", 0.05), in_this_process)
    seconds = time.process_time() - before[0], time.perf_counter() - before[1]
written = hashlib.sha256()
for file in sorted(folder.glob("*.bin")):
    written.update(file.name.encode() + file.read_bytes())
shutil.rmtree(folder)
print(*seconds, written.hexdigest())
"""
# Prints the CPU and wall seconds of what the files demand: read and decode the text, hash each
# document, write two bytes for each byte, and hash what is written. Arguments: jsonl, paragraph or
# file; a file to write; the files of the text.
LEAST_PROGRAM = r"""
import sys, hashlib, time
import numpy as np
from pydantic_core import from_json
kind, written, *files = sys.argv[1:]
for _ in range(2):
    before = time.process_time(), time.perf_counter()
    with open(written, "wb") as out:
        for file in files:
            with open(file, "rb") as stream:
                while content := stream.read(-1 if kind == "file" else 2**22):
                    content += b"" if kind == "file" else stream.readline()
                    if kind == "jsonl":
                        texts = [from_json(line)["text"] for line in content.splitlines()]
                    else:
                        texts = content.decode().split("\n\n" if kind == "paragraph" else "\0")
                    parts = [text.encode() for text in texts]
                    for part in parts:
                        hashlib.blake2b(part, digest_size=8).digest()
                    ids = np.frombuffer(b"\0".join(parts), np.uint8).astype(np.uint16)
                    out.write(ids.data)
    with open(written, "rb") as stream:
        hashlib.file_digest(stream, "sha256")
    seconds = time.process_time() - before[0], time.perf_counter() - before[1]
print(*seconds)
"""
# Prints the seconds to the first batch, and of each batch: arguments root of the project, source,
# cache.
BATCHES_PROGRAM = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from data import PackedDataModule
from lm.config.schema.config import Config
from lm.tokenizer.tokenizer import ByteTokenizer
config = Config(
    model={"context_length": 1024},
    data={"source": json.loads(sys.argv[2]), "cache_dir": sys.argv[3]},
    trainer={"max_steps": 1000, "batch_size": 16},
    optimizer={"warmup_steps": 1},
)
started = time.perf_counter()
module = PackedDataModule(config, ByteTokenizer(), lambda line: None)
next(iter(module.train_dataloader()))
print(time.perf_counter() - started)
started = time.perf_counter()
n = sum(1 for _ in module.train_dataloader())
print((time.perf_counter() - started) / n)
"""


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer")
    parser.add_argument("text", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--only", help="one part, by the name of its function in this file")
    parser.add_argument("--before", type=Path, help="another checkout, for the part one_core")
    arguments = parser.parse_args()
    tokenizer, text = load_tokenizer(arguments.tokenizer), arguments.text
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts: dict[str, Callable[[], bool]] = {
            "speeds": lambda: speeds(folder, tokenizer, text),
            "one_core": lambda: one_core(folder, arguments.tokenizer, text, arguments.before),
            "memory": lambda: memory(folder, text),
            "warm_start": lambda: warm_start(folder),
            "loader_share": lambda: loader_share(folder),
        }
        passed = [parts[name]() for name in ([arguments.only] if arguments.only else parts)]
    sys.exit(not all(passed))


def speeds(folder: Path, tokenizer: Tokenizer, text: Path) -> bool:
    """Print the MB of text per second of each method. Return whether the limits hold."""
    file = repeated(text, folder / "some.jsonl", MEGABYTES)
    size = sum(len(json.loads(line)["text"].encode()) for line in file.open())
    ways: dict[str, Callable[[int], Any]] = {
        "tools.prepare's way, all cores": lambda turn: made(folder / f"a{turn}", file, tokenizer),
        "datasets.map(batched, num_proc=2), the same tokenizer": lambda turn: mapped(
            folder / f"b{turn}", file, tokenizer
        ),
        "tiktoken, one thread, with json.loads": lambda turn: alone(file, tokenizer),
        "tools.prepare's way, bytes": lambda turn: made(folder / f"c{turn}", file, ByteTokenizer()),
    }
    best = dict.fromkeys(ways, float("inf"))
    results = {}
    for turn, (name, way) in itertools.product(range(TURNS), ways.items()):
        started = time.perf_counter()
        results[name] = way(turn)
        best[name] = min(best[name], time.perf_counter() - started)
    ours, theirs, tiktoken, _ = ways
    assert np.array_equal(ids_made(results[ours]), ids_mapped(results[theirs])), "other ids"
    print(
        f"{size / 1e6:,.0f} MB of text\n\n| way | MB/s | {ours} is faster by a factor of"
        " |\n|---|---|---|"
    )
    for name, seconds in best.items():
        print(f"| {name} | {size / 1e6 / seconds:.1f} | {seconds / best[ours]:.2f} |")
    return best[theirs] >= 4 * best[ours] and best[tiktoken] >= 1.5 * best[ours]


def one_core(folder: Path, tokenizer: str, text: Path, before: Path | None) -> bool:
    """Print how much text one core prepares, and how much it could if it did only what the files
    demand. Return whether bytes of JSON lines reach 200 MB per CPU second.
    """
    reviews = [json.loads(line)["text"] for line in text.open()]
    parts = [review[i : i + REVIEW] for review in reviews for i in range(0, len(review), REVIEW)]
    short, paragraphs = folder / "short.jsonl", folder / "paragraphs.txt"
    short.write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))
    paragraphs.write_text("".join(f"{' '.join(part.split())}\n\n" for part in parts))
    jsonl, txt = {"format": "jsonl"}, {"format": "txt"}
    inputs: dict[str, dict[str, Any]] = {
        "JSON lines, whole reviews": jsonl | {"files": [repeated(text, folder / "1", MEGABYTES)]},
        f"JSON lines, {REVIEW:,} characters": jsonl
        | {"files": [repeated(short, folder / "2", MEGABYTES)]},
        "paragraphs": txt
        | {"unit": "paragraph", "files": [repeated(paragraphs, folder / "3", MEGABYTES)]},
        "files of 10 MB": txt
        | {
            "unit": "file",
            "files": [repeated(paragraphs, folder / f"4{i}", 10) for i in range(MEGABYTES // 10)],
        },
    }
    ten = jsonl | {"files": [repeated(text, folder / "5", 10)]}
    rows = [*(("byte", what, source) for what, source in inputs.items())]
    roots = [ROOT, *([before.resolve()] if before else [])]
    print(
        f"\none core of {processor()}: MB of text per CPU second, medians of {ROUNDS} (per second"
        " of wall time)\n\n| tokenizer, text | what the files demand | now | before |\n"
        "|---|---|---|---|"
    )
    reached = True
    for name, what, source in [*rows, (tokenizer, "JSON lines, whole reviews", ten)]:
        files = [str(file) for file in source["files"]]
        size = sum(Path(file).stat().st_size for file in files) / 1e6
        common = [json.dumps(source | {"files": files}), name, str(folder / "core")]
        least = [source.get("unit", source["format"]), str(folder / "least"), *files]
        rounds = [
            [
                output(LEAST_PROGRAM, *least),
                *(output(CORE_PROGRAM, str(root), *common) for root in roots),
            ]
            for _ in range(ROUNDS)
        ]
        assert len({run[2] for runs in rounds for run in runs[1:]}) == 1, "other files"
        cpu, wall = (
            [
                statistics.median(size / float(run[i]) for run in runs)
                for runs in zip(*rounds, strict=True)
            ]
            for i in range(2)
        )
        cells = [f"{a:.0f} ({b:.0f})" for a, b in zip(cpu, wall, strict=True)]
        print(f"| {Path(name).name}, {what} | {' | '.join(cells)} |", flush=True)
        if name == "byte" and source["format"] == "jsonl":
            reached = reached and cpu[1] >= 200
    return reached


def output(program: str, *arguments: str) -> list[str]:
    """Run a program in a process with one thread, and return the words that it prints."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"},
    ).stdout.split()


def made(folder: Path, file: Path, tokenizer: Tokenizer) -> TokenStore:
    """Prepare the text as tools.prepare does, and return the shards."""
    folder.mkdir()
    reader = Reader(JsonlSource(format="jsonl", files=[str(file)]))
    manifest = prepare(folder, reader, tokenizer, Split("none"), on_this_machine)
    return TokenStore(folder, "train", manifest)


def ids_made(store: TokenStore) -> NDArray[Any]:
    """Return the ids of a store without EOS."""
    return np.delete(
        store.read(0, store.tokens), np.append(store.document_starts, store.tokens - 1)
    )


def mapped(folder: Path, file: Path, tokenizer: Tokenizer) -> str:
    """Prepare the text as Hugging Face's libraries do, and return the folder of the ids."""
    definition = folder.with_suffix(".json")
    definition.write_text(tokenizer.definition)
    command = [sys.executable, "-c", DATASETS_PROGRAM, str(definition), str(file), str(folder)]
    subprocess.run(
        command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    return str(folder / "ids")


def ids_mapped(folder: str) -> NDArray[Any]:
    """Return the ids of all documents, concatenated."""
    import datasets

    return np.concatenate(list(datasets.load_from_disk(folder).with_format("numpy")["ids"]))


def alone(file: Path, tokenizer: Tokenizer) -> None:
    """Read and encode the text by raw tiktoken, with the same merges and GPT-2's published
    pattern.
    """
    ours = FastBpe(tokenizer.definition, tokenizer.special_ids)._encoding
    raw = Encoding(
        "raw",
        pat_str=GPT2 + SPACES,
        mergeable_ranks=ours._mergeable_ranks,
        special_tokens=ours._special_tokens,
    )
    for line in file.open():
        raw.encode_to_numpy(json.loads(line)["text"], disallowed_special=())


def memory(folder: Path, text: Path) -> bool:
    """Print the resident memory while 1 GB is prepared in one process. Return whether it stays
    flat.
    """
    file = repeated(text, folder / "much.jsonl", MEMORY_MEGABYTES)
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(ROOT), str(file), str(folder / "much")]
    early, late = map(
        int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    )
    print(
        f"\nresident memory while {MEMORY_MEGABYTES:,} MB are prepared: {early} MB at most in the"
        f" first tenth, {late} MB in all"
    )
    return late - early < 50


def warm_start(folder: Path) -> bool:
    """Print the time to the first batch with 10^9 tokens in the cache, all of which are checked
    before. Return whether it is below 4 s, which is 2 s for each gigabyte.
    """
    from lm.tokens.prepared import cache_key
    from lm.tokens.texts import Texts

    file = folder / "one.jsonl"
    file.write_text('{"text": "a"}\n')
    source = {"format": "jsonl", "files": [str(file)]}
    split = Split("hash", 0.05)
    caches = folder / "cache"
    reader, tokenizer = Reader(JsonlSource(**source)), ByteTokenizer()
    cache = caches / cache_key(reader, split, tokenizer, Texts(caches))
    cache.mkdir(parents=True)
    splits: dict[SplitName, SplitEntry] = {}
    sizes: list[tuple[SplitName, int]] = [("train", 1_000_000), ("val", 1000)]
    for name, documents in sizes:
        writer = SplitWriter(cache, name, 258, np.dtype(np.uint16))
        for _ in range(documents // 1000):
            ids = np.full(1_000_000, 32, np.uint16)
            ids[::1000] = 258
            writer.add(ids, np.full(1000, 999), np.arange(1000, dtype=np.uint64), 999_000)
        splits[name] = writer.close()
    manifest = Manifest(fingerprint=cache.name, dtype="uint16", splits=splits)
    (cache / "manifest.json").write_text(sealed(manifest))
    assert open_cache(cache) is not None
    command = [
        sys.executable,
        "-c",
        BATCHES_PROGRAM,
        str(ROOT),
        json.dumps(source),
        str(folder / "cache"),
    ]
    runs = [
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        for _ in range(TURNS)
    ]
    first, batch = (min(float(run[i]) for run in runs) for i in range(2))
    print(
        f"\nfirst batch of a warm cache of 10^9 tokens: {first:.3f} s; then {1000 * batch:.3f} ms a"
        " batch of 16 rows of 1,024"
    )
    return first < 4


def loader_share(folder: Path) -> bool:
    """Print the loader's share of a step of the smoke model, without worker processes. Return
    whether it is below 2 %.
    """
    smoke = [
        sys.executable,
        "train.py",
        "--config",
        "config_smoke.yaml",
        "--checkpoint.directory",
        str(folder / "smoke"),
    ]
    subprocess.run([*smoke, "--trainer.max_steps", "60"], cwd=ROOT, check=True, capture_output=True)
    with (folder / "smoke" / "metrics.csv").open() as file:
        rates = sorted(
            float(row["tokens_per_second"])
            for row in csv.DictReader(file)
            if row["tokens_per_second"]
        )
    # Imported late: the processes that tokenise import this file again, and `data` imports torch.
    from data import PackedDataModule

    config = load_config("config_smoke.yaml").config
    step = config.tokens_per_step / rates[len(rates) // 2]
    loader = PackedDataModule(config, ByteTokenizer(), lambda line: None).train_dataloader()
    started = time.perf_counter()
    batches = sum(1 for _ in loader)
    batch = (time.perf_counter() - started) / batches
    print(
        f"\nthe smoke run: {1000 * batch:.3f} ms a batch, {1000 * step:.0f} ms a step:"
        f" {batch / step:.2%}"
    )
    return batch < 0.02 * step


def repeated(text: Path, file: Path, megabytes: int) -> Path:
    """Repeat the lines of a file until they have that many megabytes. Return the new file."""
    lines = text.read_bytes()
    with file.open("wb") as out:
        for _ in range(-(-megabytes * 10**6 // len(lines))):
            out.write(lines)
    return file


if __name__ == "__main__":
    main()
