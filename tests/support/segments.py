"""Record batches as bytes, and the files in which Apache Kafka stores them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import calc_crc32c, encode_varint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
# The layout of a record batch, from Kafka's documentation, "Implementation: Message Format".
BASE_OFFSET_AT, LENGTH_AT, MAGIC_AT, CRC_AT, ATTRIBUTES_AT = 0, 8, 16, 17, 21
LAST_OFFSET_DELTA_AT, COUNT_AT, RECORDS_AT = 23, 57, 61
# The bytes of a batch that its length does not count: the base offset, and the length itself.
_NOT_IN_LENGTH = 12
# The header of snappy-java's framing.
XERIAL = b"\x82SNAPPY\0" + b"\0\0\0\1" * 2


def batch_of(
    *values: bytes,
    offset: int = 0,
    codec: str = "none",
    key: bytes = b"key",
    headers: Sequence[tuple[str, bytes | None]] = (),
) -> bytes:
    """Return a batch with a record for each value."""
    builder = MemoryRecordsBuilder(
        magic=2, compression_type=CODECS[codec], batch_size=1 << 28, offset=0
    )
    for value in values:
        builder.append(timestamp=1_000, key=key, value=value, headers=list(headers))
    builder.close()
    return put(bytes(builder.buffer()), BASE_OFFSET_AT, ">q", offset)


def batch_with(content: bytes, codec: str, count: int = 1) -> bytes:
    """Return a batch whose header says `codec` and `count` records.

    `content` follows the header unchanged. It must be compressed already, and may be invalid.
    """
    header = batch_of(*[b""] * count)[:RECORDS_AT]
    batch = put(header + content, LENGTH_AT, ">i", len(header) + len(content) - _NOT_IN_LENGTH)
    return with_checksum(put(batch, ATTRIBUTES_AT, ">h", CODECS[codec]))


def record_bytes(key: bytes, value: bytes, *, offset_delta: int) -> bytes:
    """Return the bytes of a record without headers, and without the length that precedes it."""
    record = bytearray()
    attributes = timestamp_delta = 0
    for number in (attributes, timestamp_delta, offset_delta, len(key)):
        encode_varint(number, record.append)
    record += key
    encode_varint(len(value), record.append)
    return bytes(record + value + b"\0")


def put(batch: bytes, at: int, form: str, value: int) -> bytes:
    """Return the batch with a number replaced."""
    changed = bytearray(batch)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


def with_checksum(batch: bytes) -> bytes:
    """Return the batch with the correct checksum for its content."""
    return put(batch, CRC_AT, ">I", calc_crc32c(batch[ATTRIBUTES_AT:]))


def flip(batch: bytes, at: int) -> bytes:
    """Return the batch with one byte changed."""
    return put(batch, at, ">B", batch[at] ^ 0xFF)


def batches_in(log: bytes) -> list[bytes]:
    """Return the batches of a segment, each with its batch header."""
    found, position = [], 0
    while position < len(log):
        (length,) = struct.unpack_from(">i", log, position + LENGTH_AT)
        if length == 0:
            break  # the rest of the file is empty space
        found.append(log[position : position + _NOT_IN_LENGTH + length])
        position += _NOT_IN_LENGTH + length
    return found


def rewrite(
    folder: Path, topic: str, partition: int, index: int, change: Callable[[bytes], bytes]
) -> bytes:
    """Change the batch of this index in the file of a partition.

    Returns:
        The changed batch.
    """
    (segment,) = folder.glob(f"data/{topic}-{partition}/*.log")
    found = batches_in(segment.read_bytes())
    changed = change(found[index])
    assert len(changed) == len(found[index])
    with segment.open("r+b") as file:
        file.seek(sum(len(batch) for batch in found[:index]))
        file.write(changed)
    return changed
