"""fast_bpe.py gives the ids of `tokenizers` or refuses; tokenizer.py uses it."""

from __future__ import annotations

import functools
import json
import pickle
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

from lm.system.errors import DataError
from lm.tokenizer.fast_bpe import FastBpe, NotTheSame, byte_symbols
from lm.tokenizer.tokenizer import ByteTokenizer, FastTokenizer

# The patterns are as in the published files.
PATTERNS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "Qwen 2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "GPT-4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
CUTS = ["ByteLevel", "none", *PATTERNS]
END = "<|endoftext|>"
CORPUS = (
    "The cat's sat on the mat; they'll've gone, I'D say.  In 1984, 12345 dogs ran!!!\n\n\tdef"
    " f(x):\n        return x + 1\r\nnaïve café — 東京の塔 — Москва, שלום, हिन्दी, 😀😀 👩‍👩‍👧"
    " e\u0301 ½ ٣٤ <|endoftext|> <|pad|>   \u00a0\u3000 end " * 4
)
ODD = [
    "",
    "'",
    "''s '' 'S 'ſ 'LL 'lL 'Ve 've'd'm't're 'r 'l",
    "I'm she'd we'll they've it's don't you're I'M SHE'D WE'LL THEY'VE IT'S DON'T YOU'RE ’s",
    (
        " a  b   c    \n d \n\n e\r\nf\r\rg \t"
        " h\u00a0i\u00a0\u00a0j\u3000k\u2028l\u0085m\x0bn\x0co\u200bp\u180eq\ufeffr "
    ),
    "   ",
    "\n",
    " \n \n  x",
    "0 1 12 123 1234 12345 123456 ١٢٣٤ ½⅓ Ⅷ ² 1a1 a1a 一二三",
    "e\u0301e\u0301\u0301 \u0301 a\u0301 नमस्ते กำ ไม้ ﷺ ﬁ ŉ ß ẞ İ ı ǅ ʰ",
    "😀 😀😀 👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 \u200d\ufe0f #️⃣",
    "!!! ... --- ///\n/// ?!\r\n ?! <|endoftext|><|pad|> <|endoftext|",
    f"{END}{END} a{END}b <think> \0<|in no text|>\0",
    "\0\x01\x7f\x80\xff\ufffd\ufffe\uffff\U0010ffff",
    "a" * 300 + " " * 300 + "b" + "\n" * 300 + "1" * 300 + "ab" * 200 + "é" * 200,
]


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior, invert),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def pre_tokenizer(cut: str) -> Any:
    if cut in PATTERNS:
        return split(PATTERNS[cut])
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut == "ByteLevel")


@functools.cache
def trained(cut: str, first: str = END) -> str:
    """Return the tokenizer.json of a byte-level BPE that `tokenizers` trains with this pattern."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer(cut)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=alphabet,
        special_tokens=[first, "<|pad|>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    return str(backend.to_str())


def with_merges(
    *merges: str, cut: str = "none", more: tuple[str, ...] = (), ignore_merges: bool = False
) -> str:
    """Return the tokenizer.json of a byte-level BPE with these merges, written as "a b".

    Then come `more` tokens that no merge makes.
    """
    pairs = [tuple(merge.split()) for merge in merges]
    vocab = {
        token: i
        for i, token in enumerate(dict.fromkeys([*byte_symbols(), *map("".join, pairs), *more]))
    }
    backend = Tokenizer(models.BPE(vocab, pairs, ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizer(cut)
    backend.add_special_tokens([END])
    return str(backend.to_str())


def fast_tokenizer(definition: str) -> FastTokenizer:
    end = Tokenizer.from_str(definition).token_to_id(END)
    return FastTokenizer(definition, "toy", end, end)


def both(definition: str) -> tuple[FastBpe, FastTokenizer]:
    """Return the fast encoder, and the tokenizer that uses only `tokenizers`."""
    slow = fast_tokenizer(definition)
    slow.TIKTOKEN_PAYS = 2**62  # type: ignore[misc]
    return FastBpe(slow.rewritten(), slow.reserved_ids), slow


def assert_same(definition: str, texts: list[str]) -> None:
    fast, slow = both(definition)
    for text, ids in zip(texts, slow.encode_batch(texts), strict=True):
        found = fast.encode(text)
        assert found is not None and found.tolist() == ids.tolist(), ascii(text[:100])


# ---------------------------------------------------------------- the same ids


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("cut", CUTS)
def test_odd_texts_have_the_same_ids(cut: str) -> None:
    assert_same(trained(cut), [*ODD, CORPUS, *(a + b for a in ODD for b in ODD)])


PIECES = [
    "'s",
    "'LL",
    "ſ",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "the",
    " cat",
    "É",
    "e\u0301",
    "東京",
    "12",
    "٣",
    "½",
    "!",
    "/",
    END,
    "😀",
]
CACHED = functools.cache(both)


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("cut", CUTS)
@settings(max_examples=150, deadline=None)
@given(
    text=st.text() | st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8")).map("".join)
)
@example(text=" \n")
def test_any_text_has_the_same_ids(cut: str, text: str) -> None:
    fast, slow = CACHED(trained(cut))
    found = fast.encode(text)
    assert found is not None and found.tolist() == slow.encode(text)


@pytest.mark.usefixtures("takes_seconds")
@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12),
    st.booleans(),
    st.lists(st.text("abc", min_size=2, max_size=5), max_size=3),
    st.lists(st.text("abc", max_size=14), min_size=40, max_size=40),
    st.booleans(),
)
def test_any_merges_are_the_same_or_refused(
    numbers: list[tuple[int, int]], ignore: bool, more: list[str], texts: list[str], backwards: bool
) -> None:
    """Merges that no training makes give the same ids or are refused.

    Two pairs make one token, pairs never meet, tokens are out of reach, ids are in another order.
    """
    tokens, merges = ["a", "b", "c"], []
    for a, b in numbers:
        pair = tokens[a % len(tokens)], tokens[b % len(tokens)]
        if pair not in merges:
            merges.append(pair)
            tokens.append("".join(pair))
    definition = with_merges(*map(" ".join, merges), more=tuple(more), ignore_merges=ignore)
    if backwards:
        vocab = json.loads(definition)["model"]["vocab"]
        definition = changed(
            definition,
            vocab={token: i if i < 256 else len(vocab) + 255 - i for token, i in vocab.items()},
        )
    try:
        fast, slow = both(definition)
    except NotTheSame:
        return
    words = [*texts, *tokens, *more]
    assert [ids.tolist() for ids in map(fast.encode, words) if ids is not None] == [
        ids.tolist() for ids in slow.encode_batch(words)
    ]


def all_characters() -> list[str]:
    """Return every code point except surrogates."""
    return [chr(i) for i in (*range(0xD800), *range(0xE000, 0x110000))]


@functools.cache
def bordering() -> tuple[str, ...]:
    """Return merges of a few characters with any byte that may begin or end another.

    The ids then show where a text was split.
    """
    symbol = byte_symbols()
    near = [symbol[byte] for byte in b"a 1!'\n"]
    firsts = [symbol[byte] for byte in (*range(128), *range(0xC2, 0xF5))]
    lasts = [symbol[byte] for byte in (*range(128), *range(0x80, 0xC0))]
    pairs = [
        *((a, b) for a in near for b in firsts),
        *((a, b) for a in lasts for b in near),
        *((a, b) for a in lasts for b in firsts),
    ]
    return tuple(dict.fromkeys(f"{a} {b}" for a, b in pairs))


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("cut", PATTERNS)
def test_every_character_is_cut_alike(cut: str) -> None:
    """Each character stands alone, repeated, between letters, digits and signs, after a space and
    so on.

    Ideographs, other letters without case, private use and unassigned code points are a million:
    they get a shorter context.
    """
    characters = all_characters()
    rare = [c for c in characters if unicodedata.category(c) in ("Lo", "Co", "Cn")]
    plain = sorted(set(characters) - set(rare))
    around = "a{0}a {0}{0}1{0}1!{0}!\n{0}\n {0} '{0} 'l{0} '{0}e'{0}"
    texts = characters[:0x3000]
    texts += [
        "".join(around.format(c) for c in plain[i : i + 64]) for i in range(0, len(plain), 64)
    ]
    texts += ["".join([f"a{c}1" for c in rare[i : i + 256]]) for i in range(0, len(rare), 256)]
    assert_same(with_merges(*bordering(), cut=cut), texts)


def test_tokens_out_of_reach_and_holes_in_the_ids_change_nothing() -> None:
    """Merges never make "abcd" or "bcd": tiktoken would look up one and merge the other."""
    texts = ["abcd", "abcdabcd", "bcd", "xbcdx", "cd", "abcbcdcd"]
    out_of_reach = with_merges("a b", "b c", "c d", "bc d", "a bcd", more=("dcba",))
    assert fast_tokenizer(out_of_reach).encode_batch(["abcd"])[0].tolist() == [256, 258], "ab cd"
    assert_same(out_of_reach, texts)
    definition = json.loads(with_merges("a b", "b c", "ab c"))
    definition["model"]["vocab"].update({"ab": 300, "bc": 5000, "abc": 70_000})
    assert_same(json.dumps(definition), texts)
    assert both(json.dumps(definition))[1].dtype == np.uint32


def test_ignore_merges_looks_whole_pieces_up() -> None:
    definition = with_merges("a b", more=("abcd",), cut="ByteLevel", ignore_merges=True)
    slow = fast_tokenizer(definition)
    assert slow.encode("abcd") == [257]
    assert len(slow.encode("abcd!abcde")) == 2 + 4
    assert_same(definition, ["abcd", "abcde", "abcd!abcde abcd", " abcd"])


def test_special_tokens_in_text_are_text() -> None:
    fast, slow = both(trained("ByteLevel"))
    texts = [END, f"a{END}b{END}", f" {END}\n", "<|pad|>"]
    for text in texts:
        ids = fast.encode(text)
        assert ids is not None and ids.tolist() == slow.encode(text)
        assert slow.eos_id not in ids


def test_added_tokens_that_text_may_have_are_left_to_tokenizers() -> None:
    backend = Tokenizer.from_str(trained("ByteLevel"))
    backend.add_tokens([AddedToken("<think>", lstrip=True), AddedToken("sat", single_word=True)])
    fast, slow = both(backend.to_str())
    assert fast.encode("a <think> b") is fast.encode("it sat") is fast.encode("satin") is None
    assert fast.encode("sa think") is not None
    quick = fast_tokenizer(backend.to_str())
    quick.TIKTOKEN_PAYS = 0  # type: ignore[misc]
    texts = ["one", "a <think> b", "", "it sat", "two", "satin", END]
    assert [ids.tolist() for ids in quick.encode_batch(texts)] == [
        ids.tolist() for ids in slow.encode_batch(texts)
    ]
    assert slow._backend.token_to_id("<think>") in quick.encode("a <think> b")


def test_what_a_normalizer_may_change_is_left_to_tokenizers() -> None:
    fast, slow = both(changed(trained("Qwen 2"), normalizer={"type": "NFC"}))
    assert slow.encode("e\u0301") == slow.encode("é")
    assert fast.encode("e\u0301") is fast.encode("é") is None
    text = "".join(map(chr, range(128))) + CORPUS.encode("ascii", "ignore").decode()
    ids = fast.encode(text)
    assert ids is not None and ids.tolist() == slow.encode(text)


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("run", [" ", "\n", "a", "1", "!", "é", "\u00a0", " \n", "'"])
def test_long_runs_are_the_same_or_left_to_tokenizers(cut: str, run: str) -> None:
    fast, slow = CACHED(with_merges("a a", "Ġ Ġ", "aa aa", "Ċ Ċ", cut=cut))
    for text in (run * 40_000, run * 40_000 + "x"):
        found = fast.encode(text)
        assert found is not None and found.tolist() == slow.encode(text)


@pytest.mark.usefixtures("takes_seconds")
def test_what_the_regular_expression_gives_up_on_is_left_to_tokenizers() -> None:
    text = " " * 1_100_000 + "x"
    fast, slow = both(with_merges("Ġ Ġ", cut="GPT-2"))
    assert fast.encode(text) is None
    quick = fast_tokenizer(slow.definition)
    assert np.array_equal(quick.encode_batch([text])[0], slow.encode_batch([text])[0])
    assert "_fast" in vars(quick)


# ---------------------------------------------------------------- refusals


def changed(definition: str = "", **change: Any) -> str:
    """Return a definition with other top-level settings, or other settings of its model."""
    content = json.loads(definition or with_merges("a b", "c d", cut="ByteLevel"))
    for key, value in change.items():
        (content if key in content else content["model"])[key] = value
    return json.dumps(content)


def changed_vocab(**ids: int) -> str:
    content = json.loads(with_merges("a b", "c d"))
    content["model"]["vocab"].update(ids)
    return json.dumps(content)


def cut_by(*steps: Any) -> str:
    backend = Tokenizer.from_str(with_merges("a b"))
    backend.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(list(steps))
    return str(backend.to_str())


def without_a_byte() -> str:
    content = json.loads(with_merges("a b"))
    del content["model"]["vocab"]["Ā"]
    return json.dumps(content)


GPT2_CUT = pre_tokenizers.Split(Regex(PATTERNS["GPT-2"]), "isolated")
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
REFUSED: dict[str, tuple[str, Callable[[], str]]] = {
    "words": ("its model is WordLevel", lambda: changed(type="WordLevel")),
    "dropout": ("its model has a dropout", lambda: changed(dropout=0.5)),
    "prefix": (
        "its model has a continuing_subword_prefix",
        lambda: changed(continuing_subword_prefix="##"),
    ),
    "suffix": ("its model has a end_of_word_suffix", lambda: changed(end_of_word_suffix="</w>")),
    "normalizer": (
        "its normalizer is Lowercase",
        lambda: changed(normalizer={"type": "Lowercase"}),
    ),
    "no pre_tokenizer": ("does not end in a plain ByteLevel", lambda: changed(pre_tokenizer=None)),
    "no steps": ("does not end in a plain ByteLevel", lambda: cut_by(pre_tokenizers.Sequence([]))),
    "a space in front": (
        "does not end in a plain ByteLevel",
        lambda: cut_by(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    ),
    "ByteLevel first": (
        "does not end in a plain ByteLevel",
        lambda: cut_by(BYTE_LEVEL, pre_tokenizers.Digits(True)),
    ),
    "digits": ("not known to be the same", lambda: cut_by(pre_tokenizers.Digits(True), BYTE_LEVEL)),
    "two cuts": ("not known to be the same", lambda: cut_by(GPT2_CUT, BYTE_LEVEL)),
    "another pattern": ("not known to be the same", lambda: cut_by(split(r"\w+|\W+"))),
    "removed": ("not known to be the same", lambda: cut_by(split(PATTERNS["GPT-2"], "removed"))),
    "inverted": ("not known to be the same", lambda: cut_by(split(PATTERNS["GPT-2"], invert=True))),
    "a byte is missing": ("does not have all 256 bytes", without_a_byte),
    "equal ids": ("have the same id", lambda: changed_vocab(cd=256)),
    "order": ("not in the order of its merges", lambda: changed_vocab(ab=257, cd=256)),
    "left in two": (
        "its merges leave in two",
        lambda: with_merges("a b", more=("abc",), ignore_merges=True),
    ),
    "a special id from merges": ("the id of a special token", lambda: changed_vocab(cd=999)),
    "a special id of a piece": (
        "the id of a special token",
        lambda: with_merges("a b", more=(END,), ignore_merges=True),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_might_differ_is_refused(name: str) -> None:
    reason, make = REFUSED[name]
    end = 257 if name == "a special id of a piece" else 999
    with pytest.raises(NotTheSame, match=reason):
        FastBpe(make(), frozenset({end}))


@pytest.mark.parametrize("name", ["order", "left in two", "a special id of a piece", "inverted"])
def test_what_is_refused_still_has_its_ids(name: str) -> None:
    """`tokenizers` encodes refused definitions, for any amount of text."""
    definition = REFUSED[name][1]()
    slow, quick = fast_tokenizer(definition), fast_tokenizer(definition)
    quick.TIKTOKEN_PAYS = 0  # type: ignore[misc]
    for text in (END, "abcd cdab abc"):
        assert quick.encode(text) == slow.encode(text)
    assert quick._fast is None


def test_tables_of_another_unicode_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test pretends that one library knows a letter that the other does not."""
    FastBpe(with_merges("a b"), frozenset())
    real = pre_tokenizers.Split

    class Younger:
        def __init__(self, *arguments: Any, **options: Any):
            self.real = real(*arguments, **options)

        def pre_tokenize_str(self, text: str) -> Any:
            return [*self.real.pre_tokenize_str(text), ("\U000323b0", (0, 1))]

    monkeypatch.setattr("tokenizers.pre_tokenizers.Split", Younger)
    with pytest.raises(NotTheSame, match="different versions of Unicode"):
        FastBpe(with_merges("a b"), frozenset())


# ---------------------------------------------------------------- in use


def test_little_text_does_not_wait_for_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    definition = trained("ByteLevel")
    tokenizer = fast_tokenizer(definition)
    asked: list[str] = []
    real = FastBpe.encode
    monkeypatch.setattr(
        FastBpe, "encode", lambda self, text: asked.append(text) or real(self, text)
    )
    tokenizer.TIKTOKEN_PAYS = 100  # type: ignore[misc]
    expected = both(definition)[1]
    for n, fast in ((60, False), (39, False), (1, True), (5, True)):
        asked.clear()
        text = CORPUS[:n]
        assert tokenizer.encode(text) == expected.encode(text)
        assert asked == ([text] if fast else [])
    assert isinstance(tokenizer._fast, FastBpe)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert "_fast" not in vars(again)
    assert again.encode(CORPUS) == tokenizer.encode(CORPUS)


@pytest.mark.parametrize("much", [0, 2**62])
def test_text_that_is_not_unicode_is_a_data_error_either_way(much: int) -> None:
    tokenizer = fast_tokenizer(trained("ByteLevel"))
    tokenizer.TIKTOKEN_PAYS = much  # type: ignore[misc]
    with pytest.raises(DataError, match=r"^U\+DC00 at character 3 is half of a surrogate pair"):
        tokenizer.encode_flat(["fine", "abc\udc00"])


@pytest.mark.usefixtures("takes_seconds")
@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(), max_size=8))
@example([])
@example(["", "", "é", ""])
def test_flat_is_the_batch_in_a_row(texts: list[str]) -> None:
    fast = CACHED(trained("ByteLevel"))[1]
    quick = fast_tokenizer(trained("ByteLevel"))
    quick.TIKTOKEN_PAYS = 0  # type: ignore[misc]
    bytes_of = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    by_library = [
        encoding.ids for encoding in fast._backend.encode_batch(texts, add_special_tokens=False)
    ]
    for tokenizer, expected in (
        (ByteTokenizer(), bytes_of),
        (fast, by_library),
        (quick, by_library),
    ):
        ids, lengths = tokenizer.encode_flat(texts)
        assert (ids.dtype, lengths.dtype) == (tokenizer.dtype, np.int64)
        assert lengths.tolist() == [len(part) for part in expected]
        assert ids.tolist() == [int(i) for part in expected for i in part]
        batch = tokenizer.encode_batch(texts)
        assert [part.tolist() for part in batch] == [[int(i) for i in part] for part in expected]
        assert all(part.dtype == tokenizer.dtype and part.flags.writeable for part in batch)
        stream, lengths = tokenizer.encode_stream(texts, [text.encode() for text in texts])
        assert stream.dtype == tokenizer.dtype
        assert lengths.tolist() == [len(part) for part in expected]
        assert stream.tolist() == [int(i) for part in expected for i in (tokenizer.eos_id, *part)]
