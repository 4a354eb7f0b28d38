"""Find a tokenizer by its name: a tokenizer.json, a folder, or a Hugging Face hub id.

The result is the text of a fast `tokenizer.json` with the ids of its end-of-text and padding
tokens; every failure is one line. An existing tokenizer.json is read directly, because it decides
the ids. `transformers` only converts other forms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeGuard

from lm.system.disk import read_bytes, read_text
from lm.system.errors import ConfigError, first_line, printable
from lm.tokenizer import definition as definitions
from lm.tokenizer import sentencepiece
from lm.tokenizer.fast_bpe import byte_symbols

EOS_NAMES = (
    "<|endoftext|>",
    "<|eos|>",
    "</s>",
    "<eos>",
    "<|end_of_text|>",
    "[EOS]",
    "<|im_end|>",
    "[SEP]",
)
PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]")
FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "*.model",
)
# Files that hold a part of a tokenizer: what each is, and the file that it needs in its folder.
PARTS = (
    ("vocab.json", "the vocabulary of byte pairs", "merges.txt"),
    ("merges.txt", "the merges of byte pairs", "vocab.json"),
    ("vocab.txt", "a vocabulary of WordPiece, as BERT's", "tokenizer_config.json"),
    ("tokenizer_config.json", "settings of a tokenizer", "tokenizer.json"),
    ("special_tokens_map.json", "settings of a tokenizer", "tokenizer.json"),
    ("added_tokens.json", "settings of a tokenizer", "tokenizer.json"),
    ("config.json", "settings of a model", "tokenizer.json"),
    ("*.tiktoken", "a vocabulary of tiktoken", "tokenizer.json"),
    ("*.vocab", "the list of a SentencePiece model's pieces", "*.model"),
)
ADVICE = "give a folder or a tokenizer.json"
ANOTHER = "write another name, such as byte, which needs no file"
MOST_BYTES = 2**29  # of a file; the largest vocabularies in use need some 40 million
TIMEOUT = 10.0  # seconds until the hub must have answered


@dataclass(frozen=True)
class Definition:
    """A tokenizer.json as the installed `tokenizers` writes it, and the ids that a model needs."""

    definition: str
    eos_id: int
    pad_id: int


@dataclass(frozen=True)
class Source:
    """A tokenizer.json as it was read, its path, and the special tokens that settings next to it
    name.
    """

    definition: str
    path: Path
    eos_token: str | None = None
    pad_token: str | None = None


def find_tokenizer(name: str) -> Definition:
    """Read the tokenizer that `name` stands for: a file, a folder, or a hub id.

    Raises:
        ConfigError: it does not exist, cannot be read, or has no end-of-text token.
    """
    path = Path(name)
    try:
        source = (
            _from_folder(name, path)
            if path.is_dir()
            else _from_file(path)
            if path.exists()
            else _from_folder(name, _download(name))
        )
        backend = open_definition(source.definition)
    except (OSError, ValueError) as error:
        reason = f"{error.filename}: {error.strerror}" if _names_file(error) else first_line(error)
        if path.is_file() and (part := _part_of_a_tokenizer([path.name], path.parent)):
            raise ConfigError(f"tokenizer {name}: {part[0]}") from error
        raise ConfigError(f"tokenizer {name}: cannot be read: {reason}; {ANOTHER}") from error

    def first_id(*tokens: str | None) -> int | None:
        return next(
            (i for token in tokens if token and (i := backend.token_to_id(token)) is not None), None
        )

    eos_names = (source.eos_token,) if source.eos_token else EOS_NAMES
    eos_id = first_id(*eos_names)
    if eos_id is None:
        raise ConfigError(
            f"tokenizer {name}: no end-of-text token in its vocabulary, which was searched for"
            f" {printable(' '.join(eos_names))}: "
            f'name one in a tokenizer_config.json in {source.path.parent}, as {{"eos_token":'
            ' "..."}'
        )
    if eos_id == unknown_id(backend, json.loads(source.definition)["model"]):
        raise ConfigError(
            f"tokenizer {name}: its end-of-text token {backend.id_to_token(eos_id)!r} is its"
            " unknown token too, so an unknown word would end a document; name another one in a"
            f' tokenizer_config.json in {source.path.parent}, as {{"eos_token": "..."}}'
        )
    pad_id = first_id(source.pad_token, *PAD_NAMES)
    return Definition(backend.to_str(), eos_id, eos_id if pad_id is None else pad_id)


def open_definition(definition: str) -> Any:
    """Return the `tokenizers.Tokenizer` of a tokenizer.json, set to encode special tokens as text.

    Raises:
        ValueError: the library cannot read it.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    definitions.check(definition)
    try:
        backend = Tokenizer.from_str(definition)
    except BaseException as error:
        if definitions.is_of_another_program(error):
            raise
        raise ValueError(f"not a tokenizer.json of the tokenizers library: {error}") from error
    # A file may ask to truncate or pad what it encodes, or to skip merges at random. Text would be
    # lost, or encoded differently each time.
    backend.no_truncation()
    backend.no_padding()
    if isinstance(backend.model, BPE):
        backend.model.dropout = None
    backend.encode_special_tokens = True
    return backend


def unknown_id(backend: Any, model: dict[str, Any]) -> int | None:
    """Return the id of the token for unknown words; None if no text can become it.

    Args:
        backend: the `tokenizers.Tokenizer`.
        model: `model` of its tokenizer.json.
    """
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):  # Unigram has a number, the others have a word
        number = model.get("unk_id")
        return number if isinstance(number, int) else None
    number = backend.token_to_id(model.get("unk_token") or "")
    if number is None:
        return None
    has_all_bytes = vocab.keys() >= set(byte_symbols()) and "ByteLevel" in str(
        backend.pre_tokenizer
    )
    falls_back = model.get("byte_fallback") and vocab.keys() >= {
        f"<0x{byte:02X}>" for byte in range(256)
    }
    return None if has_all_bytes or falls_back else number


def _from_file(path: Path) -> Source:
    folder = path.parent
    if path.suffix == ".model":
        # Settings beside it may say more than the model, as in a folder.
        if beside := sorted(name for name in _files(folder) if not name.endswith(".model")):
            raise ConfigError(
                f"tokenizer {path}: {beside[0]} stands beside it; write the folder, {folder}, or"
                " move the model into one of its own"
            )
        sentencepiece.require(str(path), path)
        definition = sentencepiece.convert(path).to_str()
    else:
        definition = read_text(path, MOST_BYTES)
    return Source(
        definition, path, *(_named_token(folder, key) for key in ("eos_token", "pad_token"))
    )


def _part_of_a_tokenizer(names: Collection[str], folder: Path) -> tuple[str, bool] | None:
    """Return what a file is that holds a part of a tokenizer, with what to write, and whether the
    file that it needs is there.
    """
    for pattern, what, needed in PARTS:
        if name := next((name for name in names if fnmatch(name, pattern)), None):
            advice = f"write its folder, {folder}, with {needed} in it"
            return f"{name} is only {what}; {advice}", any(folder.glob(needed))
    return None


def _from_folder(name: str, folder: Path) -> Source:
    files = _files(folder)
    if "tokenizer.json" in files:
        return _from_file(folder / "tokenizer.json")
    for file in files:  # other libraries read them: none may be a pipe, or endless
        read_bytes(folder / file, MOST_BYTES)
    if not files:
        raise ConfigError(
            f"tokenizer {name}: {folder} holds no tokenizer: neither tokenizer.json nor vocab.json"
            f" with merges.txt; {ANOTHER}"
        )
    # GPT-2 was published in this form, which AutoTokenizer cannot read without a config.json.
    if files == {"vocab.json", "merges.txt"} and not (folder / "config.json").is_file():
        return Source(_gpt2(name, folder), folder / "vocab.json")
    if models := sorted(file for file in files if file.endswith(".model")):
        sentencepiece.require(name, folder / models[0])
        if files == set(models) != {models[0]}:
            raise ConfigError(
                f"tokenizer {name}: several models; write one of them: {folder / models[0]}"
            )
        # Settings beside it may say more than the model.
        if files == {models[0]} and not (folder / "config.json").is_file():
            backend = sentencepiece.convert(folder / models[0])
            return Source(backend.to_str(), folder / models[0])
    return _convert(name, folder)


def _files(folder: Path) -> set[str]:
    """Return the names of a tokenizer's files. SentencePiece's .vocab only lists its .model."""
    names = {path.name for pattern in FILES for path in folder.glob(pattern)}
    return {name for name in names if not name.endswith(".vocab")}


def _named_token(folder: Path, key: str) -> str | None:
    """Return the special token that transformers' settings in this folder name.

    The settings hold a string, or an object with `content`.

    Raises:
        OSError: the settings are no ordinary file.
        ValueError: they hold something else.
    """
    for file in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        try:
            values = json.loads(read_text(file))
        except FileNotFoundError:
            continue
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: not a JSON object: {error}") from error
        token = values.get(key) if isinstance(values, dict) else values
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(values, dict) and not token:
            continue
        if not isinstance(name, str) or not isinstance(values, dict) or not _is_text(name):
            raise ValueError(f"{file}: {key} is no text, and no object whose content is one")
        return name
    return None


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _names_file(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and bool(error.filename and error.strerror)


def _gpt2(name: str, folder: Path) -> str:
    """Convert vocab.json and merges.txt to a tokenizer.json with the settings of the hub's gpt2."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    try:
        model = models.BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            continuing_subword_prefix="",
            end_of_word_suffix="",
        )
    except Exception as error:  # the library raises no narrower class
        raise ConfigError(
            f"tokenizer {name}: {folder} holds no byte-pair vocabulary:"
            f" {first_line(error)}; {ANOTHER}"
        ) from error
    backend = Tokenizer(model)
    missing = [
        symbol
        for symbol in pre_tokenizers.ByteLevel.alphabet()
        if backend.token_to_id(symbol) is None
    ]
    if missing:
        raise ConfigError(
            f"tokenizer {name}: {folder / 'vocab.json'} is not byte-level as GPT-2's is:"
            f" {len(missing)} of 256 bytes are missing; {ANOTHER}"
        )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id("<|endoftext|>") is not None:
        backend.add_special_tokens([AddedToken("<|endoftext|>", normalized=True)])
    definition: str = backend.to_str()
    return definition


def _convert(name: str, folder: Path) -> Source:
    """Let transformers convert another form, such as a SentencePiece model.

    Code from the repository never runs.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder), use_fast=True, trust_remote_code=False, local_files_only=True
        )
        return Source(
            loaded.backend_tokenizer.to_str(),
            folder / "tokenizer.json",
            loaded.eos_token,
            loaded.pad_token,
        )
    except Exception as error:  # transformers raises errors of many classes
        part = _part_of_a_tokenizer(_files(folder), folder)
        if part is not None and not part[1]:
            raise ConfigError(f"tokenizer {name}: {part[0]}") from error
        raise ConfigError(
            f"tokenizer {name}: {folder} cannot be turned into a fast tokenizer.json:"
            f" {first_line(error)}; {ANOTHER}"
        ) from error


def _download(name: str) -> Path:
    """Return the folder of this repository in the hub's cache.

    If the cache lacks tokenizer files, they are downloaded.
    """
    if (
        name.startswith((".", "/", "~"))
        or name.endswith(".json")
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    ):
        advice = ANOTHER
        if name.endswith(".json"):
            advice = (
                f"python -m tools.train_tokenizer --config CONFIG --vocab-size N --out {name} makes"
                " one from the configuration's text"
            )
        raise ConfigError(f"tokenizer {name}: no such file or folder; {advice}")
    from huggingface_hub import HfApi, errors, snapshot_download

    wanted: dict[str, Any] = {"allow_patterns": [*FILES, "config.json"]}
    cached = None
    try:
        cached = Path(snapshot_download(name, local_files_only=True, **wanted))
        if {"tokenizer.json", "tokenizer_config.json"} <= _files(cached):
            return cached
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        pass
    try:
        # This request has a time limit. snapshot_download waits for ever behind a firewall that
        # drops packets.
        HfApi().model_info(name, timeout=TIMEOUT)
        return Path(snapshot_download(name, **wanted))
    except Exception as error:  # several libraries raise their own classes here
        if cached is not None and _files(cached):
            return cached
        raise ConfigError(
            f"tokenizer {name}: no such file or folder, and {_hub_refusal(error)}"
        ) from error


def _hub_refusal(error: Exception) -> str:
    """Return in one line why the hub returned nothing, and what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "on the Hugging Face hub it is gated: accept its terms there and log in (HF_TOKEN)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the Hugging Face hub has no such model (or it is private: HF_TOKEN)"
    if isinstance(error, errors.HFValidationError):
        return "it is no id of the Hugging Face hub"
    if constants.is_offline_mode():
        return (
            f"it is not in the local hub cache while HF_HUB_OFFLINE forbids to fetch it: {ADVICE},"
            " or unset HF_HUB_OFFLINE"
        )
    return (
        f"it is not in the local hub cache and the Hugging Face hub cannot be reached: {ADVICE}"
        f" ({first_line(error.__cause__ or error)})"
    )
