"""What kafka-python keeps private of a consumer: how it fetches, and what it keeps."""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING, Any

from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError
from kafka.protocol import parser
from kafka.protocol.frame import KafkaBytes
from kafka.protocol.parser import KafkaProtocol
from kafka.record.default_records import DefaultRecordBatch

from settle_outbox.kafka.fetch_response import (
    FETCH_API_KEY,
    FETCH_MAX_BYTES,
    FETCH_VERSION,
    LargeFetchResponse,
)
from settle_outbox.kafka.internals.batches import BatchReader, last_offset, read_records
from settle_outbox.kafka.internals.check import check
from settle_outbox.kafka.internals.unreadable import UnreadableBatchError, UnreadablePartitionError
from settle_outbox.kafka.record_stream import RECORD_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka import KafkaConsumer
    from kafka.consumer.fetcher import ConsumerRecord
    from kafka.record.memory_records import MemoryRecords

# Records that one poll gives, as they are in memory; the last one may go beyond it.
POLL_MAX_BYTES = 4 * RECORD_MAX_BYTES
# What a header takes in memory, beside its bytes.
_HEADER_OVERHEAD_BYTES = 100

# kafka-python's own. One that is missing is reported by `check`, before the first client is made.
_read_batches: Any = getattr(Fetcher.PartitionRecords, "_unpack_records", None)
_parse_partition: Any = getattr(Fetcher, "_parse_fetched_data", None)
_append: Any = getattr(Fetcher, "_append", None)
_validate_frame_size: Any = getattr(KafkaProtocol, "_validate_frame_size", None)


def patch_consumers() -> None:
    """Change how every consumer of this process reads; see the docstring of the package."""
    check()
    KafkaProtocol._validate_frame_size = _validate_answer_size
    parser.KafkaBytes = _make_buffer
    DefaultRecordBatch.__iter__ = read_records
    Fetcher.PartitionRecords._unpack_records = _read_batches_or_say_where
    Fetcher.PartitionRecords.take = _take_within_limit
    Fetcher.PartitionRecords.bytes_left = POLL_MAX_BYTES
    Fetcher._append = _append_within_limit
    Fetcher._parse_fetched_data = _parse_partition_or_say_which


class _Dropped(dict[TopicPartition, Any]):
    """A dictionary that keeps nothing."""

    def __setitem__(self, key: TopicPartition, value: Any) -> None:
        """Drop the value."""


def drop_fetched_when_paused(consumer: KafkaConsumer) -> None:
    """Let a consumer keep no records of paused partitions.

    It keeps what one fetch brought, for each of them. After a pause this project reads from an
    earlier offset anyhow.
    """
    fetcher = consumer._fetcher
    fetcher._paused_completed_fetches = _Dropped()
    fetcher._paused_partition_records = _Dropped()


def close_connection(consumer: KafkaConsumer, partition: TopicPartition) -> None:
    """Close the connection to the leader of a partition; the next fetch opens another one."""
    leader = consumer._cluster.leader_for_partition(partition)
    if leader is not None:
        manager = consumer._client._manager
        manager.call_soon(manager.close, leader)


def readable_end(consumer: KafkaConsumer, partition: TopicPartition) -> int | None:
    """Return where committed records end, as of the last fetch; None before the first fetch.

    It is the end of the partition, or where the oldest open transaction begins.
    """
    state = consumer._subscription.assignment[partition]
    stable: int = getattr(state, "last_stable_offset", -1)
    end: int | None = state.highwater
    return end if end is None or stable < 0 else min(end, stable)


def _read_batches_or_say_where(
    part: Any, partition: TopicPartition, records: MemoryRecords, *deserializers: object
) -> Iterator[Any]:
    """Read the records of a fetched partition.

    Raises:
        UnreadableBatchError: a batch cannot be read, or not from some record on. All records
            before that were given, and the next fetch begins with it.
    """
    batches = BatchReader(records, part.fetch_offset)
    try:
        yield from _read_batches(part, partition, batches, *deserializers)
    except Exception as error:
        # Without drain(), the fetcher would ask this part for records forever.
        part.drain()
        raise UnreadableBatchError(
            partition,
            part.next_fetch_offset,
            error,
            last_offset=last_offset(batches, part.next_fetch_offset, part.high_watermark),
            value=batches.kept(error),
        ) from error


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
        fetcher._subscriptions.assignment[
            partition
        ].last_stable_offset = completed.partition_data.last_stable_offset
    return part


class _Receiving(threading.local):
    """What the thread of a client receives next."""

    is_large_fetch = False


_receiving = _Receiving()


def _validate_answer_size(protocol: KafkaProtocol, size: int) -> None:
    """Let an answer to a fetch be larger than others.

    Raises:
        InvalidReceiveError: another answer is too large.
    """
    if size > protocol._max_frame_size and protocol.in_flight_requests:
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
    part._maybe_raise_next_inline_exception()
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
        part._next_inline_exception = error  # as kafka-python does
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
