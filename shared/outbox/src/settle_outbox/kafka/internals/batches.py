"""Read the records of a fetched batch, one at a time."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Any

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecord
from kafka.record.util import decode_varint

from settle_outbox.kafka.fetch_response import FETCH_MAX_BYTES, replaced_batch
from settle_outbox.kafka.record_stream import (
    HEADERS_MAX,
    RECORD_MAX_BYTES,
    RecordStream,
    TooLarge,
    TooLargeError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka.record.memory_records import MemoryRecords

# The only record format with headers. Events need headers.
_FORMAT = 2
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
# Maximum size of the beginning of a record up to its offset: a byte, a varlong and a varint.
_RECORD_BEGINNING_BYTES = 1 + 10 + 5
# Fields in the header of a batch: its format, its first offset, and the difference to its last
# offset.
_MAGIC_AT = 16
_BASE_OFFSET = struct.Struct(">q")
_LAST_OFFSET_DELTA = struct.Struct(">i")
_LAST_OFFSET_DELTA_AT = 23


def read_records(batch: Any) -> Iterator[DefaultRecord]:
    """Check the lengths of all records of a batch, then read them.

    Raises:
        TooLargeError: the batch exceeds a limit.
        UnsupportedCodecError: its codec is unknown or not installed.
    """
    if batch.compression_type:
        batch._assert_has_codec(batch.compression_type)
    codec = _CODECS[batch.compression_type]
    content = memoryview(batch._buffer)[batch.HEADER_STRUCT.size :]
    RecordStream(codec, content).check(batch.records_count)
    return _read_each(batch, RecordStream(codec, content))


def _read_each(batch: Any, stream: RecordStream) -> Iterator[DefaultRecord]:
    """Read one record after the other.

    Raises:
        CorruptRecordError: a record does not have the format.
    """
    next_offset = batch.base_offset
    for _ in range(batch.records_count):
        length = stream.read_length()
        try:
            record = _read_record(batch, stream, length)
        except (IndexError, ValueError) as error:  # of a varint
            raise CorruptRecordError(f"a record ends within a field: {error}") from error
        if not next_offset <= record.offset <= batch.last_offset:
            raise CorruptRecordError(
                f"a record has the offset {record.offset}, which is outside its batch or its order"
            )
        next_offset = record.offset + 1
        yield record


def _read_record(batch: Any, stream: RecordStream, length: int) -> DefaultRecord:
    """Read a record. If it is too large, read its offset and measure the rest."""
    fields = _Fields(stream.read(min(length, _RECORD_BEGINNING_BYTES)))
    timestamp = batch.first_timestamp + fields.read_number()
    offset = batch.base_offset + fields.read_number()
    key: bytes | None = None
    headers: list[tuple[str, bytes | None]] | None = None
    rest = length - len(fields.data)
    if length <= RECORD_MAX_BYTES:
        fields.data += stream.read(rest)
        key, value, headers = fields.read_bytes(), fields.read_bytes(), fields.read_headers()
        if headers is None:
            key, value = None, TooLarge.of(fields.data)
    else:
        digest = hashlib.sha256(fields.data)
        for piece in stream.pieces(rest):
            digest.update(piece)
        value = TooLarge.measured(length, digest.hexdigest())
    if batch.timestamp_type == batch.LOG_APPEND_TIME:
        timestamp = batch.max_timestamp
    return DefaultRecord(length, offset, timestamp, batch.timestamp_type, key, value, headers or [])


class _Fields:
    """The fields of a record, read one after the other.

    Args:
        data: the beginning of the record. The rest may be added later.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._position = 1  # after the attributes, which are unused

    def read_number(self) -> int:
        """Read a varint or a varlong."""
        number: int
        number, self._position = decode_varint(self.data, self._position)
        return number

    def read_bytes(self) -> bytes | None:
        """Read the length of a field and its bytes, or None for a negative length."""
        length = self.read_number()
        if length < 0:
            return None
        begin, self._position = self._position, self._position + length
        if self._position > len(self.data):
            raise CorruptRecordError("a field of a record is longer than the record")
        return self.data[begin : self._position]

    def read_headers(self) -> list[tuple[str, bytes | None]] | None:
        """Read the headers up to the end of the record, or return None for too many."""
        count = self.read_number()
        if count > HEADERS_MAX:
            return None
        headers = []
        for _ in range(count):
            name = self.read_bytes()
            if name is None:
                raise CorruptRecordError("a header of a record has no name")
            headers.append((name.decode("utf-8", "backslashreplace"), self.read_bytes()))
        if count < 0 or self._position != len(self.data):
            raise CorruptRecordError("a record does not end with its last header")
        return headers


class BatchReader:
    """The batches of a fetched partition. It keeps the bytes of the current batch.

    Args:
        records: of the fetch.
        offset: at which reading starts.
    """

    def __init__(self, records: MemoryRecords, offset: int) -> None:
        self._records = records
        self._offset = offset
        self.current = b""
        self.following = b""
        self.measure: TooLarge | None = None

    def next_batch(self) -> Any:
        """Return the next batch, or None after the last one.

        Raises:
            CorruptRecordError: the data is not a batch, or the batch ends before the offset.
            TooLargeError: the batch was too large to be received.
        """
        # `_next_slice` is a view of the fetch's buffer, or None at its end.
        self.current, self.following = self._records._next_slice or b"", b""
        replaced = replaced_batch(self.current)
        if replaced is not None:
            self.current, self.measure = replaced
            raise TooLargeError(f"it has more than {FETCH_MAX_BYTES} bytes")
        batch = self._records.next_batch()
        self.following = self._records._next_slice or b""
        if batch is None:
            return None
        if batch.magic != _FORMAT:
            raise CorruptRecordError(f"its format is {batch.magic}; only {_FORMAT} can be read")
        if batch.last_offset < max(batch.base_offset, self._offset):
            raise CorruptRecordError(
                f"it ends at {batch.last_offset}, before the expected offset {self._offset}"
            )
        self._offset = batch.last_offset + 1
        return batch

    def kept(self, error: Exception) -> bytes:
        """Return the bytes of a batch that cannot be read, or a `TooLarge`."""
        if self.measure is not None:
            return self.measure
        if isinstance(error, TooLargeError) or len(self.current) > RECORD_MAX_BYTES:
            return TooLarge.of(self.current)
        return bytes(self.current)


def last_offset(batches: BatchReader, offset: int, high_watermark: int) -> int:
    """Estimate the last offset of the current batch, whose header may be corrupt.

    Prefer the start of the next batch, then this batch's header. If neither is plausible, return
    `offset`: reading then advances by one, and the broker sends the batch that contains it.
    """
    candidates = []
    if len(batches.following) >= _BASE_OFFSET.size:
        candidates.append(_BASE_OFFSET.unpack_from(batches.following)[0] - 1)
    if len(batches.current) >= _LAST_OFFSET_DELTA_AT + _LAST_OFFSET_DELTA.size:
        (base,) = _BASE_OFFSET.unpack_from(batches.current)
        (delta,) = _LAST_OFFSET_DELTA.unpack_from(batches.current, _LAST_OFFSET_DELTA_AT)
        # Formats 0 and 1 give the last offset in place of the first.
        candidates.append(base if batches.current[_MAGIC_AT] < _FORMAT else base + delta)
    plausible = [last for last in candidates if offset <= last < high_watermark]
    return int(plausible[0]) if plausible else offset
