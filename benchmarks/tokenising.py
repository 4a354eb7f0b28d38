"""Measure the speed of encoding, compared with `tokenizers`.

    python benchmarks/tokenising.py --text FILE --tokenizer FOLDER

All methods must return the same ids. In each of several rounds every method encodes the same
documents in one thread. Its best round counts, in CPU seconds, because other work on the machine
can only add time. Without --tokenizer, the command trains one on the text.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # `tokenizers` reads it when it is first imported.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from tiktoken import Encoding  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from lm.tokenizer.fast_bpe import GPT2, SPACES  # noqa: E402
from lm.tokenizer.tokenizer import ByteTokenizer, FastTokenizer, load_tokenizer  # noqa: E402

END = "<|endoftext|>"


def main() -> None:
    """Print a Markdown table of megabytes of UTF-8 per second, and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", type=Path, nargs="+", default=sorted((ROOT / "data").glob("*.txt"))
    )
    parser.add_argument(
        "--tokenizer",
        help=(
            "a tokenizer.json, a folder or a hub id (default: one of 8,192 ids, trained on the"
            " text)"
        ),
    )
    parser.add_argument("--document", type=int, default=3000, help="characters in a document")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in arguments.text)
    documents = [text[i : i + arguments.document] for i in range(0, len(text), arguments.document)]
    megabytes = len(text.encode()) / 1e6
    by_bytes, by_pairs = byte_ways(documents), pair_ways(documents, arguments.tokenizer)
    best = dict.fromkeys([*by_bytes, *by_pairs], float("inf"))
    for _ in range(arguments.rounds):
        for name, way in {**by_bytes, **by_pairs}.items():
            started = time.process_time()
            way()
            best[name] = min(best[name], time.process_time() - started)
    print(
        f"{len(documents):,} documents, {megabytes:.1f} MB\n\n| way | MB/s | times the first"
        " |\n|---|---|---|"
    )
    for ways in (by_pairs, by_bytes):
        first = best[next(iter(ways))]
        for name in ways:
            print(f"| {name} | {megabytes / best[name]:.1f} | {first / best[name]:.2f} |")


def pair_ways(documents: list[str], name: str | None) -> dict[str, Callable[[], Any]]:
    """Return the methods for byte-level BPE, `tokenizers` first."""
    definition = load_tokenizer(name).definition if name else trained(documents)
    end = Tokenizer.from_str(definition).token_to_id(END)
    slow, fast = (FastTokenizer(definition, "benchmark", end, end) for _ in range(2))
    slow.TIKTOKEN_PAYS, fast.TIKTOKEN_PAYS = 2**62, 0
    expected, actual = slow.encode_flat(documents), fast.encode_flat(documents)
    same = all(np.array_equal(a, b) for a, b in zip(expected, actual, strict=True))
    assert same, "the ids differ"
    ways: dict[str, Callable[[], Any]] = {
        "FastTokenizer.encode_batch by `tokenizers`": lambda: slow.encode_batch(documents),
        "FastTokenizer.encode_batch by tiktoken": lambda: fast.encode_batch(documents),
        "FastTokenizer.encode_flat by tiktoken": lambda: fast.encode_flat(documents),
    }
    if fast._fast is not None:
        ours = fast._fast._encoding
        raw = Encoding(
            "raw",
            pat_str=GPT2 + SPACES,
            mergeable_ranks=ours._mergeable_ranks,
            special_tokens=ours._special_tokens,
        )
        ways["tiktoken alone, GPT-2's pattern as it is"] = lambda: [
            raw.encode_to_numpy(text, disallowed_special=()) for text in documents
        ]
    return ways


def byte_ways(documents: list[str]) -> dict[str, Callable[[], Any]]:
    """Return the methods for bytes, one array for each document first."""
    tokenizer = ByteTokenizer()
    return {
        "bytes: an array for each document": lambda: [
            np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in documents
        ],
        "ByteTokenizer.encode_batch": lambda: tokenizer.encode_batch(documents),
        "ByteTokenizer.encode_flat": lambda: tokenizer.encode_flat(documents),
    }


def trained(documents: list[str]) -> str:
    """Train a byte-level BPE with GPT-2's pattern and return its definition."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    backend.train_from_iterator(documents, trainer)
    return str(backend.to_str())


if __name__ == "__main__":
    main()
