"""Receiving the answer to a fetch whose first batch is too large to be held in memory.

A broker sends the first batch whole, however large it is (KIP-74), and limits only what follows.
So such an answer holds one batch, and the other partitions are empty. It is read as it arrives:
the batch is replaced by its header, its size and its SHA-256.
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

# The request that such an answer belongs to, and the one version of it that is read here.
FETCH_API_KEY = 1
FETCH_VERSION = 12

# What a replaced batch is kept of: enough of its header to know its offsets.
_HEADER_BYTES = 61
# A batch begins with its offset and its length. So does what replaces it, with an offset that no
# batch has.
_BATCH_START = struct.Struct(">qi")
_REPLACED = struct.Struct(">qiq32s")
_NO_OFFSET = -(2**62)
# Beside the batch: far more than the partitions of a consumer need.
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
    """Takes the bytes of an answer, and gives an answer in which a large batch is replaced.

    It stands in for kafka-python's `KafkaBytes`.

    Args:
        size: of the whole answer, in bytes.
        batch_max_bytes: a batch over this size is replaced.
    """

    def __init__(self, size: int, batch_max_bytes: int) -> None:
        self._size = size
        self._batch_max_bytes = batch_max_bytes
        self._received = 0
        self._waiting = bytearray()
        self._answer = bytearray()
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
            InvalidReceiveError: it is no answer of this form.
        """
        self._received += len(data)
        self._waiting += data
        position, is_whole = 0, False
        try:
            while self._wanted <= len(self._waiting) - position:
                begin, position = position, position + self._wanted
                self._wanted = self._reading.send(bytes(self._waiting[begin:position]))
        except StopIteration:
            is_whole = True
        if is_whole is not (self._received == self._size):
            raise InvalidReceiveError(f"an answer of {self._size} bytes does not end where it ends")
        del self._waiting[:position]

    def seek(self, position: int) -> None:
        """Go to a place in the answer that is given."""
        self._position = position

    def read(self, count: int | None = None) -> bytes:
        """Return bytes of the answer that is given."""
        end = len(self._answer) if count is None else self._position + count
        data = bytes(self._answer[self._position : end])
        self._position += len(data)
        return data

    def _read(self) -> _Reading:
        """Read the answer: FetchResponse of version 12, after a response header of version 1."""
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
        at = len(self._answer)
        size = yield from self._copy_count()
        if size <= self._batch_max_bytes:
            yield from self._copy(size)
        else:
            del self._answer[at:]
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
        self._answer += _varint(len(replacement) + 1) + replacement

    def _copy(self, count: int) -> _Reading:
        if len(self._answer) + count > self._batch_max_bytes + _REST_MAX_BYTES:
            raise InvalidReceiveError(f"an answer of {self._size} bytes is not one batch")
        if count:
            self._answer += yield count

    def _copy_number(self) -> _Counting:
        """Copy an unsigned varint."""
        number = shift = 0
        while True:
            byte = yield 1
            self._answer += byte
            number |= (byte[0] & ~_VARINT_MORE) << shift
            if byte[0] < _VARINT_MORE:
                return number
            shift += 7
            if shift > _VARINT_MAX_SHIFT:
                raise InvalidReceiveError("a number in an answer has no end")

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
        found.append(number & ~_VARINT_MORE & 0xFF | _VARINT_MORE)
        number >>= 7
    found.append(number)
    return bytes(found)
