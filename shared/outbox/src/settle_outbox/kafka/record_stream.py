"""Decompress a batch as a stream, so that it is never completely in memory.

A few kilobytes may decompress to any size. So a batch is decompressed in pieces, and one record is
in memory at a time. Of a record that is too large, only the size and the SHA-256 are kept.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
from typing import TYPE_CHECKING, Self, cast

from kafka import codec as codecs
from kafka.errors import CorruptRecordError

from settle_outbox.errors import SettleError
from settle_outbox.kafka.varint import VarintError, read_varint

if TYPE_CHECKING:
    from collections.abc import Iterator

# Maximum size of a record, and of a batch that is stored in a dead letter. By default, a broker
# accepts about as much (message.max.bytes).
RECORD_MAX_BYTES = 1024 * 1024
# Maximum headers of a record. A header of two bytes takes about 100 bytes of memory.
HEADERS_MAX = 1_000
# Maximum size of a decompressed batch. It limits the time of a batch, not the memory.
EXPANDED_MAX_BYTES = 64 * RECORD_MAX_BYTES
# Minimum size of an event with its headers. It gives the maximum number of records of a batch.
_EVENT_MIN_BYTES = 256
BATCH_RECORDS_MAX = EXPANDED_MAX_BYTES // _EVENT_MIN_BYTES
# The window that a Zstandard decoder should support, and has in memory (RFC 8878, 3.1.1.1.2).
_ZSTD_WINDOW_MAX_BYTES = 8 * 1024 * 1024
# Maximum size of a decompressed Snappy block, which is in memory as a whole. Java's clients use
# blocks of 32 KiB. Other clients use one block for the whole batch.
_SNAPPY_BLOCK_MAX_BYTES = 8 * 1024 * 1024
_PIECE_BYTES = 64 * 1024

# The framing of snappy-java ("xerial"): a header of 16 bytes, then each block after its length.
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES = 16
_BLOCK_LENGTH = struct.Struct(">i")


class TooLargeError(SettleError):
    """A batch exceeds a limit of this module, so it is useless to fetch it again."""


class TooLarge(bytes):
    """The size and digest of data that is too large to keep.

    It is an empty `bytes`, so that kafka-python accepts it as the value of a record.

    Args:
        size: of the data, in bytes.
        sha256: of the data, in hexadecimal.
    """

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes | memoryview) -> Self:
        """Measure data that is in memory."""
        return cls.measured(len(data), hashlib.sha256(data).hexdigest())

    @classmethod
    def measured(cls, size: int, sha256: str) -> Self:
        """Return an instance with a known size and digest."""
        measure = cls()
        measure.size, measure.sha256 = size, sha256
        return measure

    def describe(self) -> str:
        """Return the size and the digest as a text."""
        return f"{self.size} bytes with the SHA-256 {self.sha256}"


class RecordStream:
    """The content of a batch, decompressed while it is read.

    Args:
        codec: ``none``, ``gzip``, ``snappy``, ``lz4`` or ``zstd``.
        data: the compressed content.
    """

    def __init__(self, codec: str, data: bytes | memoryview) -> None:
        # A BufferedReader makes it cheap to read single bytes.
        self._source = io.BufferedReader(
            cast("io.RawIOBase", _open(codec, data)), buffer_size=_PIECE_BYTES
        )

    def read_length(self) -> int:
        """Read the length of the next record, which is a zigzag varint.

        Raises:
            CorruptRecordError: it is missing, negative or too large.
        """
        try:
            value = read_varint(self.read)
        except VarintError as error:
            raise CorruptRecordError(f"the length of a record is wrong: {error}") from error
        if value & 1:
            raise CorruptRecordError("the length of a record is negative")
        return value >> 1

    def read(self, count: int) -> bytes:
        """Read bytes.

        Raises:
            CorruptRecordError: the stream has fewer.
        """
        data = self._source.read(count)
        if len(data) < count:
            raise CorruptRecordError("it ends within a record")
        return data

    def pieces(self, count: int) -> Iterator[bytes]:
        """Read bytes, one piece after the other.

        Raises:
            CorruptRecordError: the stream has fewer.
        """
        while count:
            piece = self.read(min(count, _PIECE_BYTES))
            count -= len(piece)
            yield piece

    def check(self, count: int) -> None:
        """Read the stream to its end, and check the number and the lengths of its records.

        Raises:
            TooLargeError: the records are too many, or too large together.
            CorruptRecordError: the stream does not have exactly `count` records.
        """
        if count > BATCH_RECORDS_MAX:
            raise TooLargeError(f"it has {count} records; the maximum is {BATCH_RECORDS_MAX}")
        expanded = 0
        for _ in range(count):
            length = self.read_length()
            expanded += length
            if expanded > EXPANDED_MAX_BYTES:
                raise TooLargeError(f"it expands to more than {EXPANDED_MAX_BYTES} bytes")
            for _ in self.pieces(length):
                pass
        if self._source.read(1):
            raise CorruptRecordError(f"more follows after its {count} records")


def _open(codec: str, data: bytes | memoryview) -> object:
    """Return a file object with the decompressed bytes."""
    if codec == "gzip":
        return gzip.GzipFile(fileobj=io.BytesIO(data))
    if codec == "lz4":
        return codecs.lz4.LZ4FrameFile(io.BytesIO(data))
    if codec == "zstd":
        decompressor = codecs.zstd.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX_BYTES)
        return decompressor.stream_reader(io.BytesIO(data), read_across_frames=True)
    if codec == "snappy":
        return _SnappyFile(bytes(data))
    return io.BytesIO(data)


class _SnappyFile(io.RawIOBase):
    """A file of Snappy blocks. Each is decompressed when it is read."""

    def __init__(self, data: bytes) -> None:
        self._blocks = _snappy_blocks(data)
        self._expanded = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # any buffer
        while not self._expanded:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._expanded = memoryview(_expand_snappy(block))
        count = min(len(buffer), len(self._expanded))
        buffer[:count], self._expanded = self._expanded[:count], self._expanded[count:]
        return count


def _snappy_blocks(data: bytes) -> Iterator[bytes]:
    if not data.startswith(_XERIAL):
        yield data
        return
    position = _XERIAL_HEADER_BYTES
    while position < len(data):
        (length,) = _BLOCK_LENGTH.unpack_from(data, position)
        position += _BLOCK_LENGTH.size
        if not 0 < length <= len(data) - position:
            raise CorruptRecordError("a Snappy block has a wrong length")
        yield data[position : position + length]
        position += length


def _expand_snappy(block: bytes) -> bytes:
    """Decompress a block, which starts with its decompressed size as a varint."""
    try:
        size = read_varint(io.BytesIO(block).read)
    except ValueError as error:
        raise CorruptRecordError("a Snappy block has no size") from error
    if size > _SNAPPY_BLOCK_MAX_BYTES:
        raise TooLargeError(f"a Snappy block expands to {size} bytes")
    return bytes(codecs.snappy.decompress(block))
