r"""Every use of a private part of kafka-python, in one place.

The version is pinned exactly. `check` runs before the first client is made: it refuses another
version, and a version that lacks a part used here.

kafka-python 3.0.12 is changed in these ways:

- A batch that cannot be read raises `UnreadableBatchError`, which holds its bytes and its place.
  Unchanged, poll() raises a bare error once and then loops without end.
- A partition that the broker cannot serve raises `UnreadablePartitionError`, which names it.
- A batch is expanded while it is read, a record at a time (`record_stream`). A record that is too
  large is given with a `TooLarge` in place of its value. Unchanged, one small batch can take all
  memory.
- An answer to a fetch whose one batch is over the limit of answers is received without the batch
  (`fetch_response`), which raises `UnreadableBatchError`. Unchanged, the connection ends, and the
  same fetch is sent again without end.
- A poll gives records of about `POLL_MAX_BYTES` at most.
- Batches in the formats 0 and 1 are not read: without headers they hold no events.
- A header name that is not UTF-8 is read with ``\xff`` in place of the bytes that are no text.
  Unchanged, such a record counts as corrupt; other clients read it.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from kafka import TopicPartition, __version__
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, KafkaError, UnsupportedCodecError
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.producer.sender import Sender
from kafka.protocol import parser
from kafka.protocol.frame import KafkaBytes
from kafka.protocol.parser import KafkaProtocol
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import decode_varint

from settle_outbox.kafka.fetch_response import (
    FETCH_API_KEY,
    FETCH_VERSION,
    LargeFetchResponse,
    replaced_batch,
)
from settle_outbox.kafka.record_stream import (
    HEADERS_MAX,
    RECORD_MAX_BYTES,
    RecordStream,
    TooLarge,
    TooLargeError,
)
from settle_outbox.runtime.process import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kafka import KafkaConsumer, KafkaProducer
    from kafka.consumer.fetcher import ConsumerRecord
    from kafka.net.connection import KafkaConnection

VERSION = "3.0.12"
# What a fetch asks for. If a response is larger than a client takes, a batch over this is replaced.
FETCH_MAX_BYTES = 4 * RECORD_MAX_BYTES
# Records that one poll gives, as they are in memory; the last one may go beyond it.
POLL_MAX_BYTES = 4 * RECORD_MAX_BYTES
# What a header takes in memory, beside its bytes.
_HEADER_OVERHEAD_BYTES = 100

# The only record format with headers, and so with events.
_FORMAT = 2
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
# The beginning of a record, up to its offset: a byte, a varlong and a varint.
_RECORD_BEGINNING_BYTES = 1 + 10 + 5
# Where a batch begins, its format, and how many offsets it spans.
_MAGIC_AT = 16
_BASE_OFFSET = struct.Struct(">q")
_LAST_OFFSET_DELTA = struct.Struct(">i")
_LAST_OFFSET_DELTA_AT = 23

_PARTS = (
    (DefaultRecordBatch, "HEADER_STRUCT"),
    (DefaultRecordBatch, "_assert_has_codec"),
    (Fetcher, "_append"),
    (Fetcher, "_parse_fetched_data"),
    (Fetcher.PartitionRecords, "_maybe_raise_next_inline_exception"),
    (Fetcher.PartitionRecords, "_unpack_records"),
    (Fetcher.PartitionRecords, "drain"),
    (Fetcher.PartitionRecords, "take"),
    (KafkaProtocol, "_validate_frame_size"),
    (parser, "KafkaBytes"),
    (KafkaConnectionManager, "call_soon"),
    (KafkaConnectionManager, "close"),
    (KafkaConnectionManager, "get_connection"),
    (MemoryRecords, "_next_slice"),
    (Sender, "force_close"),
)

_Client = TypeVar("_Client")


class KafkaVersionError(FatalError):
    """The installed kafka-python is not the one that this module was written for."""


class UnreadablePartitionError(KafkaError):  # type: ignore[misc]  # kafka-python is untyped
    """One partition cannot be read now. The broker and the other partitions may be well.

    Args:
        partition: which one.
        offset: where reading stopped.
        cause: what was raised there.
    """

    def __init__(self, partition: TopicPartition, offset: int, cause: Exception) -> None:
        self.reason = f"{type(cause).__name__}: {cause}"
        super().__init__(
            f"{partition.topic}-{partition.partition} cannot be read at {offset}: {self.reason}"
        )
        self.partition = partition
        self.offset = offset
        self.cause = cause


class UnreadableBatchError(UnreadablePartitionError):
    """A batch of records cannot be read.

    Args:
        partition: where it is.
        offset: the first offset in it that was not read.
        cause: what was raised there.
        last_offset: its last offset, as far as it can be known; reading may continue after it.
        value: its bytes, as the broker sent them; a `TooLarge` if they are not to be kept.
    """

    def __init__(
        self,
        partition: TopicPartition,
        offset: int,
        cause: Exception,
        *,
        last_offset: int,
        value: bytes,
    ) -> None:
        super().__init__(partition, offset, cause)
        self.last_offset = last_offset
        self.value = value

    @property
    def lacks_codec(self) -> bool:
        """Return whether the batch is sound, and only its compression is unknown here."""
        return isinstance(self.cause, UnsupportedCodecError)

    @property
    def is_too_large(self) -> bool:
        """Return whether the batch may be sound, and is only over a limit."""
        return isinstance(self.cause, TooLargeError)


def check() -> None:
    """Check that kafka-python is the pinned version and has the parts that are used here.

    Raises:
        KafkaVersionError: it is another version, or lacks a part.
    """
    if __version__ != VERSION:
        raise KafkaVersionError(
            f"kafka-python {__version__} is installed, and {VERSION} is needed: "
            f"pip install kafka-python=={VERSION}."
        )
    for owner, name in _PARTS:
        if not hasattr(owner, name):
            raise KafkaVersionError(
                f"kafka-python {__version__} has no {owner.__name__}.{name}: install it again."
            )


# Connecting


def connect(client_class: Callable[..., _Client], **options: Any) -> _Client:
    """Make a client. If no broker answers, leave nothing of it behind.

    kafka-python starts a client's thread before it connects, and does not end it when that fails:
    an outage of an hour would leak hundreds of threads.

    Raises:
        KafkaError: no broker can be reached.
    """
    check()
    nets: list[KafkaNetClient] = []

    def net_client(**net_options: Any) -> KafkaNetClient:
        nets.append(KafkaNetClient(**net_options))
        return nets[-1]

    try:
        return client_class(kafka_client=net_client, **options)
    except KafkaError:
        for net in nets:
            net.close()
        raise


def never_create_topics(client: KafkaConsumer | KafkaProducer) -> None:
    """Set `allow_auto_create_topics` where kafka-python reads it; it never stores it there.

    A broker that forgot a topic would create it again for each client that is still connected,
    with a partition count of its own.
    """
    cluster = client._cluster if hasattr(client, "_cluster") else client._metadata  # noqa: SLF001
    cluster.config["allow_auto_create_topics"] = False


class _Dropped(dict[TopicPartition, Any]):
    """A dictionary that keeps nothing."""

    def __setitem__(self, key: TopicPartition, value: Any) -> None:
        """Drop the value."""


def drop_fetched_when_paused(consumer: KafkaConsumer) -> None:
    """Let a consumer keep no records of paused partitions.

    It keeps what one fetch brought, for each of them. After a pause this project reads from an
    earlier offset anyhow.
    """
    fetcher = consumer._fetcher  # noqa: SLF001
    fetcher._paused_completed_fetches = _Dropped()  # noqa: SLF001
    fetcher._paused_partition_records = _Dropped()  # noqa: SLF001


def close_connection(consumer: KafkaConsumer, partition: TopicPartition) -> None:
    """Close the connection to the leader of a partition; the next fetch opens another one."""
    leader = consumer._cluster.leader_for_partition(partition)  # noqa: SLF001
    if leader is not None:
        manager = consumer._client._manager  # noqa: SLF001
        manager.call_soon(manager.close, leader)


# The producer


def when_connection_ends(producer: KafkaProducer, call: Callable[..., object]) -> None:
    """Call back, in the thread that sends, when a connection to a broker ends.

    By itself the producer opens another one and goes on. The call comes before anything is sent
    over that one.
    """
    manager = producer._sender._client._manager  # noqa: SLF001
    connect_to = manager.get_connection
    watched: WeakSet[KafkaConnection] = WeakSet()

    def watch(node_id: int | str, connection: KafkaConnection) -> None:
        # A bootstrap connection carries no events, and is closed when it has done its work.
        if connection not in watched and not manager.cluster.is_bootstrap(node_id):
            watched.add(connection)
            connection.close_future.add_both(call)

    def get_connection(node_id: int | str, *arguments: Any, **options: Any) -> KafkaConnection:
        connection = connect_to(node_id, *arguments, **options)
        watch(node_id, connection)
        return connection

    manager.get_connection = get_connection
    for node_id, connection in list(manager._conns.items()):  # noqa: SLF001
        watch(node_id, connection)


def stop_sending(producer: KafkaProducer) -> None:
    """Make the sending thread end before it takes up another batch; any thread may call this.

    KafkaProducer.close() would flush first.
    """
    producer._sender.force_close()  # noqa: SLF001


def wait_for_sending_to_end(producer: KafkaProducer, timeout_s: float) -> bool:
    """Return whether the sending thread has ended within a time."""
    producer._sender.join(timeout_s)  # noqa: SLF001
    return not producer._sender.is_alive()  # noqa: SLF001


# The consumer

_read_batches = Fetcher.PartitionRecords._unpack_records  # noqa: SLF001
_parse_partition = Fetcher._parse_fetched_data  # noqa: SLF001
_append = Fetcher._append  # noqa: SLF001
_validate_frame_size = KafkaProtocol._validate_frame_size  # noqa: SLF001


def _read_records(batch: Any) -> Iterator[DefaultRecord]:
    """Read the records of a batch, after a check of all their lengths.

    Raises:
        TooLargeError: the batch is over a limit.
        UnsupportedCodecError: its codec is unknown, or not installed.
    """
    if batch.compression_type:
        batch._assert_has_codec(batch.compression_type)  # noqa: SLF001
    codec = _CODECS[batch.compression_type]
    content = memoryview(batch._buffer)[batch.HEADER_STRUCT.size :]  # noqa: SLF001
    RecordStream(codec, content).check(batch.records_count)
    return _each_record(batch, RecordStream(codec, content))


def _each_record(batch: Any, stream: RecordStream) -> Iterator[DefaultRecord]:
    """Read one record after the other.

    Raises:
        CorruptRecordError: a record is not as its format says.
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
                f"a record says that it is at {record.offset}, outside its batch or its order"
            )
        next_offset = record.offset + 1
        yield record


def _read_record(batch: Any, stream: RecordStream, length: int) -> DefaultRecord:
    """Read a record. Of one that is too large, read the place, and measure the rest."""
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
        data: of the record, from its beginning; more may be added.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._position = 1  # after the attributes, which have no meaning yet

    def read_number(self) -> int:
        """Read a varint or a varlong."""
        number: int
        number, self._position = decode_varint(self.data, self._position)
        return number

    def read_bytes(self) -> bytes | None:
        """Read bytes after their length; None where the length is negative."""
        length = self.read_number()
        if length < 0:
            return None
        begin, self._position = self._position, self._position + length
        if self._position > len(self.data):
            raise CorruptRecordError("a field of a record is longer than the record")
        return self.data[begin : self._position]

    def read_headers(self) -> list[tuple[str, bytes | None]] | None:
        """Read the headers up to the end of the record; None when they are more than allowed."""
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


class _Batches:
    """The batches of a fetched partition; it knows the bytes of the one that is being read.

    Args:
        records: of the fetch.
        offset: where reading begins.
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
            CorruptRecordError: it is no batch, or does not bring reading forward.
            TooLargeError: it was too large to be received.
        """
        # A view of the fetch's buffer; None at its end.
        self.current, self.following = self._records._next_slice or b"", b""  # noqa: SLF001
        replaced = replaced_batch(self.current)
        if replaced is not None:
            self.current, self.measure = replaced
            raise TooLargeError(f"it has more than {FETCH_MAX_BYTES} bytes")
        batch = self._records.next_batch()
        self.following = self._records._next_slice or b""  # noqa: SLF001
        if batch is None:
            return None
        if batch.magic != _FORMAT:
            raise CorruptRecordError(f"its format is {batch.magic}, and {_FORMAT} alone is read")
        if batch.last_offset < max(batch.base_offset, self._offset):
            raise CorruptRecordError(
                f"it ends at {batch.last_offset}, and {self._offset} is to be read"
            )
        self._offset = batch.last_offset + 1
        return batch

    def kept(self, error: Exception) -> bytes:
        """Return what is kept of a batch that cannot be read: its bytes, or size and digest."""
        if self.measure is not None:
            return self.measure
        if isinstance(error, TooLargeError) or len(self.current) > RECORD_MAX_BYTES:
            return TooLarge.of(self.current)
        return bytes(self.current)


def _read_batches_or_say_where(
    part: Any, partition: TopicPartition, records: MemoryRecords, *deserializers: object
) -> Iterator[Any]:
    """Read the records of a fetched partition.

    Raises:
        UnreadableBatchError: a batch cannot be read, or not from some record on. All records
            before that were given, and the next fetch begins with it.
    """
    batches = _Batches(records, part.fetch_offset)
    try:
        yield from _read_batches(part, partition, batches, *deserializers)
    except Exception as error:
        # Without drain(), the fetcher would ask this part for records forever.
        part.drain()
        raise UnreadableBatchError(
            partition,
            part.next_fetch_offset,
            error,
            last_offset=_last_offset(batches, part.next_fetch_offset, part.high_watermark),
            value=batches.kept(error),
        ) from error


def _last_offset(batches: _Batches, offset: int, high_watermark: int) -> int:
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


def _parse_partition_or_say_which(fetcher: Fetcher, completed: Any) -> Any:
    """Open what was fetched of one partition.

    Raises:
        UnreadablePartitionError: the broker gave an error in place of records.
    """
    partition = completed.topic_partition
    try:
        part = _parse_partition(fetcher, completed)
    except KafkaError as error:
        raise UnreadablePartitionError(partition, completed.fetched_offset, error) from error
    if part is not None:
        part.high_watermark = completed.partition_data.high_watermark
        fetcher._subscriptions.assignment[partition].last_stable_offset = (  # noqa: SLF001
            completed.partition_data.last_stable_offset
        )
    return part


def readable_end(consumer: KafkaConsumer, partition: TopicPartition) -> int | None:
    """Return where committed records end, as of the last fetch; None before the first fetch.

    It is the end of the partition, or where the oldest open transaction begins.
    """
    state = consumer._subscription.assignment[partition]  # noqa: SLF001
    stable: int = getattr(state, "last_stable_offset", -1)
    end: int | None = state.highwater
    return end if end is None or stable < 0 else min(end, stable)


class _Receiving(threading.local):
    """What the thread of a client receives next."""

    is_large_fetch = False


_receiving = _Receiving()


def _validate_answer_size(protocol: KafkaProtocol, size: int) -> None:
    """Let an answer to a fetch be larger than others.

    Raises:
        InvalidReceiveError: another answer is too large.
    """
    if size > protocol._max_frame_size and protocol.in_flight_requests:  # noqa: SLF001
        request = protocol.in_flight_requests[0]
        asked = (request.request_api_key, request.request_api_version)
        _receiving.is_large_fetch = asked == (FETCH_API_KEY, FETCH_VERSION)
    if not _receiving.is_large_fetch:
        _validate_frame_size(protocol, size)


def _make_buffer(size: int) -> KafkaBytes | LargeFetchResponse:
    """Return what receives an answer whose size was validated just before."""
    if _receiving.is_large_fetch:
        _receiving.is_large_fetch = False
        return LargeFetchResponse(size, FETCH_MAX_BYTES)
    return KafkaBytes(size)


def _append_within_limit(
    fetcher: Fetcher, drained: Any, part: Any, max_records: int, update_offsets: Any
) -> int:
    """Add records of a partition to what a poll gives, until it has `POLL_MAX_BYTES`."""
    part.bytes_left = POLL_MAX_BYTES - sum(
        _memory_of(record) for records in drained.values() for record in records
    )
    if part.bytes_left <= 0:
        return max_records  # ends the poll; the part waits for the next one
    added: int = _append(fetcher, drained, part, max_records, update_offsets)
    return added


def _take_within_limit(part: Any, count: int | None = None) -> list[Any]:
    """Take the next records of a fetched partition, until their bytes are `part.bytes_left`."""
    part._maybe_raise_next_inline_exception()  # noqa: SLF001
    records: list[Any] = []
    memory = 0
    try:
        for record in islice(part.record_iterator, count):
            records.append(record)
            memory += _memory_of(record)
            if memory >= part.bytes_left:
                break
    except Exception as error:
        if not records:
            raise
        part._next_inline_exception = error  # noqa: SLF001 - as kafka-python does
    return records


def _memory_of(record: ConsumerRecord) -> int:
    """Return about how much memory a record takes, in bytes."""
    sizes = (
        record.serialized_key_size,
        record.serialized_value_size,
        record.serialized_header_size,
        len(record.headers) * _HEADER_OVERHEAD_BYTES,
    )
    return sum(size for size in sizes if size > 0)


def patch_consumers() -> None:
    """Change how every consumer of this process reads; see the module's docstring."""
    check()
    KafkaProtocol._validate_frame_size = _validate_answer_size  # noqa: SLF001
    parser.KafkaBytes = _make_buffer
    DefaultRecordBatch.__iter__ = _read_records
    Fetcher.PartitionRecords._unpack_records = _read_batches_or_say_where  # noqa: SLF001
    Fetcher.PartitionRecords.take = _take_within_limit
    Fetcher.PartitionRecords.bytes_left = POLL_MAX_BYTES
    Fetcher._append = _append_within_limit  # noqa: SLF001
    Fetcher._parse_fetched_data = _parse_partition_or_say_which  # noqa: SLF001
