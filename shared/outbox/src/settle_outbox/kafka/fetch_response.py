"""Receive a fetch response that is too large for memory.

A broker always sends the first batch completely, however large it is (KIP-74). Some brokers also
send more than requested. So a large response is parsed while it arrives. A batch that is too large
is replaced by its header, size and SHA-256. Batches beyond the limit are dropped, and the next
fetch requests them again.
"""

from __future__ import annotations

import hashlib
import io
import struct
from typing import TYPE_CHECKING

from kafka.errors import InvalidReceiveError

from settle_outbox.kafka.record_stream import RECORD_MAX_BYTES, TooLarge
from settle_outbox.kafka.varint import (
    VARINT_MAX_BYTES,
    VARINT_MORE,
    VarintError,
    read_varint,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    # Each generator yields the number of bytes that it needs next, and receives them by `send`.
    _Reading = Generator[int, bytes, None]
    _Counting = Generator[int, bytes, int]
    _Keeping = Generator[int, bytes, bytes]

# The fetch request's key in Kafka's protocol, and the only version of it that is supported here.
FETCH_API_KEY = 1
FETCH_VERSION = 12

# The requested size of a fetch. In a response that is too large, a batch over this size is
# replaced.
FETCH_MAX_BYTES = 4 * RECORD_MAX_BYTES
# The header of a batch, which has its offsets. The replacement of a batch keeps it.
_HEADER_BYTES = 61
# The start of every batch: its offset and its length.
_BATCH_START = struct.Struct(">qi")
# The replacement of a batch: a marker in place of the offset, a length, the size and the digest.
_REPLACED = struct.Struct(">qiq32s")
# The marker. The offset of a real batch is never negative.
_NO_OFFSET = -(2**62)
_PIECE_BYTES = 64 * 1024
# Maximum size of a response without its batches. Real responses are much smaller.
_REST_MAX_BYTES = 1024 * 1024


def replaced_batch(batch: bytes | memoryview) -> tuple[bytes, TooLarge] | None:
    """Return the header and the measure (size, digest) of a replaced batch, or None for others."""
    if len(batch) != _REPLACED.size + _HEADER_BYTES:
        return None
    mark, _, size, digest = _REPLACED.unpack_from(batch)
    if mark != _NO_OFFSET:
        return None
    return bytes(batch[_REPLACED.size :]), TooLarge.measured(size, digest.hex())


class LargeFetchResponse:
    """Receives the bytes of a response, and returns the response with fewer or smaller batches.

    It replaces kafka-python's `KafkaBytes`.

    Args:
        size: of the whole response, in bytes.
        batches_max_bytes: maximum size of all batches that are kept. A larger batch is replaced.
    """

    def __init__(self, size: int, batches_max_bytes: int) -> None:
        self._size = size
        self._batches_max_bytes = batches_max_bytes
        self._batches_bytes = 0
        self._received = 0
        self._waiting = bytearray()
        self._response = bytearray()
        self._position = 0
        self._reading = self._read()
        self._wanted = next(self._reading)

    def __len__(self) -> int:
        return self._size

    def tell(self) -> int:
        """Return the number of received bytes."""
        return self._received

    def write(self, data: bytes) -> None:
        """Receive the next bytes.

        Raises:
            InvalidReceiveError: the received bytes are not a response to a fetch.
        """
        self._received += len(data)
        self._waiting += data
        position, is_parsed = 0, False
        try:
            while self._wanted <= len(self._waiting) - position:
                begin, position = position, position + self._wanted
                self._wanted = self._reading.send(bytes(self._waiting[begin:position]))
        except StopIteration:
            is_parsed = True
        del self._waiting[:position]
        is_received = self._received == self._size
        if is_parsed != is_received or (is_parsed and self._waiting):
            raise InvalidReceiveError(
                f"the fields of a response do not fill its {self._size} bytes"
            )

    def seek(self, position: int) -> None:
        """Set the position of `read`."""
        self._position = position

    def read(self, count: int | None = None) -> bytes:
        """Return bytes of the shortened response."""
        end = len(self._response) if count is None else self._position + count
        data = bytes(self._response[self._position : end])
        self._position += len(data)
        return data

    def _read(self) -> _Reading:
        """Parse a FetchResponse of version 12, after a response header of version 1."""
        yield from self._copy(4)  # correlation id
        yield from self._copy_tags()
        yield from self._copy(4 + 2 + 4)  # throttle time, error, session
        for _ in range((yield from self._copy_count())):
            yield from self._copy((yield from self._copy_count()))  # topic
            for _ in range((yield from self._copy_count())):
                yield from self._copy_partition()
            yield from self._copy_tags()
        yield from self._copy_tags()

    def _copy_partition(self) -> _Reading:
        yield from self._copy(4 + 2 + 8 + 8 + 8)  # number, error, and three offsets
        for _ in range((yield from self._copy_count())):  # aborted transactions
            yield from self._copy(8 + 8)
            yield from self._copy_tags()
        yield from self._copy(4)  # preferred replica
        at = len(self._response)
        size = yield from self._copy_count()
        if size:
            del self._response[at:]
            kept = yield from self._keep_batches(size)
            self._response += _encode_varint(len(kept) + 1) + kept
        yield from self._copy_tags()

    def _keep_batches(self, size: int) -> _Keeping:
        """Return the first batches of a partition, within the limit."""
        kept = bytearray()
        left = size
        while left >= _BATCH_START.size:
            start = yield _BATCH_START.size
            left -= len(start)
            _, length = _BATCH_START.unpack(start)
            if not 0 <= length <= left:
                break  # a part of a batch, at the end
            if self._batches_bytes + len(start) + length <= self._batches_max_bytes:
                kept += start + (yield length)
                left -= length
                self._batches_bytes += len(start) + length
                continue
            if len(start) + length > self._batches_max_bytes and not kept:
                kept += yield from self._replace(start, length)
                left -= length
            break
        yield from self._skip(left)
        return bytes(kept)

    def _replace(self, start: bytes, length: int) -> _Keeping:
        """Measure a batch, and return its replacement."""
        size = len(start) + length
        header = start + (yield _HEADER_BYTES - len(start))
        digest = hashlib.sha256(header)
        left = size - len(header)
        while left:
            piece = yield min(left, _PIECE_BYTES)
            digest.update(piece)
            left -= len(piece)
        length = _REPLACED.size + len(header) - _BATCH_START.size
        return _REPLACED.pack(_NO_OFFSET, length, size, digest.digest()) + header

    def _skip(self, count: int) -> _Reading:
        while count:
            count -= len((yield min(count, _PIECE_BYTES)))

    def _copy(self, count: int) -> _Reading:
        """Copy bytes to the shortened response.

        Raises:
            InvalidReceiveError: the shortened response would exceed its limit.
        """
        if len(self._response) + count > self._batches_max_bytes + _REST_MAX_BYTES:
            raise InvalidReceiveError(f"{self._size} bytes are not a response to a fetch")
        if count:
            self._response += yield count

    def _copy_number(self) -> _Counting:
        """Copy an unsigned varint."""
        data = yield 1
        while data[-1] >= VARINT_MORE and len(data) < VARINT_MAX_BYTES:
            data += yield 1
        self._response += data
        try:
            return read_varint(io.BytesIO(data).read)
        except VarintError as error:
            raise InvalidReceiveError(f"in a response, {error}") from error

    def _copy_count(self) -> _Counting:
        """Copy the length of a compact field. It is stored plus one, and as 0 for null."""
        return max(0, (yield from self._copy_number()) - 1)

    def _copy_tags(self) -> _Reading:
        for _ in range((yield from self._copy_number())):
            yield from self._copy_number()
            yield from self._copy((yield from self._copy_number()))


def _encode_varint(number: int) -> bytes:
    data = bytearray()
    while number >= VARINT_MORE:
        data.append((number & 0x7F) | VARINT_MORE)
        number >>= 7
    data.append(number)
    return bytes(data)
