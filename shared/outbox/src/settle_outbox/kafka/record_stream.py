"""Read a batch of records as a stream. The expanded batch is never in memory as a whole.

A few kilobytes may expand to any size. So a batch is expanded in pieces, and one record is in
memory at a time. Of a record that is too large, only the size and the SHA-256 are kept.
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

# Maximum size of a record, and of a batch that is stored in a dead letter. It is the broker's
# default of message.max.bytes, and the most that a relay sends.
RECORD_MAX_BYTES = 1024 * 1024
# Maximum headers of a record. A header has two bytes or more, and takes about 100 bytes of memory.
HEADERS_MAX = 1_000
# Maximum size of an expanded batch. It limits the time that a batch takes, not the memory.
EXPANDED_MAX_BYTES = 64 * RECORD_MAX_BYTES
# Minimum size of an event with its headers. It gives the maximum number of records of a batch.
_EVENT_MIN_BYTES = 256
BATCH_RECORDS_MAX = EXPANDED_MAX_BYTES // _EVENT_MIN_BYTES
# What a Zstandard decoder should support; it holds a window in memory (RFC 8878, 3.1.1.1.2).
_ZSTD_WINDOW_MAX_BYTES = 8 * 1024 * 1024
# One Snappy block is expanded at once. Java's clients make blocks of 32 KiB, others one of a batch.
_SNAPPY_BLOCK_MAX_BYTES = 8 * 1024 * 1024
_PIECE_BYTES = 64 * 1024

# The framing of snappy-java ("xerial"): a header of 16 bytes, then each block after its length.
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES = 16
_BLOCK_LENGTH = struct.Struct(">i")


class TooLargeError(SettleError):
    """A batch is over a limit of this module. Fetching it again would not help."""


class TooLarge(bytes):
    """The size and digest of bytes that are too large to keep. As `bytes`, it is empty.

    kafka-python passes it on as the value of a record.

    Args:
        size: of the bytes.
        sha256: of the bytes, in hexadecimal.
    """

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes | memoryview) -> Self:
        """Measure bytes that are in memory."""
        return cls.measured(len(data), hashlib.sha256(data).hexdigest())

    @classmethod
    def measured(cls, size: int, sha256: str) -> Self:
        """Make it of a size and a digest that are known."""
        found = cls()
        found.size, found.sha256 = size, sha256
        return found

    def describe(self) -> str:
        """Return the size and the digest in words."""
        return f"{self.size} bytes with the SHA-256 {self.sha256}"


class RecordStream:
    """The content of a batch, expanded while it is read.

    Args:
        codec: by its name: ``none``, ``gzip``, ``snappy``, ``lz4`` or ``zstd``.
        data: as the batch holds it.
    """

    def __init__(self, codec: str, data: bytes | memoryview) -> None:
        # Its C code makes single bytes cheap to read.
        self._source = io.BufferedReader(
            cast("io.RawIOBase", _open(codec, data)), buffer_size=_PIECE_BYTES
        )

    def read_length(self) -> int:
        """Read the length of the next record, a zigzag varint.

        Raises:
            CorruptRecordError: there is none, or it is negative.
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
            CorruptRecordError: there are fewer.
        """
        data = self._source.read(count)
        if len(data) < count:
            raise CorruptRecordError("it ends within a record")
        return data

    def pieces(self, count: int) -> Iterator[bytes]:
        """Read bytes, a piece at a time.

        Raises:
            CorruptRecordError: there are fewer.
        """
        while count:
            piece = self.read(min(count, _PIECE_BYTES))
            count -= len(piece)
            yield piece

    def check(self, count: int) -> None:
        """Check that there are so many records, within the limits and with nothing after them.

        It reads the stream to its end. The fields of the records are not checked.

        Raises:
            TooLargeError: they are too many, or too large together.
            CorruptRecordError: they are not so many.
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
    """Return a file that gives the expanded bytes."""
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
    """Snappy's blocks, each expanded when it is needed."""

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
    """Expand a block, which begins with its expanded size as a varint."""
    try:
        size = read_varint(io.BytesIO(block).read)
    except ValueError as error:
        raise CorruptRecordError("a Snappy block has no size") from error
    if size > _SNAPPY_BLOCK_MAX_BYTES:
        raise TooLargeError(f"a Snappy block expands to {size} bytes")
    return bytes(codecs.snappy.decompress(block))
