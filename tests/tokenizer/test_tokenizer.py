"""Test tokenizers: ids, definitions, refusals, streaming, and the hub through its real client."""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from lm.system.errors import ConfigError, DataError
from lm.tokenizer.stream import TextStream
from lm.tokenizer.tokenizer import (
    ByteTokenizer,
    FastTokenizer,
    from_definition,
    load_tokenizer,
    require_same,
    resolve,
)
from lm.tokenizer.tokenizer import Tokenizer as OurTokenizer
from tests.support.hub import Hub, client_environment

ROOT = Path(__file__).parents[2]
LETTERS = (
    "The cat sat on the mat. The dog sat on the log, and the naïve café — 東京の塔 — was 100 %"
    " full! 😀 <|a|> " * 3
)
HEX_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(
    merges: list[tuple[str, str]] | None = None, eos: str | None = "<|endoftext|>"
) -> Tokenizer:
    """Return a byte-level BPE like GPT-2's.

    It is trained on LETTERS, or has the given merges and no word borders.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=merges is None
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if merges is None:
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=alphabet,
            special_tokens=[eos] if eos else [],
            show_progress=False,
        )
        backend.train_from_iterator([LETTERS], trainer)
    else:
        tokens = [*alphabet, *("".join(pair) for pair in merges), *([eos] if eos else [])]
        backend.model = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
        backend.add_special_tokens([eos] if eos else [])
    return backend


def sentencepiece() -> Tokenizer:
    """Return a BPE like Llama 2's.

    A space is part of its word, the first is not shown, and rare characters fall back to bytes.
    """
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *HEX_BYTES,
        "▁",
        *"abcdehlot",
        "▁a",
        "he",
        "▁the",
        "lo",
        "▁he",
    ]
    merges = [("▁", "a"), ("h", "e"), ("l", "o"), ("▁", "he")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return backend


def words() -> Tokenizer:
    """Return a tokenizer of words, with the special tokens among them."""
    backend = Tokenizer(
        models.WordLevel({"[UNK]": 0, "[EOS]": 1, "[PAD]": 2, "a": 3, "b": 4}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[UNK]", "[EOS]", "[PAD]"])
    return backend


def ours(backend: Tokenizer, eos: str = "<|endoftext|>") -> FastTokenizer:
    eos_id = backend.token_to_id(eos)
    assert eos_id is not None
    return FastTokenizer(backend.to_str(), "toy", eos_id, pad_id=eos_id)


def save(backend: Tokenizer, folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def save_vocabulary(backend: Tokenizer, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.model.save(str(folder))
    return folder


def crossing() -> Tokenizer:
    """Return a BPE whose one merge joins the last byte of an é to the first of the next.

    A row of é is therefore never complete before its end.
    """
    return byte_level([("©", "Ã")])


STREAMED: dict[str, Callable[[], OurTokenizer]] = {
    "byte": ByteTokenizer,
    "byte-level BPE": lambda: ours(byte_level()),
    "tokens across characters": lambda: ours(crossing()),
    "sentencepiece": lambda: ours(sentencepiece(), eos="</s>"),
}
TOY = {name: make() for name, make in STREAMED.items()}


# ---------------------------------------------------------------- bytes


def test_byte_tokenizer_has_the_documented_ids() -> None:
    tokenizer = load_tokenizer("byte")
    assert isinstance(tokenizer, ByteTokenizer)
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == (
        "byte",
        260,
        256,
        258,
    )
    assert tokenizer.encode("aé\n\0") == [97, 0xC3, 0xA9, 10, 0]
    assert tokenizer.encode("") == []
    assert tokenizer.encode_batch(["a", "", "bc"])[2].dtype == np.uint16
    assert tokenizer.encode("<|eos|>") == list(b"<|eos|>")
    assert tokenizer.decode([256, 97, 257, 0xC3, 258, 0xA9, 259, 300]) == "aé"
    assert tokenizer.decode([0xFF, 97, 0xE2, 0x82]) == "\ufffda\ufffd"


@given(st.text())
def test_byte_tokenizer_round_trip(text: str) -> None:
    tokenizer = TOY["byte"]
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_byte_definition_is_a_hugging_face_tokenizer() -> None:
    definition = ByteTokenizer().definition
    backend = Tokenizer.from_str(definition)
    assert json.loads(backend.to_str()) == json.loads(definition), (
        "the library would write it in other words, so its hash would not be found"
    )
    assert backend.get_vocab_size() == 260
    assert [backend.id_to_token(i) for i in range(256, 260)] == [
        "<|pad|>",
        "<|bos|>",
        "<|eos|>",
        "<|sep|>",
    ]
    assert backend.encode("a<|eos|>").ids == [
        97,
        258,
    ], "read by others, the special tokens are special"


@pytest.mark.usefixtures("takes_seconds")
@given(st.text(), st.lists(st.integers(0, 259)))
@example("<|eos|> \u0000 \ufffd\U0001f600", [0xF0, 0x9F, 0x98, 258, 0x80, 0xE0, 0x80, 0xC3])
def test_byte_definition_means_the_same_to_the_library(text: str, ids: list[int]) -> None:
    tokenizer = TOY["byte"]
    backend = Tokenizer.from_str(tokenizer.definition)
    backend.encode_special_tokens = True
    assert backend.encode(text).ids == tokenizer.encode(text)
    assert backend.decode(ids) == tokenizer.decode(ids)


def test_byte_definition_is_recognised_in_a_file_and_a_checkpoint(tmp_path: Path) -> None:
    stored = ByteTokenizer()
    indented = json.dumps(json.loads(stored.definition), indent=1, sort_keys=True)
    assert isinstance(from_definition(indented, "byte", 258, 256), ByteTokenizer)
    (tmp_path / "tokenizer.json").write_text(indented)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        assert isinstance(load_tokenizer(str(place)), ByteTokenizer)
        assert resolve(str(place), stored) is stored


@pytest.mark.usefixtures("starts_processes")
def test_importing_and_bytes_need_no_library() -> None:
    script = """if True:
        import sys
        from lm.tokenizer.stream import TextStream
        from lm.tokenizer.tokenizer import ByteTokenizer, from_definition, load_tokenizer
        tokenizer = from_definition(load_tokenizer("byte").definition, "byte", 258, 256)
        assert isinstance(tokenizer, ByteTokenizer)
        assert "".join(map(TextStream(tokenizer).push, tokenizer.encode("é"))) == "é"
        heavy = {"torch", "transformers", "tokenizers", "huggingface_hub", "datasets"}
        print(heavy & set(sys.modules))
    """
    assert python(script) == "set()"


def test_text_that_is_not_unicode_is_a_data_error() -> None:
    for tokenizer in (TOY["byte"], TOY["byte-level BPE"]):
        with pytest.raises(DataError, match=r"^U\+D800 at character 2 is half of a surrogate pair"):
            tokenizer.encode_batch(["fine", "ab\ud800"])


# ---------------------------------------------------------------- any other tokenizer


def test_file_folder_and_vocabulary_are_one_tokenizer(tmp_path: Path) -> None:
    backend = byte_level()
    folder = save(backend, tmp_path / "fast")
    vocabulary = save_vocabulary(backend, tmp_path / "vocabulary")
    assert sorted(path.name for path in vocabulary.iterdir()) == ["merges.txt", "vocab.json"]
    found = [
        load_tokenizer(str(place)) for place in (folder, folder / "tokenizer.json", vocabulary)
    ]
    for tokenizer in found:
        assert tokenizer.vocab_size == backend.get_vocab_size()
        assert tokenizer.eos_id == tokenizer.pad_id == backend.token_to_id("<|endoftext|>")
        assert tokenizer.encode(LETTERS) == backend.encode(LETTERS).ids
        assert tokenizer.decode(tokenizer.encode(LETTERS)) == LETTERS
    assert found[0].sha256 == found[1].sha256
    assert len(found[0].encode("the")) < 3, "merges are in use"


@pytest.mark.usefixtures("starts_processes")
def test_light_packages_suffice_for_files(tmp_path: Path) -> None:
    places = [
        str(save(byte_level(), tmp_path / "fast")),
        str(save_vocabulary(byte_level(), tmp_path / "vocabulary")),
    ]
    script = f"""if True:
        import sys
        from lm.tokenizer.tokenizer import from_definition, load_tokenizer
        for place in {places!r}:
            found = load_tokenizer(place)
            from_definition(found.definition, found.name, found.eos_id, found.pad_id).encode("a")
        print({{"torch", "transformers", "huggingface_hub"}} & set(sys.modules))
    """
    assert python(script) == "set()"


def test_a_checkpoint_keeps_definition_and_hash(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(save(byte_level(), tmp_path / "fast")))
    again = from_definition(
        tokenizer.definition, tokenizer.name, tokenizer.eos_id, tokenizer.pad_id
    )
    assert (again.definition, again.sha256, again.name) == (
        tokenizer.definition,
        tokenizer.sha256,
        tokenizer.name,
    )
    assert (again.vocab_size, again.eos_id, again.pad_id) == (
        tokenizer.vocab_size,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    assert again.encode(LETTERS) == tokenizer.encode(LETTERS)


@pytest.mark.parametrize("definition", ["", "no JSON", "[]", "{}", '{"model": {"type": "?"}}'])
def test_a_damaged_definition_is_a_value_error(definition: str) -> None:
    with pytest.raises(ValueError):
        from_definition(definition, "x", 0, 0)


@pytest.mark.parametrize(
    ("names", "config", "eos", "pad"),
    [
        (["</s>", "<|endoftext|>"], {}, "<|endoftext|>", "<|endoftext|>"),
        (["</s>", "<pad>"], {"model_max_length": 5}, "</s>", "<pad>"),
        (
            ["</s>", "<|endoftext|>", "<end>"],
            {"eos_token": "<end>", "pad_token": "</s>"},
            "<end>",
            "</s>",
        ),
        (
            ["</s>", "<end>"],
            {"eos_token": {"content": "<end>", "lstrip": False}, "pad_token": None},
            "<end>",
            "<end>",
        ),
    ],
)
def test_choice_of_eos_and_pad(
    tmp_path: Path, names: list[str], config: dict[str, Any], eos: str, pad: str
) -> None:
    backend = byte_level([], eos=None)
    backend.add_special_tokens(names)
    folder = save(backend, tmp_path, **config)
    for place in (folder, folder / "tokenizer.json"):
        tokenizer = load_tokenizer(str(place))
        assert (tokenizer.eos_id, tokenizer.pad_id) == (
            backend.token_to_id(eos),
            backend.token_to_id(pad),
        )


def test_older_settings_name_the_eos_too(tmp_path: Path) -> None:
    backend = byte_level([])
    backend.add_special_tokens(["<end>"])
    save(backend, tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<end>"}')
    assert load_tokenizer(str(tmp_path)).eos_id == backend.token_to_id("<end>")


def refusal(name: Path | str) -> str:
    """Return the message with which `name` is refused; it is one line."""
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(name))
    message = str(caught.value)
    assert message.startswith(f"tokenizer {name}: ")
    assert "\n" not in message
    return message


def test_refusals_are_one_line_that_names_the_place(tmp_path: Path) -> None:
    assert "no end-of-text token" in (
        message := refusal(save(byte_level([], eos=None), tmp_path / "no eos"))
    )
    assert "<|endoftext|>" in message and "[EOS]" in message and "tokenizer_config.json" in message
    assert "searched for <end>:" in refusal(
        save(byte_level([]), tmp_path / "other", eos_token="<end>")
    )
    (tmp_path / "empty").mkdir()
    assert "neither tokenizer.json nor vocab.json with merges.txt" in refusal(tmp_path / "empty")
    for missing in (tmp_path / "absent", "./absent", "absent/tokenizer.json", "a/b/c", "two words"):
        assert "no such file or folder" in refusal(missing)
    for broken in (b"{}", b'{"model": 1}', b"[" * 10, b""):
        (tmp_path / "tokenizer.json").write_bytes(broken)
        assert "cannot be read: not a tokenizer.json of" in refusal(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    assert "cannot be read: 'utf-8' codec" in refusal(tmp_path / "tokenizer.json")
    folder = save(byte_level(), tmp_path / "settings")
    (folder / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json: not a JSON object" in refusal(folder)


def test_a_vocabulary_that_is_not_gpt2s_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert "254 of 256 bytes are missing" in refusal(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nx y\n")
    assert "no byte-pair vocabulary" in refusal(tmp_path)


# ---------------------------------------------------------------- text is text


@pytest.mark.parametrize("name", ["byte-level BPE", "sentencepiece"])
@pytest.mark.parametrize("text", ["{}", "a{}b", "the {}{}\n", "\n{} a"])
def test_special_strings_in_text_are_plain_text(name: str, text: str) -> None:
    tokenizer = TOY[name]
    backend = Tokenizer.from_str(tokenizer.definition)
    text = text.replace("{}", str(backend.id_to_token(tokenizer.eos_id)))
    assert tokenizer.eos_id in backend.encode(text, add_special_tokens=False).ids, (
        "as the library is set by default"
    )
    backend.encode_special_tokens = True
    ids = tokenizer.encode(text)
    assert ids == backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == text
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == ids


def test_an_eos_that_is_not_marked_special_is_still_no_text() -> None:
    backend = byte_level([], eos=None)
    backend.add_tokens([AddedToken("<end>", special=False), AddedToken("  ", special=False)])
    tokenizer = ours(backend, eos="<end>")
    text = "a<end>b<end><end>  c"
    ids = tokenizer.encode(text)
    assert tokenizer.eos_id not in ids
    assert backend.token_to_id("  ") in ids, "other added tokens are in use"
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_id]) == text


def test_special_words_of_the_model_itself_are_no_text() -> None:
    tokenizer = ours(words(), eos="[EOS]")
    assert tokenizer.encode("a b zz a") == [3, 4, 0, 3], "an unknown word is one unknown token"
    for text in ("a [EOS] b", "[EOS] [EOS] [PAD]", " ".join(["[EOS]"] * 3000)):
        assert not {1, 2} & set(tokenizer.encode(text)), text
    unigram = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -5.0) for c in "▁ab<>/s")], unk_id=0)
    )
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.add_special_tokens(["<unk>", "</s>"])
    tokenizer = ours(unigram, eos="</s>")
    assert 1 not in tokenizer.encode("a</s>b </s>")
    assert tokenizer.encode("aZZZb").count(0) == 1


def test_nothing_is_added_cut_or_random(tmp_path: Path) -> None:
    backend = sentencepiece()
    plain = ours(backend, eos="</s>").encode("a he")
    assert plain == [backend.token_to_id("▁a"), backend.token_to_id("▁he")]
    backend.enable_truncation(1)
    backend.enable_padding(length=9)
    backend.model.dropout = 0.9
    tokenizer = load_tokenizer(str(save(backend, tmp_path)))
    assert all(tokenizer.encode("a he") == plain for _ in range(20))
    settings_ = json.loads(tokenizer.definition)
    assert settings_["truncation"] is settings_["padding"] is settings_["model"]["dropout"] is None


def test_a_post_processor_adds_nothing() -> None:
    backend = byte_level([])
    b = backend.token_to_id("b")
    backend.post_processor = processors.TemplateProcessing(
        single="b $A b", special_tokens=[("b", b)]
    )
    assert backend.encode("a").ids == [b, backend.token_to_id("a"), b]
    assert ours(backend).encode("a") == [backend.token_to_id("a")]


def test_vocab_size_counts_added_tokens_and_holes() -> None:
    definition = json.loads(byte_level([]).to_str())
    base = len(definition["model"]["vocab"])
    assert from_definition(json.dumps(definition), "x", base - 1, base - 1).vocab_size == base
    definition["model"]["vocab"]["zz"] = 70_000
    tokenizer = from_definition(json.dumps(definition), "x", base - 1, base - 1)
    assert tokenizer.vocab_size == 70_001
    assert tokenizer.encode_batch(["a"])[0].dtype == np.uint32
    definition["model"]["vocab"]["zz"] = 65_535
    assert from_definition(json.dumps(definition), "x", 0, 0).dtype == np.uint16
    backend = byte_level([])
    backend.add_tokens(["<extra>"])
    assert ours(backend).vocab_size == base + 1


# ---------------------------------------------------------------- the same or not


def test_resolve_and_require_same(tmp_path: Path) -> None:
    stored = load_tokenizer(str(save(byte_level(), tmp_path / "stored")))
    assert resolve("auto", stored) is stored
    assert resolve(str(tmp_path / "stored"), stored) is stored
    other = save(crossing(), tmp_path / "other")
    for option in (str(other), "byte"):
        with pytest.raises(ConfigError) as caught:
            resolve(option, stored)
        given_ = load_tokenizer(option)
        for tokenizer in (given_, stored):
            assert (
                f"{tokenizer.name} ({tokenizer.vocab_size:,} ids, {tokenizer.sha256[:12]})"
                in str(caught.value)
            )
    with pytest.raises(ConfigError):
        require_same(stored, ByteTokenizer())


def test_same_tokenizer_in_an_older_librarys_words() -> None:
    today = json.loads(byte_level().to_str())
    assert isinstance(today["model"]["merges"][0], list)
    older = json.loads(json.dumps(today))
    older["model"]["merges"] = [" ".join(pair) for pair in today["model"]["merges"]]
    del older["model"]["ignore_merges"]
    given_, stored = (
        from_definition(json.dumps(definition), "x", 0, 0) for definition in (today, older)
    )
    assert given_.sha256 != stored.sha256
    require_same(given_, stored)
    older["model"]["merges"].pop()
    with pytest.raises(ConfigError):
        require_same(given_, from_definition(json.dumps(older), "x", 0, 0))


# ---------------------------------------------------------------- streaming


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("name", TOY)
@settings(max_examples=150)
@given(
    text=st.text()
    | st.text("éa 東😀\ufffd")
    | st.lists(st.sampled_from(["the", " he", "  ", "a", "\n", "é", "😀", "lo"])).map("".join)
)
@example(text="é" * 100)
@example(text="\ufffd" * 100 + "b")
@example(text="\ufffd" * 5 + "b")
@example(text="   the  he a")
@example(text="😀" * 30 + "東京 \ufffd é")
def test_stream_is_the_text_and_never_half_a_character(name: str, text: str) -> None:
    # With byte fallback, a row of undecodable bytes looks like a row of genuine U+FFFD.
    assume(name != "sentencepiece" or "\ufffd" * 6 not in text)
    tokenizer = TOY[name]
    stream, ids = TextStream(tokenizer), tokenizer.encode(text)
    pieces = [*map(stream.push, ids), stream.flush()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")
    assert stream.flush() == ""


@pytest.mark.usefixtures("takes_seconds")
@settings(max_examples=300)
@given(
    st.lists(st.integers(0, 299), max_size=80)
    | st.lists(st.sampled_from([0xF0, 0x9F, 0x98, 0x80, 0xFF, 97, 0xE2, 256]), max_size=80)
)
@example([0x80] * 60 + [97])
@example([0xF0, 0x9F] * 30)
def test_stream_of_any_bytes_is_their_text(ids: list[int]) -> None:
    stream = TextStream(TOY["byte"])
    assert "".join(map(stream.push, ids)) + stream.flush() == TOY["byte"].decode(ids)


def test_stream_of_any_ids_is_their_text() -> None:
    generator = random.Random(0)
    tokenizer = TOY["byte-level BPE"]
    for _ in range(200):
        ids = generator.choices(range(tokenizer.vocab_size + 9), k=60)
        stream = TextStream(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


def test_stream_emits_a_character_with_its_last_byte() -> None:
    stream = TextStream(TOY["byte"])
    assert [stream.push(byte) for byte in "aé😀".encode()] == ["a", "", "é", "", "", "", "😀"]
    assert stream.push(0xC3) == ""
    assert stream.push(258) == "", "EOS does not end the character"
    assert stream.push(0xA9) == "é"
    assert stream.push(0xE2) == ""
    assert stream.flush() == "\ufffd"


def test_stream_keeps_spaces_behind_special_tokens_and_a_prompt() -> None:
    tokenizer = TOY["sentencepiece"]
    a, he = tokenizer.encode("a he")
    for nothing in (tokenizer.eos_id, tokenizer.vocab_size + 1):
        stream = TextStream(tokenizer)
        assert [stream.push(i) for i in (a, nothing, he)] == ["a", "", " he"]
    stream = TextStream(tokenizer)
    assert [stream.push(i) for i in (a, *[tokenizer.eos_id] * 50, he)] == ["a", *[""] * 50, " he"]
    assert TextStream(tokenizer).push(he) == "he", (
        "as decode does, the first space of all is not shown"
    )
    assert TextStream(tokenizer, context=[a]).push(he) == " he", "behind a prompt it is"
    assert TextStream(tokenizer, context=[a, tokenizer.eos_id]).flush() == ""


@pytest.mark.parametrize("name", TOY)
@pytest.mark.parametrize("text", ["é" * 500, "\ufffd" * 500, "the a he 東京 😀 " * 50])
def test_stream_decodes_only_a_window(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = STREAMED[name]()
    ids, decode, longest = tokenizer.encode(text), tokenizer.decode, 0

    def measured(window: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(window))
        return decode(window)

    monkeypatch.setattr(tokenizer, "decode", measured)
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in [*ids, *[tokenizer.vocab_size + 5] * 100]]
    assert longest <= 3 * TextStream.LONGEST
    early = "".join(pieces[: len(ids) // 2])
    assert len(early) > len(text) // 3, "text comes as it is made, not at the end"


# ---------------------------------------------------------------- the hub


def python(script: str, **environment: str) -> str:
    """Return the output of a fresh interpreter."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOAD = """if True:
    import json, sys
    from lm.system.errors import ConfigError
    from lm.tokenizer.tokenizer import load_tokenizer
    def load(name):
        try:
            found = load_tokenizer(name)
            return [found.vocab_size, found.eos_id, found.encode("the a")]
        except ConfigError as error:
            return str(error)
    print(json.dumps([*map(load, {names!r}), "transformers" in sys.modules]))
"""


def summary(tokenizer: OurTokenizer) -> list[Any]:
    """Return what LOAD prints for a tokenizer."""
    return [tokenizer.vocab_size, tokenizer.eos_id, tokenizer.encode("the a")]


def load_in_process(names: list[str], **environment: str) -> list[Any]:
    return json.loads(python(LOAD.format(names=names), **environment))


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make repositories: tokenizers in three forms, one without a tokenizer, and a data set."""
    root = tmp_path_factory.mktemp("hub")
    backend = byte_level()
    backend.add_special_tokens(["<end>"])
    save(backend, root / "models/tiny/fast", eos_token="<end>")
    (root / "models/tiny/fast/config.json").write_text('{"model_type": "gpt2"}')
    (root / "models/tiny/fast/model.safetensors").write_bytes(b"weights")
    save(backend, root / "models/tiny/gated")
    save_vocabulary(byte_level(), root / "models/published")
    bert = root / "models/tiny/wordpiece"
    bert.mkdir()
    (bert / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a"])
    )
    (bert / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "do_lower_case": true, "eos_token": "[SEP]"}'
    )
    (root / "models/tiny/weights").mkdir()
    (root / "models/tiny/weights/config.json").write_text("{}")
    data = root / "datasets/tiny/stories"
    data.mkdir(parents=True)
    for split, count in (("train", 5), ("validation", 2)):
        table = pyarrow.table({"text": [f"{split} story {i}" for i in range(count)]})
        pyarrow.parquet.write_table(table, data / f"{split}-00000-of-00001.parquet")
    files = [f"  - split: {split}\n    path: {split}-*\n" for split in ("train", "validation")]
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n" + "".join(files) + "---\n"
    )
    return root


@pytest.mark.usefixtures("starts_processes")
def test_hub_ids(hub_folder: Path, tmp_path: Path) -> None:
    expected, gpt2 = (
        summary(load_tokenizer(str(hub_folder / "models" / name)))
        for name in ("tiny/fast", "published")
    )
    names = ["tiny/fast", "published", "tiny/none", "tiny/gated", "tiny/weights"]
    with Hub(hub_folder, gated=["tiny/gated"]) as hub:
        fast, published, none, gated, weights, transformers_used = load_in_process(
            names, **hub.environment(tmp_path)
        )
        asked = len(hub.requests)
        assert (fast, published) == (expected, gpt2)
        assert none.startswith(
            "tokenizer tiny/none: no such file or folder, and the Hugging Face hub has no such"
            " model"
        )
        assert "gated" in gated and "HF_TOKEN" in gated and "\n" not in gated
        assert "holds no tokenizer" in weights
        assert not transformers_used
        assert not [path for _, path in hub.requests if path.endswith(".safetensors")], (
            "weights are not fetched"
        )

        cached, offline, _ = load_in_process(
            ["tiny/fast", "tiny/fast"], **hub.environment(tmp_path)
        )
        assert cached == offline == expected
        assert len(hub.requests) == asked, "what is in the cache is not asked for again"

    offline = {**client_environment("https://huggingface.co", tmp_path), "HF_HUB_OFFLINE": "1"}
    fast, published, absent, _ = load_in_process(["tiny/fast", "published", "gpt2"], **offline)
    assert (fast, published) == (expected, gpt2)
    assert (
        absent.startswith("tokenizer gpt2: ")
        and "HF_HUB_OFFLINE" in absent
        and "give a folder or a tokenizer.json" in absent
    )
    assert "\n" not in absent


@pytest.mark.usefixtures("starts_processes")
def test_a_cache_without_the_settings_is_completed(hub_folder: Path, tmp_path: Path) -> None:
    first = (
        "from huggingface_hub import hf_hub_download; hf_hub_download('tiny/fast',"
        " 'tokenizer.json')"
    )
    with Hub(hub_folder) as hub:
        python(first, **hub.environment(tmp_path))
        found, _ = load_in_process(["tiny/fast"], **hub.environment(tmp_path))
    assert found == summary(load_tokenizer(str(hub_folder / "models/tiny/fast"))), (
        "its EOS is named in tokenizer_config.json alone"
    )


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("kind", ["refuses", "never answers"])
def test_a_hub_that_cannot_be_reached(kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if kind == "refuses":
            server.close()
        script = LOAD.replace(
            "def load(", "import lm.tokenizer.files as files; files.TIMEOUT = 0.2\n    def load("
        ).format(names=["gpt2"])
        printed = python(script, **client_environment(f"http://127.0.0.1:{port}", tmp_path))
    message, _ = json.loads(printed)
    assert (
        message.startswith("tokenizer gpt2: ")
        and "cannot be reached: give a folder or a tokenizer.json" in message
    )
    assert "\n" not in message


def test_transformers_converts_what_has_no_fast_form(hub_folder: Path, tmp_path: Path) -> None:
    found = load_tokenizer(str(hub_folder / "models/tiny/wordpiece"))
    assert (found.vocab_size, found.eos_id, found.pad_id) == (7, 3, 0)
    assert found.encode("the a") == [5, 6], "no [CLS] before and no [SEP] behind"
    (tmp_path / "vocab.txt").write_bytes(b"\xff")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert "cannot be turned into a fast tokenizer.json" in refusal(tmp_path)


@pytest.mark.usefixtures("starts_processes")
def test_the_stand_in_serves_the_real_clients(hub_folder: Path, tmp_path: Path) -> None:
    script = """if True:
        from datasets import load_dataset
        from transformers import AutoTokenizer
        ids = AutoTokenizer.from_pretrained("tiny/fast")("the a").input_ids
        rows = load_dataset("tiny/stories", split="validation")
        streamed = next(iter(load_dataset("tiny/stories", split="train", streaming=True)))
        print(len(ids), rows["text"][1], streamed["text"], sep="|")
    """
    with Hub(hub_folder) as hub:
        printed = python(script, **hub.environment(tmp_path))
        local = load_tokenizer(str(hub_folder / "models/tiny/fast"))
        assert (
            printed.splitlines()[-1]
            == f"{len(local.encode('the a'))}|validation story 1|train story 0"
        )
        asked = len(hub.requests)
        found, _ = load_in_process(["tiny/fast"], **hub.environment(tmp_path))
        assert found == summary(local)
        assert len(hub.requests) == asked, "what transformers has cached is in the cache for us too"
