"""Tokenizers that others wrote: each is read rightly, or refused in a line, time and memory."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lm.system.errors import ConfigError, DataError
from lm.tokenizer import sentencepiece
from lm.tokenizer.definition import check
from lm.tokenizer.tokenizer import ByteTokenizer, from_definition, load_tokenizer

GOOD: dict[str, Any] = json.loads(ByteTokenizer().definition)


def write(folder: Path, definition: dict[str, Any] | str = "", **settings: str | bytes) -> str:
    """Write a tokenizer's folder; `settings` are further JSON files."""
    folder.mkdir(exist_ok=True)
    text = definition if isinstance(definition, str) else json.dumps(definition)
    (folder / "tokenizer.json").write_text(text or json.dumps(GOOD))
    for name, content in settings.items():
        raw = content.encode() if isinstance(content, str) else content
        (folder / f"{name}.json").write_bytes(raw)
    return str(folder)


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(name)
    message = str(caught.value)
    assert message.startswith(f"tokenizer {name}: ")
    assert "\n" not in message
    assert len(message) < 1000
    return message


SETTINGS: dict[str, str | bytes] = {
    "a number": '{"eos_token": 5}',
    "true": '{"eos_token": true}',
    "a list": '{"eos_token": ["a"]}',
    "an object without content": '{"eos_token": {"x": 1}}',
    "an object with a number": '{"eos_token": {"content": 7}}',
    "half a surrogate": '{"eos_token": "\\ud800"}',
    "a list of all": '["eos_token"]',
    "a text": '"eos_token"',
    "NaN": "NaN",
    "many digits": '{"eos_token": ' + "1" * 5000 + "}",
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "not UTF-8": b"\xff\xfe{",
    "too large": b" " * (2**24 + 1),
}


@pytest.mark.parametrize("content", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("file", ["tokenizer_config", "special_tokens_map"])
def test_settings_of_other_types_are_refused(
    tmp_path: Path, file: str, content: str | bytes
) -> None:
    assert f"{file}.json" in refusal(write(tmp_path / "t", **{file: content}))


@pytest.mark.parametrize("empty", ["null", '""', "false", "{}"])
def test_settings_that_name_nothing_name_nothing(tmp_path: Path, empty: str) -> None:
    name = write(tmp_path / "t", tokenizer_config=f'{{"eos_token": {empty}}}')
    assert load_tokenizer(name).eos_id == 258


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model"]
)
def test_pipes_and_endless_files_are_not_read(tmp_path: Path, file: str) -> None:
    if "vocab" not in file and "model" not in file:
        write(tmp_path)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (tmp_path / file).unlink(missing_ok=True)
        make(tmp_path / file)
        assert "not a regular file" in refusal(str(tmp_path)).lower() or "Invalid argument" in (
            refusal(str(tmp_path))
        )
    if file == "tokenizer.json":
        refusal(str(tmp_path / file))


def with_id(number: object) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["model"]["vocab"].update(zz=number)


def with_rules(*rules: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.update(normalizer={"type": "Sequence", "normalizers": list(rules)})


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


DEFINITIONS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "an id of 2^31": (with_id(2**31), "the token 'zz' has the id 2147483648; ids are integers"),
    "an id of 10 million": (with_id(10**7), "the token 'zz' has the id 10000000"),
    "a negative id": (with_id(-1), "the token 'zz' has the id -1"),
    "an id in words": (with_id("five"), "the token 'zz' has the id five"),
    "an id that is true": (with_id(True), "the token 'zz' has the id True"),
    "an added token's id": (
        lambda values: values["added_tokens"][0].update(id=2**40),
        "the token '<|pad|>' has the id 1099511627776",
    ),
    "a letter becomes 10,000": (
        with_rules(replace("x" * 10_000, String="e")),
        "its rules make a text more than 64 times as long",
    ),
    "letters double 40 times": (
        with_rules(*[replace("ee", String="e")] * 40),
        "its rules make a text more than 64 times as long",
    ),
    "between all letters": (
        with_rules(replace("x" * 100, Regex="")),
        "its rules make a text more than 64 times as long",
    ),
    "a decoder that grows": (
        lambda values: values.update(
            decoder={"type": "Sequence", "decoders": [replace("a" * 99, String="a")]}
        ),
        "its rules make a text more than 64 times as long",
    ),
    "no model": (lambda values: values.pop("model"), "not a tokenizer.json of the tokenizers"),
}


@pytest.mark.parametrize(("change", "message"), DEFINITIONS.values(), ids=DEFINITIONS)
def test_a_definition_that_would_take_all_memory_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    values = copy.deepcopy(GOOD)
    change(values)
    assert message in refusal(write(tmp_path / "t", values))
    with pytest.raises(ValueError, match=r"."):
        from_definition(json.dumps(values), "of a checkpoint", 258, 256)


@pytest.mark.parametrize(
    ("expression", "grows"),
    [
        *[("[\u2018\u2019]", False), (r"\s+", False), ("", True), ("x*", True), (r"\b", True)],
        *[(r"(?=x)", True), (r"\p{Lu}*", True), ("(", True), ("[[:alpha:]]*", True)],
    ],
)
def test_only_expressions_that_match_nothing_insert(expression: str, grows: bool) -> None:
    values = copy.deepcopy(GOOD)
    with_rules(*[replace("-", Regex=expression)] * 7)(values)
    with pytest.raises(ValueError, match="64 times") if grows else contextlib.nullcontext():
        check(json.dumps(values))


def test_rules_that_are_nested_without_end_are_refused(tmp_path: Path) -> None:
    deep = '{"type":"Sequence","normalizers":[' * 10_000 + "]}" * 10_000
    name = write(tmp_path / "t", '{"version":"1.0","normalizer":' + deep + ',"model":{}}')
    assert "recursion" in refusal(name)


def test_a_bug_of_the_library_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """What Rust raises; a signal's KeyboardInterrupt is no `Exception` either."""

    def raising(error: BaseException) -> Callable[[str], None]:
        def from_str(definition: str) -> None:
            raise error

        return from_str

    name = write(tmp_path / "t")
    monkeypatch.setattr(Tokenizer, "from_str", raising(PanicException("out of range")))
    assert "out of range" in refusal(name)
    monkeypatch.setattr(Tokenizer, "from_str", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(name)


def test_a_text_that_a_vocabulary_has_no_word_for_is_named() -> None:
    backend = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = from_definition(backend.to_str(), "words", 0, 0)
    with pytest.raises(DataError, match=r"tokenizer words cannot encode the text \(WordLevel"):
        tokenizer.encode("a b")


# --- what an unknown word becomes


def whole_words(tmp_path: Path, unknown: str, *specials: str) -> str:
    backend = Tokenizer(models.BPE(unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=[unknown, *specials], show_progress=False
    )
    backend.train_from_iterator(["one word and another"] * 9, trainer)
    return write(tmp_path / "t", backend.to_str())


def test_an_unknown_word_must_not_end_a_document(tmp_path: Path) -> None:
    message = refusal(whole_words(tmp_path, "<|endoftext|>"))
    assert "its end-of-text token '<|endoftext|>' is its unknown token too" in message


def test_an_unknown_word_is_no_reserved_id(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(whole_words(tmp_path, "<unk>", "</s>"))
    assert tokenizer.unknown_id == 0
    assert 0 in tokenizer.encode("é")
    assert tokenizer.reserved_ids == {tokenizer.eos_id}


@pytest.mark.parametrize("unknown", ["<|eos|>", "<|pad|>"])
def test_a_vocabulary_of_all_bytes_has_no_unknown_text(tmp_path: Path, unknown: str) -> None:
    """GPT-2's settings name its end of text as the unknown token, which no text ever becomes."""
    values = copy.deepcopy(GOOD)
    values["model"]["unk_token"] = unknown
    tokenizer = load_tokenizer(write(tmp_path / "t", values))
    assert tokenizer.unknown_id is None
    assert {tokenizer.pad_id, tokenizer.eos_id} <= tokenizer.reserved_ids


# --- SentencePiece


def test_the_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2")
    monkeypatch.setattr(sentencepiece.importlib.util, "find_spec", lambda name: None)
    assert refusal(str(tmp_path)).endswith(
        "tokenizer.model is a SentencePiece model, and sentencepiece is not installed, which reads"
        " it; pip install -e '.[sentencepiece]'"
    )


def test_a_vocabulary_of_tiktoken_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    for name in (tmp_path, tmp_path / "tokenizer.model"):
        assert "tokenizer.model is no SentencePiece model (tiktoken's" in refusal(str(name))


def test_settings_beside_a_model_are_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2")
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 7}')
    assert f"added_tokens.json stands beside it; write the folder, {tmp_path}, or move" in refusal(
        str(tmp_path / "a.model")
    )


def test_one_of_several_models_must_be_named(tmp_path: Path) -> None:
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2")
    assert f"several models; write one of them: {tmp_path / 'a.model'}" in refusal(str(tmp_path))


# --- files that hold a part of a tokenizer

WORDS = {symbol: number for number, symbol in enumerate(GOOD["model"]["vocab"])}


@pytest.mark.parametrize(
    ("file", "content", "needed"),
    [
        ("vocab.json", json.dumps(WORDS), "merges.txt"),
        ("merges.txt", "#version: 0.2\na b\n", "vocab.json"),
        ("vocab.txt", "[PAD]\n[UNK]\n[SEP]\nthe\n", "tokenizer_config.json"),
        ("tokenizer_config.json", '{"eos_token": "a"}', "tokenizer.json"),
        ("special_tokens_map.json", '{"eos_token": "a"}', "tokenizer.json"),
        ("config.json", '{"model_type": "gpt2"}', "tokenizer.json"),
        ("o200k_base.tiktoken", "IQ== 0\nIg== 1\n", "tokenizer.json"),
        ("words.vocab", "<unk>\t0\n", "*.model"),
    ],
)
def test_a_part_of_a_tokenizer_is_told_its_folder(
    tmp_path: Path, file: str, content: str, needed: str
) -> None:
    (tmp_path / file).write_text(content)
    told = f": {file} is only "
    advice = f"; write its folder, {tmp_path}, with {needed} in it"
    message = refusal(str(tmp_path / file))
    assert told in message and message.endswith(advice)
    if file in ("vocab.json", "merges.txt", "vocab.txt"):  # the folder lacks the same file
        message = refusal(str(tmp_path))
        assert told in message and message.endswith(advice)


def test_a_tokenizer_may_have_the_name_of_a_part(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(GOOD))
    assert load_tokenizer(str(tmp_path / "vocab.json")).eos_id == 258


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_model_of_sentencepiece_gives_its_ids(tmp_path: Path, kind: str, prefix: bool) -> None:
    library = pytest.importorskip("sentencepiece")
    texts = ["the quick brown fox, née ① ﬁ", "  two  spaces ", "a\nline", "今天 x", "fox", "é€"]
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 50),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        hard_vocab_limit=False,
        model_type=kind,
        byte_fallback=True,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.eos_id == theirs.eos_id()
    named = load_tokenizer(str(tmp_path / "tokenizer.model"))
    assert named.definition == tokenizer.definition
    for text in [*texts, "unheard words: żółw"]:
        assert tokenizer.encode(text) == theirs.encode(text)
        assert tokenizer.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
