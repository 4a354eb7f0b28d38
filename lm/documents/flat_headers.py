"""What other programs write into and beside their .bin files.

Flat ids have no header, so nearly any bytes can be read as ids. What is recognised here is read as
its author meant it, or refused by its name. Nothing is unpickled.
"""

from __future__ import annotations

import codecs
import itertools
import json
import pickletools
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.documents.tfrecord import is_tfrecord
from lm.system.disk import read_bytes, read_start, read_text
from lm.system.errors import DataError, first_line

HEAD = 4096  # bytes that are looked at
WRITE_FLAT = "write its ids flat, without a header (numpy: array.astype('uint16').tofile)"
UNPACK = "unpack it first"
NAME_IDS = "name a file of token ids"
TEXT = "name it as a source of text, such as format: txt or jsonl"
# The first bytes of what is no flat file; each is long enough that ids do not look like it.
FOREIGN = [
    (rb"\x93NUMPY", "an array of numpy.save", WRITE_FLAT),
    (rb"PK\x03\x04", "a zip archive, such as numpy.savez and torch.save write", WRITE_FLAT),
    (rb"\x1f\x8b\x08[\x00-\x1f]", "packed by gzip", UNPACK),
    (rb"\x28\xb5\x2f\xfd", "packed by zstd", UNPACK),
    (rb"\xfd7zXZ\x00", "packed by xz", UNPACK),
    (rb"BZh[1-9]1AY&SY", "packed by bzip2", UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (rb"\x80[\x02-\x05]\x95.{5}\x00{3}", "a pickle", WRITE_FLAT),
    (rb"PAR1", "Parquet", "name it with format: parquet, if it holds text"),
    (rb"ARROW1\x00\x00", "an Arrow file", WRITE_FLAT),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", WRITE_FLAT),
    (rb"\x80[\x02\x03](\x8a\x0a|[\]})(]q\x00|c[a-z_]{3}|X.{3}\x00)", "a pickle", WRITE_FLAT),
    (rb"GGUF", "a model in GGUF", NAME_IDS),
    (rb"lmgg|fmgg|tjgg|algg", "a model in GGML", NAME_IDS),
    (rb"\x0a.\x0a\x05<unk>", "a model of SentencePiece", NAME_IDS),
    (rb"Obj\x01", "an Avro file", WRITE_FLAT),
    (rb"ORC[\x00-\x1f]", "an ORC file", WRITE_FLAT),
    (rb"SQLite format 3\x00", "an SQLite database", WRITE_FLAT),
    (rb"\x89PNG\r\n\x1a\n", "a PNG image", NAME_IDS),
    (rb"RIFF.{4}WAVE", "a WAV recording", NAME_IDS),
    (rb"\x7fELF", "a program", NAME_IDS),
    (rb"\x04\x22\x4d\x18", "packed by lz4", UNPACK),
    (rb"[^\x00].{256}ustar[\x00 ]", "a tar archive", UNPACK),
    (rb"MMIDIDX\x00\x00|TNTIDX\x00\x00", "the index of a Megatron or fairseq dataset", WRITE_FLAT),
    (rb"LITPKDS", "a packed dataset of lit-gpt", WRITE_FLAT),
    (rb".{6}\x00\x00\{\s*\"", "a safetensors file", NAME_IDS),
]
# llm.c and modded-nanogpt: 256 numbers of four bytes, then ids: magic -> (version, type of the ids)
LLM_C = {20240520: (1, "uint16"), 20240801: (7, "uint32")}
LLM_C_BYTES = 1024
MOST_OPCODES = 100_000  # of a pickle; nanoGPT's vocab_size is among the first ten


class Header(NamedTuple):
    """What stands before the ids: so many bytes, which name the type of the ids."""

    size: int = 0
    dtype: str | None = None


def header_of(file: str) -> Header:
    """Return the header of a file that has one that is known.

    Raises:
        OSError: the file cannot be read.
    """
    magic, version, _ = struct.unpack("<3i", read_start(file, HEAD)[:12].ljust(12, b"\0"))
    known = LLM_C.get(magic)
    return Header(LLM_C_BYTES, known[1]) if known and known[0] == version else Header()


def require_flat(file: str, dtype: np.dtype[Any], chosen: bool) -> None:
    """Raise DataError if a file cannot be ids of this type after its header, if it has one.

    Args:
        file: the path.
        dtype: the type that the ids are read with.
        chosen: whether the configuration names the type.
    """
    head, size = read_start(file, HEAD), Path(file).stat().st_size
    for pattern, name, advice in FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            raise DataError(f"{file}: {name}; {advice}")
    if is_tfrecord(head):
        raise DataError(f"{file}: a TFRecord file; {WRITE_FLAT}")
    if len(head) >= 16 and _is_text(head):
        raise DataError(f"{file}: text, not token ids; {TEXT}")
    header = header_of(file)
    if header.size == 0:
        _require_no_other_llm_c(file, head)
    if (size - header.size) % dtype.itemsize:
        raise DataError(
            f"{file}: {size:,} bytes are not a whole number of {dtype.name} ids; fetch the file"
            " again, or name its type in dtype"
        )
    if header.size:
        _require_llm_c(file, head, size, dtype)
    wide = np.frombuffer(head[: len(head) // 8 * 8], np.uint16)
    if len(wide) >= 16 and not header.size and not chosen and not wide[1::2].any():
        if not wide[2::4].any():
            raise DataError(
                f"{file}: three of four ids are 0, as it is where ids of eight bytes are read as"
                f" two; {WRITE_FLAT}"
            )
        if dtype.itemsize == 2:
            raise DataError(
                f"{file}: every other id is 0, as it is where ids of four bytes are read as two;"
                " write dtype: uint32"
            )


def require_plain_neighbours(file: str, tokenizer_name: str, vocab_size: int) -> None:
    """Raise DataError if a file beside this one says that its ids mean something else."""
    path = Path(file)
    index = path.with_suffix(".idx")
    if index.is_file() and re.match(rb"MMIDIDX\x00|TNTIDX\x00", read_start(index, 16)):
        raise DataError(
            f"{file}: a dataset of Megatron or fairseq, whose documents {index.name} divides;"
            f" {WRITE_FLAT}, an end-of-text id after each document"
        )
    index = path.with_name("index.json")
    if index.is_file() and {"chunks", "shards"} & _keys_of(index):
        raise DataError(
            f"{file}: a part of a dataset of litdata or streaming, says {index.name} next to it;"
            f" {WRITE_FLAT}"
        )
    for index in (Path(f"{file}.metadata"), Path(f"{file}.index")):
        if path.suffix == ".ds" and index.is_file():
            raise DataError(
                f"{file}: a dataset of datatrove, whose documents {index.name} describes;"
                f" {WRITE_FLAT}, an end-of-text id after each document"
            )
    names = path.with_name("dict.txt")
    if names.is_file() and re.match(rb"\S+ \d+\r?\n", read_start(names, HEAD)):
        raise DataError(
            f"{file}: its ids are those of fairseq's dict.txt next to it, not of the tokenizer"
            f" {tokenizer_name}; name the text itself, or remove dict.txt if it belongs to other"
            " ids"
        )
    meta = path.with_name("meta.pkl")
    if meta.is_file():
        stored = _vocab_size(meta)
        if stored != vocab_size:
            size = "another vocabulary" if stored is None else f"a vocabulary of {stored:,}"
            raise DataError(
                f"{file}: its ids are of {size}, says meta.pkl next to it (nanoGPT's numbers for"
                f" characters), and the tokenizer {tokenizer_name} has {vocab_size:,}; name the"
                " text itself with format: txt, or remove meta.pkl if it belongs to other ids"
            )


def _is_text(head: bytes) -> bool:
    """Return whether bytes are UTF-8 without control characters; the last one may be cut."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return re.search(r"[^\t\n\f\r\x20-\x7e\xa0-\U0010ffff]", text) is None


def _require_no_other_llm_c(file: str, head: bytes) -> None:
    """Raise DataError if a file begins with a header of llm.c's kind that is not known here."""
    magic, version = struct.unpack("<2i", head[:8].ljust(8, b"\0"))
    # llm.c's numbers are dates. As ids they would be rare, before a small version even more so.
    dated = re.fullmatch(r"2024(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", str(magic))
    if len(head) >= 12 and (magic in LLM_C or (dated and 0 < version < 100)):
        raise DataError(
            f"{file}: a header of llm.c with the number {magic} and version {version}, which are"
            f" not known together; {WRITE_FLAT}"
        )


def _require_llm_c(file: str, head: bytes, size: int, dtype: np.dtype[Any]) -> None:
    count = struct.unpack("<3i", head[:12])[2]
    if (size - LLM_C_BYTES) // dtype.itemsize != count:
        raise DataError(
            f"{file}: its header (llm.c) counts {count:,} ids, and {size - LLM_C_BYTES:,} bytes"
            " follow; fetch the file again"
        )


def _keys_of(file: Path) -> set[str]:
    try:
        values = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError):
        return set()
    return set(values) if isinstance(values, dict) else set()


def _vocab_size(file: Path) -> int | None:
    """Return `vocab_size` in a pickle, whose opcodes are read and never run; None if it has none.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        values = _values(read_bytes(file))
        return next((after for before, after in values if before == "vocab_size"), None)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({first_line(error)}), and it says what the ids next to it"
            " mean; make it readable or remove it"
        ) from error
    except Exception:  # pickletools raises many classes on damaged files
        return None


def _values(content: bytes) -> Iterator[tuple[object, int | None]]:
    """Yield each value of a pickle with the integer that follows it."""
    before: object = None
    for opcode, argument, _ in itertools.islice(pickletools.genops(content), MOST_OPCODES):
        if argument is None or opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "FRAME"):
            continue
        yield before, argument if type(argument) is int else None
        before = argument
