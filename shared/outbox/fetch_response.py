"""Receive the response to a fetch whose first batch is too large for memory.

A broker always sends the first batch completely, however large it is (KIP-74). Its limit of size
applies to later batches only. So such a response has one batch, and the other partitions are
empty. It is read as it arrives. The batch's header, size and SHA-256 are kept, and the rest of the
batch is thrown away.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, NamedTuple

from kafka.errors import InvalidReceiveError

from shared.outbox.record_stream import TooLarge

if TYPE_CHECKING:
    from collections.abc import Generator

    # Yields how many bytes it needs next, and is sent them.
    _Reading = Generator[int, bytes, None]
    _Counting = Generator[int, bytes, int]

# The request of such a response, and the only version of it that is read here.
FETCH_API_KEY = 1
FETCH_VERSION = 12

# Bytes that are kept of a replaced batch: its header, which has its offsets.
_HEADER_BYTES = 61
# The start of every batch: its offset and its length.
_BATCH_START = struct.Struct(">qi")
# What replaces a batch: a marker for its offset, a length, then the batch's size and digest.
_REPLACED = struct.Struct(">qiq32s")
# The marker. The offset of a real batch is never negative.
_NO_OFFSET = -(2**62)
# Maximum size of a response without its batch. Real responses are far smaller.
_REST_MAX_BYTES = 1024 * 1024
_VARINT_MORE, _VARINT_MAX_SHIFT = 0x80, 28


class ReplacedBatch(NamedTuple):
    """A batch that was not kept.

    Args:
        header: its first bytes.
        measure: its size and digest.
    """

    header: bytes
    measure: TooLarge


def replaced_batch(batch: bytes | memoryview) -> ReplacedBatch | None:
    """Return what was put in the place of a batch; None for a batch as a broker sends it."""
    if len(batch) != _REPLACED.size + _HEADER_BYTES:
        return None
    mark, _, size, digest = _REPLACED.unpack_from(batch)
    if mark != _NO_OFFSET:
        return None
    return ReplacedBatch(bytes(batch[_REPLACED.size :]), TooLarge.measured(size, digest.hex()))


class LargeFetchResponse:
    """Receives the bytes of a response, and gives the response with a large batch replaced.

    It stands in for kafka-python's `KafkaBytes`.

    Args:
        size: of the whole response, in bytes.
        batch_max_bytes: a batch over this size is replaced.
    """

    def __init__(self, size: int, batch_max_bytes: int) -> None:
        self._size = size
        self._batch_max_bytes = batch_max_bytes
        self._received = 0
        self._waiting = bytearray()
        self._response = bytearray()
        self._position = 0
        self._reading = self._read()
        self._wanted = next(self._reading)

    def __len__(self) -> int:
        return self._size

    def tell(self) -> int:
        """Return how many bytes were received."""
        return self._received

    def write(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            InvalidReceiveError: the response has another form.
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
        """Go to a position in the response that is given."""
        self._position = position

    def read(self, count: int | None = None) -> bytes:
        """Return bytes of the response that is given."""
        end = len(self._response) if count is None else self._position + count
        data = bytes(self._response[self._position : end])
        self._position += len(data)
        return data

    def _read(self) -> _Reading:
        """Read a FetchResponse of version 12, after a response header of version 1."""
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
        if size <= self._batch_max_bytes:
            yield from self._copy(size)
        else:
            del self._response[at:]
            yield from self._replace(size)
        yield from self._copy_tags()

    def _replace(self, size: int) -> _Reading:
        """Measure the records of a partition, which are one batch."""
        header = yield _HEADER_BYTES
        _, length = _BATCH_START.unpack_from(header)
        if _BATCH_START.size + length != size:
            raise InvalidReceiveError(f"{size} bytes of records are not one batch")
        digest = hashlib.sha256(header)
        left = size - len(header)
        while left:
            piece = yield min(left, 64 * 1024)
            digest.update(piece)
            left -= len(piece)
        length = _REPLACED.size + len(header) - _BATCH_START.size
        replacement = _REPLACED.pack(_NO_OFFSET, length, size, digest.digest()) + header
        self._response += _varint(len(replacement) + 1) + replacement

    def _copy(self, count: int) -> _Reading:
        """Copy bytes to the response that is given, up to its limit."""
        if len(self._response) + count > self._batch_max_bytes + _REST_MAX_BYTES:
            raise InvalidReceiveError(f"a response of {self._size} bytes is not one batch")
        if count:
            self._response += yield count

    def _copy_number(self) -> _Counting:
        """Copy an unsigned varint."""
        number = shift = 0
        while True:
            byte = yield 1
            self._response += byte
            number |= (byte[0] & ~_VARINT_MORE) << shift
            if byte[0] < _VARINT_MORE:
                return number
            shift += 7
            if shift > _VARINT_MAX_SHIFT:
                raise InvalidReceiveError("a number in a response has no end")

    def _copy_count(self) -> _Counting:
        """Copy the length of a compact field, which is one more than that; of null, 0."""
        return max(0, (yield from self._copy_number()) - 1)

    def _copy_tags(self) -> _Reading:
        for _ in range((yield from self._copy_number())):
            yield from self._copy_number()
            yield from self._copy((yield from self._copy_number()))


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= _VARINT_MORE:
        found.append((number & 0x7F) | _VARINT_MORE)
        number >>= 7
    found.append(number)
    return bytes(found)
