"""TFRecord files are named, as sources of text and of token ids."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from lm.documents.files import lines
from lm.documents.flat_headers import require_flat
from lm.documents.tfrecord import is_tfrecord, masked_crc32c
from lm.system.errors import DataError

# tf.train.Example(text="a"), as tf.io.TFRecordWriter frames it
EXAMPLE = b"\n\x0f\n\r\n\x04text\x12\x05\n\x03\n\x01a"


def framed(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(sums) + content + next(sums)


def test_the_sum_is_castagnolis() -> None:
    """RFC 3720 B.4: 32 bytes of zeros have the sum 8A9136AA, "123456789" has E3069283."""
    for content, crc in (bytes(32), 0x8A9136AA), (b"123456789", 0xE3069283):
        assert masked_crc32c(content) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tfrecord_file_is_no_text(tmp_path: Path, pack: type[bytes]) -> None:
    (tmp_path / "a").write_bytes(pack(framed(EXAMPLE) * 5))
    with pytest.raises(DataError, match="a TFRecord file, not text; write its records as JSON"):
        list(lines(str(tmp_path / "a"), None))


def test_a_tfrecord_file_is_no_token_ids(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(framed(EXAMPLE) * 6)
    with pytest.raises(DataError, match=r"a TFRecord file; write its ids flat"):
        require_flat(str(tmp_path / "a"), np.dtype("uint16"), chosen=True)


def test_another_bit_is_no_tfrecord_file() -> None:
    head = framed(EXAMPLE)
    assert is_tfrecord(head) and is_tfrecord(head[:12]) and not is_tfrecord(head[:11])
    for bit in range(12 * 8):
        changed = bytearray(head)
        changed[bit // 8] ^= 1 << bit % 8
        assert not is_tfrecord(bytes(changed))
