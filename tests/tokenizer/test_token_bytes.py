"""The bytes of each token: python -m pytest tests/tokenizer/test_token_bytes.py."""

from __future__ import annotations

import json

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from lm.tokenizer.learn import learn
from lm.tokenizer.token_bytes import bytes_of_tokens
from lm.tokenizer.tokenizer import ByteTokenizer, FastTokenizer

TEXT = "Grüße an alle, die das lesen: \N{SNOWMAN} und 語!\n\tdef f(x):\n"


def test_each_byte_is_one() -> None:
    assert bytes_of_tokens(ByteTokenizer()).tolist() == [1] * 256 + [0] * 4


def test_ids_of_a_byte_level_vocabulary_sum_to_the_bytes_of_the_text() -> None:
    """This also holds for a part of the ids that begins inside a character."""
    definition, _ = learn([TEXT * 3], 300, [])
    added = json.loads(definition)["added_tokens"]
    [eos] = [token["id"] for token in added if token["content"] == "<|eos|>"]
    tokenizer = FastTokenizer(definition, "learnt", eos_id=eos, pad_id=eos)
    sizes, ids = bytes_of_tokens(tokenizer), tokenizer.encode(TEXT)
    assert 1 < len(ids) < len(TEXT.encode()) == sizes[ids].sum()
    assert sizes.max() > 3 and sizes[eos] == 0
    assert sizes[tokenizer.encode("語")].sum() == 3


def sentencepiece() -> FastTokenizer:
    """Return a vocabulary as SentencePiece writes it: a space before each text, and byte tokens."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=named, show_progress=False)
    backend.train_from_iterator([TEXT.replace("\N{SNOWMAN}", "") * 9], trainer)
    definition = json.loads(backend.to_str())
    definition["added_tokens"] = definition["added_tokens"][:3]  # bytes are ordinary tokens
    return FastTokenizer(json.dumps(definition), "pieces", eos_id=2, pad_id=2)


def test_a_text_of_pieces_has_the_space_that_they_put_before_it() -> None:
    tokenizer = sentencepiece()
    sizes, text = bytes_of_tokens(tokenizer), "Grüße an alle"
    assert sizes[tokenizer.encode(text)].sum() == 1 + len(text.encode())
    assert sizes[tokenizer.encode("\N{SNOWMAN}")].tolist() == [1, 1, 1, 1], "a space and 3 bytes"
    assert np.array_equal(sizes[:3], [0, 0, 0]), "no text becomes <unk>: bytes have tokens"


def test_the_unknown_token_stands_for_a_byte_at_least() -> None:
    backend = Backend(models.WordLevel({"<eos>": 0, "<unk>": 1, "word": 2}, unk_token="<unk>"))
    tokenizer = FastTokenizer(backend.to_str(), "words", eos_id=0, pad_id=0)
    assert bytes_of_tokens(tokenizer).tolist()[:2] == [0, 1]
