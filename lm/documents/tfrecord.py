"""TFRecord files are recognised by the check sum of their first record's length."""

from __future__ import annotations

import struct

CASTAGNOLI = 0x82F63B78  # the polynomial of CRC-32C, its bits reversed
MASK = 0xA282EAD8


def is_tfrecord(head: bytes) -> bool:
    """Return whether bytes begin with a length of 8 bytes and its masked CRC-32C.

    A text or token ids begin like this once in 2^32 files.
    """
    if len(head) < 12:
        return False
    (said,) = struct.unpack("<I", head[8:12])
    return masked_crc32c(head[:8]) == said


def masked_crc32c(content: bytes) -> int:
    """Return the CRC-32C of some bytes, rotated and shifted as TensorFlow stores it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (CASTAGNOLI if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF
