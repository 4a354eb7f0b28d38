"""tools.train_tokenizer: vocabularies trained on the text of a configuration."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.commands import load_config
from lm.documents.templates import ChatFormat
from lm.system.errors import ConfigError
from lm.tokenizer.learn import (
    LEAST_VOCABULARY,
    PIECE,
    check_specials,
    excerpt,
    learn,
    measure,
    pieces,
    usage_report,
)
from lm.tokenizer.tokenizer import ByteTokenizer, FastTokenizer, load_tokenizer
from lm.tokens.corpus import open_corpora
from lm.tokens.sources import documents_by_split, readers
from lm.tokens.store import TokenStore
from tests.commands.test_commands import run
from tests.support.runs import config_file, corpus, without

VERSE = (
    "To be, or not to be:\nthat is the question, isn't it?\n\nNaïve café, 東京の塔 in 1998 and"
    " 2024; <|eos|> costs 100 %.\n" * 4
)


def tokenizer_of(texts: list[str], vocab_size: int = 300) -> FastTokenizer:
    definition, _ = learn(texts, vocab_size)
    added = {token["content"]: token["id"] for token in json.loads(definition)["added_tokens"]}
    return FastTokenizer(definition, "learnt", added["<|eos|>"], added["<|pad|>"])


def pair_merges(words: Counter[tuple[bytes, ...]], n: int) -> list[bytes]:
    """Return the first n merges by the BPE paper, slowly: always merge the most frequent pair."""
    made: list[bytes] = []
    for _ in range(n):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        (a, b), best = pairs.most_common(1)[0]
        assert list(pairs.values()).count(best) == 1, (
            "the text of this test leaves no doubt about the order"
        )
        made.append(a + b)
        words = Counter({_merged(word, a, b): count for word, count in words.items()})
    return made


def _merged(word: tuple[bytes, ...], a: bytes, b: bytes) -> tuple[bytes, ...]:
    result: list[bytes] = []
    for token in word:
        if result and (result[-1], token) == (a, b):
            result[-1] = a + b
        else:
            result.append(token)
    return tuple(result)


# ---------------------------------------------------------------- what is learnt


def test_the_merges_are_those_of_the_plain_algorithm() -> None:
    chance = random.Random(0)
    counts = {
        "".join(chance.choices("abcd", k=chance.randint(2, 7))): chance.randint(100, 999)
        for _ in range(60)
    }
    text = "\n".join(word for word, count in counts.items() for _ in range(count))
    words = Counter(
        {tuple(bytes([byte]) for byte in word.encode()): count for word, count in counts.items()}
    )
    expected = pair_merges(words, 20)
    tokenizer = tokenizer_of([text], 256 + 20 + 4)
    assert [tokenizer.decode([256 + i]).encode() for i in range(20)] == expected


def test_the_ids_are_the_byte_tokenizers_with_merges_in_between() -> None:
    tokenizer = tokenizer_of([VERSE])
    assert tokenizer.vocab_size == 300
    words = json.loads(tokenizer.definition)["model"]["vocab"]
    assert list(words.items())[:256] == list(
        json.loads(ByteTokenizer().definition)["model"]["vocab"].items()
    )
    added = [
        (token["id"], token["content"])
        for token in json.loads(tokenizer.definition)["added_tokens"]
    ]
    assert added == list(zip(range(296, 300), ByteTokenizer.SPECIALS, strict=True))
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.special_ids) == (
        296,
        298,
        frozenset(range(296, 300)),
    )


def test_a_larger_vocabulary_begins_with_the_smaller_one() -> None:
    small, large = (
        json.loads(tokenizer_of([VERSE], size).definition)["model"]["merges"] for size in (290, 310)
    )
    assert large[: len(small)] == small
    assert len(large) == len(small) + 20


def test_a_digit_is_a_word_and_a_special_token_in_a_text_is_text() -> None:
    tokenizer = tokenizer_of(["1998 1998 1998 <|eos|> <|eos|> <|eos|>"] * 9, 400)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1998")] == list("1998")
    assert not tokenizer.special_ids & set(tokenizer.encode("<|eos|> <|pad|>"))
    assert tokenizer.decode(tokenizer.encode("<|eos|>")) == "<|eos|>"


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert LEARNT.decode(LEARNT.encode(text)) == text


LEARNT = tokenizer_of([VERSE])


def test_every_byte_can_be_written() -> None:
    """A vocabulary trained on nothing but a's still has an id for each byte."""
    tokenizer = tokenizer_of(["aaaa aaaa"], 262)
    text = "".join(map(chr, range(0x250))) + "\U0001f600\U0010ffff\ue000"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("\0\x7f") == [0, 0x7F]


def test_further_special_tokens_stand_before_the_four_and_take_the_place_of_merges() -> None:
    names = ["<|im_start|>", "<|im_end|>"]
    plain, chat = (
        json.loads(learn([VERSE + " <|im_end|>" * 9], 300, specials)[0]) for specials in ([], names)
    )
    assert chat["model"]["merges"] == plain["model"]["merges"][:-2]
    added = [(token["id"], token["content"], token["special"]) for token in chat["added_tokens"]]
    assert added == [
        (294 + i, name, True) for i, name in enumerate([*names, *ByteTokenizer.SPECIALS])
    ]
    tokenizer = FastTokenizer(json.dumps(chat), "chat", 298, 296)
    assert (tokenizer.vocab_size, ChatFormat("chatml", tokenizer).stop_ids) == (300, {295, 298})
    assert not tokenizer.special_ids & set(tokenizer.encode("<|im_end|>")), (
        "learnt as text too, it is text"
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["im_end"], "--special im_end: a special token is written '<|name|>'"),
        (["<|im end|>"], "--special <|im end|>: a special token is written"),
        (["<||>"], "--special <||>: a special token is written"),
        (["<|a|>\n"], "a special token is written"),
        (["<|a|>", "<|eos|>"], "--special <|eos|>: every vocabulary has it; leave it out"),
        (["<|a|>", "<|b|>", "<|a|>"], "--special <|a|> is given twice; leave one out"),
    ],
)
def test_wrong_special_tokens_are_named(names: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_specials(names)
    assert told in str(raised.value)


def test_a_text_with_too_few_pairs_gives_fewer_tokens() -> None:
    assert tokenizer_of(["ab ab"], 1000).vocab_size < 265
    assert tokenizer_of(["abcdef"], 1000).vocab_size == 260, (
        "a pair that is there once is no pattern"
    )


def test_the_order_of_the_texts_does_not_matter() -> None:
    texts = [*VERSE.splitlines(keepends=True), "more of it", "and more of that"]
    assert learn(texts, 320) == learn(texts[::-1], 320)


# ---------------------------------------------------------------- what is fed


@pytest.mark.parametrize("budget", [0, 1, 2, 10, 11, 12, 39, 40, 41, 10_000])
def test_the_budget_is_bytes_and_is_kept(budget: int) -> None:
    texts = ["0123456789", "ééééé", "東京の塔よ", "abcde"]  # 10 + 10 + 15 + 5 bytes
    whole = "".join(texts)
    kept = "".join(excerpt(texts, budget))
    assert whole.startswith(kept)
    assert len(kept.encode()) <= budget
    assert len(kept.encode()) > min(budget, 40) - 3, "all of it but what would be half a character"


def test_nothing_is_read_beyond_the_budget() -> None:
    asked = 0

    def texts() -> Iterator[str]:
        nonlocal asked
        while True:
            asked += 1
            yield "x" * 100

    assert sum(map(len, excerpt(texts(), 1000))) == 1000
    assert asked == 10
    _, size = learn(excerpt(texts(), 50_000), 270)
    assert (size, asked) == (50_000, 510)


@pytest.mark.usefixtures("takes_seconds")
def test_a_long_text_is_fed_in_pieces_that_are_the_same_words() -> None:
    chance = random.Random(0)
    words = [
        "the",
        "model's",
        "reads",
        "1998",
        "--",
        "a\n",
        "\n\n",
        "東京",
        " ",
        "  ",
        "\t",
        "it.\n",
    ]
    text = " ".join(chance.choices(words, k=80_000))
    assert len(text) > 3 * PIECE
    assert "".join(pieces(text)) == text
    assert max(map(len, pieces(text))) <= PIECE
    assert learn(pieces(text), 320) == learn([text], 320)
    unbroken = "字" * (2 * PIECE + 5)
    assert [len(piece) for piece in pieces(unbroken)] == [PIECE, PIECE, 5]
    assert list(pieces("")) == [""]


def test_what_is_measured_is_counted_by_hand() -> None:
    texts = ["low low", "é", "x"]
    tokenizer = tokenizer_of(["low low low"] * 3, LEAST_VOCABULARY + 2)
    usage = measure(tokenizer, texts)
    ids = [i for text in texts for i in tokenizer.encode(text)]
    assert (usage.texts, usage.text_bytes, usage.tokens, usage.changed) == (3, 10, len(ids), 0)
    assert {i: n for i, n in enumerate(usage.counts.tolist()) if n} == Counter(ids)
    assert usage.bytes_per_token == 10 / len(ids)
    lines = usage_report(tokenizer, {"here": usage, "empty": measure(tokenizer, [])})
    assert lines[1].split() == ["here", "10", str(len(ids)), f"{10 / len(ids):.4f}"]
    assert lines[2].endswith("there is no text")
    idle = sum(n == 0 for n in usage.counts[: tokenizer.vocab_size - 4].tolist())
    assert f"never used here: {idle:,} of {tokenizer.vocab_size - 4:,}: " in lines[3]


def test_a_text_that_does_not_come_back_is_counted() -> None:
    definition = json.loads(LEARNT.definition) | {"normalizer": {"type": "Lowercase"}}
    broken = FastTokenizer(json.dumps(definition), "broken", LEARNT.eos_id, LEARNT.pad_id)
    usage = measure(broken, ["abc", "ABC", "DEF"])
    assert usage.changed == 2
    assert usage_report(broken, {"it": usage})[-1] == "round trip: 2 of 3 texts came back changed"


# ---------------------------------------------------------------- the command

COMMAND = ("-m", "tools.train_tokenizer")


def made(folder: Path, config: Path, *flags: str, **environment: str) -> tuple[bytes, str]:
    """Run the command; return the written file and its output."""
    out = folder / f"{len(list(folder.glob('*.json')))}.json"
    common = ["--config", config, "--vocab-size", "300", "--out", out]
    said = run(*COMMAND, *without(common, flags), *flags, **environment).stdout
    return out.read_bytes(), said


@pytest.mark.usefixtures("starts_processes")
def test_the_same_bytes_in_every_run(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    conditions = [
        {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"},
        {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "4"},
        {"TOKENIZERS_PARALLELISM": "false"},
    ]
    assert len({made(tmp_path, config, **environment)[0] for environment in conditions}) == 1


SPLITS: dict[str, dict[str, object]] = {
    "hash": {},
    "tail": {"split": "tail"},
    "validation": {
        "val_fraction": 0.05,
        "validation": {"format": "txt", "files": "{folder}/held_out.txt"},
    },
}


def stored_texts(store: TokenStore) -> list[str]:
    """Return the documents of a split, decoded from its tokens in the cache."""
    stream = store.read(0, store.tokens)
    # The first part is empty; every other part is a document that begins with its EOS.
    parts = np.split(stream, np.flatnonzero(stream == ByteTokenizer().eos_id))
    return [bytes(part[1:].astype(np.uint8)).decode() for part in parts if len(part) > 1]


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("split", SPLITS)
def test_only_the_training_side_is_learnt_from(tmp_path: Path, split: str) -> None:
    """The result is the same as from the training side in the token cache."""
    (tmp_path / "held_out.txt").write_text("zyzzyva " * 999, encoding="utf-8")
    keys = json.loads(json.dumps(SPLITS[split]).replace("{folder}", str(tmp_path)))
    source = {"format": "txt", "files": str(corpus(tmp_path, documents=60))}
    config = config_file(tmp_path, data={"source": source, "val_fraction": 0.4, **keys})
    written, said = made(tmp_path, config)
    stores = [
        store
        for corpus in open_corpora(load_config(config).config, ByteTokenizer(), lambda line: None)
        for store in corpus.stores
    ]
    by_side = {
        side: [text for store in stores if store.split == side for text in stored_texts(store)]
        for side in ("train", "val")
    }
    assert all(by_side.values())
    assert written.decode() == learn(by_side["train"], 300)[0]
    assert written.decode() != learn(by_side["train"] + by_side["val"], 300)[0]
    sizes = {side: len("".join(texts).encode()) for side, texts in by_side.items()}
    assert f"trained on {sizes['train']:,} bytes of the training text" in said
    rows = [
        line.split()
        for line in said.splitlines()
        if ", training " in line or ", validation " in line
    ]
    assert [row[2] for row in rows] == [f"{sizes['train']:,}", f"{sizes['val']:,}"]


@pytest.mark.usefixtures("starts_processes")
def test_the_budget_on_the_command_line(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    written, said = made(tmp_path, config, "--bytes", "500")
    assert "trained on 500 bytes of the training text" in said
    [(reader, split)] = readers(load_config(config).config.data)
    train = [text for side, text in documents_by_split(reader, split) if side == "train"]
    assert written.decode() == learn(excerpt(train, 500), 300)[0]


@pytest.mark.usefixtures("starts_processes")
def test_the_budget_is_shared_out_by_the_weights_of_a_mixture(tmp_path: Path) -> None:
    """Weights 3 and 7 share 1,000 bytes as 300 and 700; a large budget takes all text.

    Text to validate on is reported like the others.
    """
    texts = {
        name: [f"{word * 3} {i % 7}" for i in range(99)]
        for name, word in (("a", "ab"), ("b", "cd"), ("c", "held"))
    }
    for name, lines in texts.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    sources = {
        name: {"format": "txt", "unit": "line", "files": str(tmp_path / f"{name}.txt")}
        for name in texts
    }
    parts = [{"weight": weight, "source": sources[name]} for weight, name in ((3, "a"), (7, "b"))]
    data = {
        "source": {"format": "mixture", "parts": parts},
        "validation": sources["c"],
        "val_fraction": 0.05,
    }
    config = config_file(tmp_path, data=data)
    written, said = made(tmp_path, config, "--bytes", "1000", "--vocab-size", "270")
    assert "trained on 1,000 bytes of the training text" in said
    shares = [*excerpt(texts["a"], 300), *excerpt(texts["b"], 700)]
    assert written.decode() == learn(shares, 270)[0]
    others = (
        [*excerpt(texts["a"], 700), *excerpt(texts["b"], 300)],
        [*excerpt(texts["a"], 500), *excerpt(texts["b"], 500)],
    )
    assert written.decode() not in [learn(other, 270)[0] for other in others]
    named = [
        line.split(", ")
        for line in said.splitlines()
        if ", training " in line or ", validation " in line
    ]
    assert [name for name, _ in named] == [
        "data.source.parts[0].source",
        "data.source.parts[1].source",
        "data.validation",
    ]
    everything, said = made(tmp_path, config, "--vocab-size", "270")
    sizes = [len("".join(texts[name]).encode()) for name in "ab"]
    assert f"trained on {sum(sizes):,} bytes of the training text" in said
    assert everything.decode() == learn(texts["a"] + texts["b"], 270)[0]


@pytest.mark.usefixtures("starts_processes")
def test_a_run_trains_with_it_and_transformers_reads_the_folder(tmp_path: Path) -> None:
    config, out = config_file(tmp_path), tmp_path / "bpe"
    run(
        *COMMAND,
        "--config",
        str(config),
        "--vocab-size",
        "320",
        "--out",
        str(out),
        "--special",
        "<|im_end|>",
    )
    tokenizer = load_tokenizer(str(out))
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == (320, 316, 318)
    assert tokenizer.specials["<|im_end|>"] == 315
    assert load_tokenizer(str(out / "tokenizer.json")).sha256 == tokenizer.sha256
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(out))
    assert (
        len(theirs),
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
        theirs.sep_token_id,
    ) == (320, 317, 318, 316, 319)
    assert theirs(VERSE.replace("<|eos|>", "")).input_ids == tokenizer.encode(
        VERSE.replace("<|eos|>", "")
    )
    assert theirs("<|im_end|>").input_ids == [315]
    assert theirs.decode(theirs(" a , b !\n").input_ids) == " a , b !\n"
    done = run(
        "train.py",
        "--config",
        str(config),
        "--tokenizer.name",
        str(out / "tokenizer.json"),
        "--trainer.max_steps",
        "3",
    )
    assert "done: " in done.stdout


@pytest.mark.usefixtures("starts_processes")
def test_it_says_what_is_worth_knowing(tmp_path: Path) -> None:
    lines = corpus(tmp_path).read_text(encoding="utf-8").split("\n\n")
    rows = [json.dumps({"text": line.strip()}) for line in lines] + [
        "not json",
        json.dumps({"text": " "}),
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    source = {"format": "jsonl", "files": str(tmp_path / "rows.jsonl")}
    config = config_file(
        tmp_path, data={"source": source, "on_bad_row": "skip", "val_fraction": 0.3}
    )
    out = tmp_path / "t.json"
    said = run(*COMMAND, "--config", str(config), "--vocab-size", "5000", "--out", str(out)).stdout
    size = load_tokenizer(str(out)).vocab_size
    assert f"\n{size} tokens, not 5,000: no pair of tokens occurs twice in this text; " in said
    assert "; left out: 1 x broken JSON, 1 x empty document\n" in said
    assert "longest: ' " in said
    assert "never used here: " in said
    assert "round trip: 0 of " in said


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--vocab-size", "260"], 2, "--vocab-size: 260 is out of range; write 261 to 1,048,576\n"),
        (
            ["--special", "<|a|>", "--vocab-size", "261"],
            2,
            "--vocab-size: 261 is out of range; write 262 to 1,048,576\n",
        ),
        (["--special", "im_end"], 2, "--special im_end: a special token is written '<|name|>'"),
        (["--bytes", "0"], 2, "--bytes: 0 is out of range; write 1 to 2,147,483,647\n"),
        (
            ["--bytes", "3000000000"],
            2,
            "--bytes: 3,000,000,000 is out of range; write 1 to 2,147,483,647\n",
        ),
        (
            ["--data.source.files", "nothing.txt"],
            3,
            "data.source.files: nothing.txt does not exist",
        ),
        (["--data.sourc", "x"], 2, "--data.sourc"),
        (
            ["--data.source.unit", "file", "--data.val_fraction", "0.999999"],
            3,
            "; a single document needs data.split: tail\n",
        ),
        (["--out", "{folder}/corpus.txt/t.json"], 5, "corpus.txt"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(tmp_path: Path, flags: list[str], code: int, told: str) -> None:
    config, out = config_file(tmp_path), tmp_path / "new" / "t.json"
    common = without(["--config", config, "--vocab-size", "300", "--out", out], flags)
    done = run(*COMMAND, *common, *(flag.format(folder=tmp_path) for flag in flags), code=code)
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.usefixtures("starts_processes")
def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    common = [*COMMAND, "--config", str(config), "--vocab-size", "300", "--out"]
    for out, kept in (
        (tmp_path / "t.json", tmp_path / "t.json"),
        (tmp_path / "bpe", tmp_path / "bpe" / "tokenizer_config.json"),
    ):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("mine", encoding="utf-8")
        done = run(*common, str(out), code=2)
        assert (
            done.stderr
            == f"--out: {kept} is there already; name another, or write over it with --force\n"
        )
        assert kept.read_text(encoding="utf-8") == "mine"
        run(*common, str(out), "--force")
        assert load_tokenizer(str(out)).vocab_size == 300


DEAF = """
import pathlib, threading, time
from lm.system import errors
from lm.tokenizer import learn as tokenizer_training
from tools import train_tokenizer
def learn(texts, vocab_size, specials):
    pathlib.Path({marker!r}).write_text(str(threading.current_thread() is threading.main_thread()))
    time.sleep(600)
tokenizer_training.learn = learn
errors.run(train_tokenizer.main)
"""


@pytest.mark.usefixtures("starts_processes")
def test_ctrl_c_leaves_at_once_and_nothing_behind(tmp_path: Path) -> None:
    """`tokenizers` ignores signals while it counts and merges; only another thread can leave."""
    config, out, marker = config_file(tmp_path), tmp_path / "new" / "t.json", tmp_path / "working"
    flags = ["--config", str(config), "--vocab-size", "300", "--out", str(out)]
    command = [sys.executable, "-c", DEAF.format(marker=str(marker)), *flags]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (marker.exists() and marker.read_text()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert marker.read_text() == "False"
    assert (process.returncode, printed, said) == (
        130,
        "",
        "stopped by Ctrl-C; nothing was written\n",
    )
    assert list(out.parent.iterdir()) == []


def test_a_configuration_without_its_tokenizer_is_told_how_to_make_it(tmp_path: Path) -> None:
    missing = tmp_path / "t.json"
    with pytest.raises(ConfigError) as raised:
        load_tokenizer(str(missing))
    told = str(raised.value)
    assert told.startswith(f"tokenizer {missing}: no such file or folder; ")
    assert f"python -m tools.train_tokenizer --config CONFIG --vocab-size N --out {missing}" in told
