"""A SentencePiece model (Llama 2, Mistral and T5 were published with one) as a tokenizer.json.

The library `sentencepiece` reads the model; everything that changes ids is taken from it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from lm.system.disk import read_start
from lm.system.errors import ConfigError

INSTALL = "pip install -e '.[sentencepiece]'"
SPACE = "\u2581"
UNIGRAM, BPE = 1, 2
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4


def require(name: str, model: Path) -> None:
    """Raise ConfigError unless the file can be a SentencePiece model, and the library is there."""
    if not read_start(model, 16).startswith(b"\n"):
        raise ConfigError(
            f"tokenizer {name}: {model} is no SentencePiece model (tiktoken's vocabularies, such as"
            " Llama 3's, have the same name); put the tokenizer.json beside it that was published"
            " with it"
        )
    wanted = ("sentencepiece", "google.protobuf")
    try:
        missing = [package for package in wanted if importlib.util.find_spec(package) is None]
    except ModuleNotFoundError:  # the package `google` itself is missing
        missing = [wanted[1]]
    if missing:
        raise ConfigError(
            f"tokenizer {name}: {model} is a SentencePiece model, and {missing[0]} is not"
            f" installed, which reads it; {INSTALL}"
        )


def convert(model: Path) -> Any:
    """Return the `tokenizers.Tokenizer` that gives the ids of a SentencePiece model.

    Raises:
        ValueError: the file is damaged, or of a kind that has no fast form.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from transformers.tokenization_utils_base import generate_merges

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model.read_bytes())
    except Exception as error:  # protobuf's own class, which mypy cannot know
        raise ValueError(f"{model}: not a SentencePiece model: {error}") from error
    pieces, trainer, rules = proto.pieces, proto.trainer_spec, proto.normalizer_spec
    unknown = next((i for i, piece in enumerate(pieces) if piece.type == UNKNOWN), None)
    if unknown is None:
        raise ValueError(f"{model}: no piece for unknown text")
    scores = [(piece.piece, piece.score) for piece in pieces]
    if trainer.model_type == UNIGRAM:
        kind: Any = models.Unigram(scores, unknown, trainer.byte_fallback)
    elif trainer.model_type == BPE:
        vocab = {piece: number for number, (piece, _) in enumerate(scores)}
        kind = models.BPE(
            vocab,
            generate_merges(vocab, dict(scores)),
            unk_token=pieces[unknown].piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    else:
        raise ValueError(f"{model}: a model of words or characters, which has no fast form")
    backend = Tokenizer(kind)
    special = {UNKNOWN, CONTROL}
    backend.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type in special)
            for piece in pieces
            if piece.type in special | {USER_DEFINED}
        ]
    )
    charsmap = rules.precompiled_charsmap
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    cleaning = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if rules.add_dummy_prefix:
        cleaning.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(cleaning)
    return backend
