r"""Every use of a private part of kafka-python, in one place.

The version is pinned exactly. `check` runs before the first client is made: it refuses another
version, and a version that lacks a part used here.

kafka-python 3.0.12 is changed in four ways:

- A batch that cannot be read raises `UnreadableBatchError`, which holds its bytes and its place;
  none of its records is given. Unchanged, poll() raises a bare error once and then loops without
  end.
- A partition that the broker cannot serve raises `UnreadablePartitionError`, which names it.
- A compressed batch is expanded to at most `EXPANDED_MAX_BYTES`. Unchanged, one small batch can
  take all memory.
- A header name that is not UTF-8 is read with ``\xff`` in place of the bytes that are no text.
  Unchanged, such a record counts as corrupt; other clients read it.
"""

from __future__ import annotations

import gzip
import io
import struct
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import kafka.codec
from kafka import TopicPartition, __version__
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, KafkaError, UnsupportedCodecError
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.producer.sender import Sender
from kafka.record import default_records, legacy_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords

from shared.outbox.process import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kafka import KafkaConsumer, KafkaProducer
    from kafka.net.connection import KafkaConnection

VERSION = "3.0.12"
# Far above what a producer puts into one batch: a broker takes 1 MB of compressed records.
EXPANDED_MAX_BYTES = 64 * 1024 * 1024

_NEWEST_FORMAT = 2
# Where a batch begins, how long it is, and how many offsets it spans (record format 2).
_BASE_OFFSET = struct.Struct(">q")
_LAST_OFFSET_DELTA = struct.Struct(">i")
_LAST_OFFSET_DELTA_AT = 23

_PARTS = (
    (DefaultRecordBatch, "_read_msg"),
    (Fetcher, "_parse_fetched_data"),
    (Fetcher.PartitionRecords, "_unpack_records"),
    (Fetcher.PartitionRecords, "drain"),
    (KafkaConnectionManager, "call_soon"),
    (KafkaConnectionManager, "close"),
    (KafkaConnectionManager, "get_connection"),
    (MemoryRecords, "_next_slice"),
    (Sender, "force_close"),
    *(
        (module, f"{codec}_decode")
        for module in (default_records, legacy_records)
        for codec in ("gzip", "lz4")
    ),
    (default_records, "zstd_decode"),
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
        value: its bytes, as the broker sent them.
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

_read_record = DefaultRecordBatch._read_msg  # noqa: SLF001
_expand = DefaultRecordBatch.__iter__
_read_batches = Fetcher.PartitionRecords._unpack_records  # noqa: SLF001
_parse_partition = Fetcher._parse_fetched_data  # noqa: SLF001


class _Lenient(bytes):
    """Bytes whose slices decode, whatever they hold."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _Lenient(found) if isinstance(index, slice) else found

    def decode(self, *_: object) -> str:
        return super().decode("utf-8", "backslashreplace")


def _read_record_strictly(batch: Any) -> Any:
    """Read a record with any header name, whose offset lies within its batch."""
    try:
        record = _read_record(batch)
    except UnicodeDecodeError:
        # The batch stands where it stood before this record: its position moves at the very end.
        batch._buffer = _Lenient(batch._buffer)  # noqa: SLF001
        record = _read_record(batch)
    if not batch.base_offset <= record.offset <= batch.last_offset:
        raise CorruptRecordError(f"a record says that it is at {record.offset}, outside its batch")
    return record


def _read_all_or_none(batch: Any) -> Iterator[Any]:
    """Read the whole batch before returning its first record."""
    _expand(batch)
    # list(batch) would call this function again.
    return iter(list(iter(batch.__next__, None)))


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

    def next_batch(self) -> Any:
        """Return the next batch, or None after the last one.

        Raises:
            CorruptRecordError: it is no batch, or does not bring reading forward.
        """
        # A view of the fetch's buffer; None at its end.
        self.current, self.following = self._records._next_slice or b"", b""  # noqa: SLF001
        batch = self._records.next_batch()
        self.following = self._records._next_slice or b""  # noqa: SLF001
        if batch is None:
            return None
        if not 0 <= batch.magic <= _NEWEST_FORMAT:
            raise CorruptRecordError(f"its format is {batch.magic}, which does not exist")
        if batch.magic == _NEWEST_FORMAT:
            if batch.last_offset < max(batch.base_offset, self._offset):
                raise CorruptRecordError(
                    f"it ends at {batch.last_offset}, and {self._offset} is to be read"
                )
            self._offset = batch.last_offset + 1
        return batch


def _read_batches_or_say_where(
    part: Any, partition: TopicPartition, records: MemoryRecords, *deserializers: object
) -> Iterator[Any]:
    """Read the records of a fetched partition.

    Raises:
        UnreadableBatchError: a batch cannot be read. All records before it were given, and the
            next fetch begins with it.
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
            value=bytes(batches.current),
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
        candidates.append(base + delta)
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


def _gunzip(data: Any) -> bytes:
    return _bounded(gzip.GzipFile(fileobj=io.BytesIO(data)).read(EXPANDED_MAX_BYTES + 1))


def _expand_lz4(data: bytes) -> bytes:
    frame = kafka.codec.lz4.LZ4FrameDecompressor()
    expanded = _bounded(frame.decompress(data, max_length=EXPANDED_MAX_BYTES + 1))
    if not frame.eof:
        raise CorruptRecordError("its LZ4 frame has no end")
    return expanded


def _expand_zstd(data: bytes) -> bytes:
    decompressor = kafka.codec.zstd.ZstdDecompressor()
    with decompressor.stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        return _bounded(reader.read(EXPANDED_MAX_BYTES + 1))


def _bounded(expanded: bytes) -> bytes:
    if len(expanded) > EXPANDED_MAX_BYTES:
        raise CorruptRecordError(f"it expands to more than {EXPANDED_MAX_BYTES} bytes")
    return expanded


def patch_consumers() -> None:
    """Change how every consumer of this process reads; see the module's docstring."""
    check()
    DefaultRecordBatch._read_msg = _read_record_strictly  # noqa: SLF001
    DefaultRecordBatch.__iter__ = _read_all_or_none
    Fetcher.PartitionRecords._unpack_records = _read_batches_or_say_where  # noqa: SLF001
    Fetcher._parse_fetched_data = _parse_partition_or_say_which  # noqa: SLF001
    # Snappy is bounded by its format, to about 21 times.
    for module in (default_records, legacy_records):
        module.gzip_decode = _gunzip
        module.lz4_decode = _expand_lz4
    default_records.zstd_decode = _expand_zstd
