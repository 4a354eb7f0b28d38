"""Files of tokenizers and token caches that are damaged, retyped, cut or too long: they are used,
made again, or refused in one line.

python -m pytest tests/reliability/test_bad_tokens.py [--long]
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from lm.commands import load_config
from lm.system.errors import UserError
from lm.tokenizer.tokenizer import ByteTokenizer, FastTokenizer, from_definition, load_tokenizer
from lm.tokens.corpus import open_corpora
from tests.support.runs import config_file

pytestmark = pytest.mark.usefixtures("takes_seconds")

Amount = Callable[[int, int], int]
MOST_SECONDS = 5.0
TEXTS = ["hello world é 今天", "the ab", "", "x" * 3000]
REMOVED = object()
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1.5, float("nan")),
    *("", "x", "\ud800", "\x1b[2J\n", "../../x", "x" * 10_000, "</s>", "[EOS]", "uint32"),
    *([], {}, [1], {"a": 1}, [[]], [["a", "b"]], {"type": "ByteLevel"}, {"type": "x"}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the places in a JSON value; of a long list or table a few."""
    inner = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    for key, child in inner[: 3 if len(inner) > 40 else 40]:
        yield (*path, key)
        yield from places(child, (*path, key))


def retyped(value: Any, chance: random.Random) -> Any:
    """Return a JSON value of which one to three places hold something else, or are gone."""
    result = copy.deepcopy(value)
    for _ in range(chance.choice([1, 1, 2, 3])):
        if not (found := list(places(result))):
            break
        *path, last = chance.choice(found)
        parent = result
        for key in path:
            parent = parent[key]
        new = chance.choice([*VALUES, REMOVED])
        if new is REMOVED:
            del parent[last]
        else:
            parent[last] = copy.deepcopy(new)
    return result


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a file's content with other values, a flipped bit, an end too early or too late."""
    kind = chance.choice(["retyped"] * 6 + ["bit", "cut", "longer", "deep"])
    if kind == "retyped":
        return json.dumps(retyped(json.loads(content), chance)).encode()
    place = chance.randrange(len(content))
    if kind == "bit":
        flipped = bytes([content[place] ^ 1 << chance.randrange(8)])
        return content[:place] + flipped + content[place + 1 :]
    return {"cut": content[:place], "longer": content * 2, "deep": b"[" * 10**5}[kind]


def of_words() -> Tokenizer:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[EOS]": 1, "a": 2, "b": 3}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[UNK]", "[EOS]"])
    return backend


def of_pieces() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("\u2581", -1.0), ("a", -2.0), ("ab", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, 0, False))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "</s>"])
    return backend


def test_tokenizers_that_others_damaged(
    tmp_path: Path,
    amount: Amount,
    figure: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FastTokenizer, "TIKTOKEN_PAYS", 0)
    good = [ByteTokenizer().definition, of_words().to_str(), of_pieces().to_str()]
    settings = b'{"eos_token": {"content": "[EOS]"}, "pad_token": "[UNK]"}'
    chance, answers = random.Random(0), Counter[str]()
    for number in range(amount(300, 3000)):
        file = chance.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
        content = {
            "tokenizer.json": chance.choice(good).encode(),
            "tokenizer_config.json": settings,
        }
        content[file] = damaged(content[file], chance)
        for name, raw in content.items():
            (tmp_path / name).write_bytes(raw)
        if file == "tokenizer.json":
            (tmp_path / "tokenizer_config.json").unlink()
        started = time.process_time()
        try:
            found = load_tokenizer(str(tmp_path))
            found.encode_flat(TEXTS)
            from_definition(found.definition, found.name, found.eos_id, found.pad_id)
            answers["read"] += 1
        except UserError as error:
            assert "\n" not in str(error), number
            answers["refused"] += 1
        assert time.process_time() - started < MOST_SECONDS, number
    figure(f"tokenizers: {answers['read']:,} read, {answers['refused']:,} refused in a line")


@pytest.mark.parametrize("text_is_there", [True, False])
def test_caches_that_others_damaged(
    tmp_path: Path, amount: Amount, figure: Callable[[str], None], text_is_there: bool
) -> None:
    """The tokens are always those of the text, or the cache is refused where there is no text."""
    config = load_config(str(config_file(tmp_path))).config
    tokenizer = ByteTokenizer()

    def opened() -> str:
        [corpus] = open_corpora(config, tokenizer, lambda line: None)
        return "".join(store.sha256 for store in corpus.stores)

    expected = opened()
    cache = tmp_path / "cache"
    good = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    if not text_is_there:
        (tmp_path / "corpus.txt").unlink()
    chance, answers = random.Random(1), Counter[str]()
    json_files = [path for path in good if path.suffix in (".json", ".source")]
    for number in range(amount(100, 1500)):
        for path, content in good.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        if chance.random() < 0.8:
            path = chance.choice(json_files)
            path.write_bytes(damaged(good[path], chance))
        else:
            path = chance.choice([path for path in good if path.suffix == ".bin"])
            content = good[path]
            place = chance.randrange(len(content))
            flipped = bytes([content[place] ^ 1 << chance.randrange(8)])
            path.write_bytes(content[:place] + flipped + content[place + 1 :])
        started = time.process_time()
        try:
            assert opened() == expected, number
            answers["used or made again"] += 1
        except UserError as error:
            assert not text_is_there, number
            assert "\n" not in str(error), number
            answers["refused"] += 1
        assert time.process_time() - started < MOST_SECONDS, number
    figure(
        f"caches with{'' if text_is_there else 'out'} their text:"
        f" {answers['used or made again']:,} used or made again, {answers['refused']:,} refused"
    )
