"""Private parts of the consumer: how it fetches, and which records it keeps."""

from __future__ import annotations

import math
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.errors import KafkaError
from kafka.protocol import parser
from kafka.protocol.frame import KafkaBytes
from kafka.protocol.parser import KafkaProtocol
from kafka.record.default_records import DefaultRecordBatch
from kafka.structs import MemberState

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

# Maximum memory of the records of one poll. Only the last record may exceed it.
POLL_MAX_BYTES = 4 * RECORD_MAX_BYTES
# Memory of a header in addition to its bytes.
_HEADER_OVERHEAD_BYTES = 100

# The original methods of kafka-python. `check` reports a missing one before the first client is
# made.
_original_unpack_records: Any = getattr(Fetcher.PartitionRecords, "_unpack_records", None)
_original_parse_fetched_data: Any = getattr(Fetcher, "_parse_fetched_data", None)
_original_append: Any = getattr(Fetcher, "_append", None)
_original_join_and_sync: Any = getattr(ConsumerCoordinator, "_do_join_and_sync_async", None)
_original_validate_frame_size: Any = getattr(KafkaProtocol, "_validate_frame_size", None)


def patch_consumers() -> None:
    """Change how all consumers of this process read; see the docstring of the package."""
    check()
    KafkaProtocol._validate_frame_size = _validate_response_size
    parser.KafkaBytes = _make_buffer
    DefaultRecordBatch.__iter__ = read_records
    Fetcher.PartitionRecords._unpack_records = _read_batches_with_place
    Fetcher.PartitionRecords.take = _take_within_limit
    Fetcher.PartitionRecords.bytes_left = POLL_MAX_BYTES
    Fetcher._append = _append_within_limit
    Fetcher._parse_fetched_data = _parse_partition_with_place
    ConsumerCoordinator._do_join_and_sync_async = _join_once


class _Dropped(dict[TopicPartition, Any]):
    """A dictionary that keeps nothing."""

    def __setitem__(self, key: TopicPartition, value: Any) -> None:
        """Drop the value."""


def drop_fetched_when_paused(consumer: KafkaConsumer) -> None:
    """Make a consumer drop the fetched records of paused partitions.

    Otherwise it keeps the records of one fetch for each paused partition. They are useless here,
    because after a pause reading starts at an earlier offset.
    """
    fetcher = consumer._fetcher
    fetcher._paused_completed_fetches = _Dropped()
    fetcher._paused_partition_records = _Dropped()


def close_connection(consumer: KafkaConsumer, partition: TopicPartition) -> None:
    """Close the connection to the leader of a partition. The next fetch opens a new one."""
    leader = consumer._cluster.leader_for_partition(partition)
    if leader is not None:
        manager = consumer._client._manager
        manager.call_soon(manager.close, leader)


def readable_end(consumer: KafkaConsumer, partition: TopicPartition) -> int | None:
    """Return the end of the committed records at the last fetch, or None before the first one.

    It is the end of the partition, or the start of the oldest open transaction.
    """
    state = consumer._subscription.assignment[partition]
    stable: int = getattr(state, "last_stable_offset", -1)
    end: int | None = state.highwater
    return end if end is None or stable < 0 else min(end, stable)


def _read_batches_with_place(
    part: Any, partition: TopicPartition, records: MemoryRecords, *deserializers: object
) -> Iterator[Any]:
    """Read the records of a fetched partition.

    Raises:
        UnreadableBatchError: a batch, or the rest of it, cannot be read. All records before that
            were returned, and the next fetch starts there.
    """
    batches = BatchReader(records, part.fetch_offset)
    try:
        yield from _original_unpack_records(part, partition, batches, *deserializers)
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


def _parse_partition_with_place(fetcher: Fetcher, completed: Any) -> Any:
    """Parse the fetched data of one partition.

    Raises:
        UnreadablePartitionError: the broker returned an error in place of records.
    """
    partition = completed.topic_partition
    try:
        part = _original_parse_fetched_data(fetcher, completed)
    except KafkaError as error:
        raise UnreadablePartitionError(partition, completed.fetched_offset, error) from error
    if part is not None:
        part.high_watermark = completed.partition_data.high_watermark
        fetcher._subscriptions.assignment[
            partition
        ].last_stable_offset = completed.partition_data.last_stable_offset
    return part


async def _join_once(coordinator: ConsumerCoordinator) -> Any:
    """Join the group, or return the assignment of a join that was completed between two polls.

    The reason to join can vanish during the join. So a new join is requested, until one succeeds.
    """
    joined_at, assignment = coordinator.__dict__.pop("last_join", (-math.inf, None))
    # A poll that uses the assignment makes the coordinator stable. Until then there are no
    # heartbeats, and the broker removes the member after the session timeout.
    is_unused = coordinator.state is MemberState.REBALANCING
    age_ms = (time.monotonic() - joined_at) * 1000
    if not is_unused or age_ms > coordinator.config["session_timeout_ms"]:
        coordinator.request_rejoin()
        assignment = await _original_join_and_sync(coordinator)
        joined_at = time.monotonic()
    coordinator.last_join = joined_at, assignment
    return assignment


class _Receiving(threading.local):
    """The kind of response that the thread of a client receives next."""

    is_large_fetch = False


_receiving = _Receiving()


def _validate_response_size(protocol: KafkaProtocol, size: int) -> None:
    """Allow a response to a fetch to be larger than others.

    Raises:
        InvalidReceiveError: another response is too large.
    """
    if size > protocol._max_frame_size and protocol.in_flight_requests:
        request = protocol.in_flight_requests[0]
        asked = (request.request_api_key, request.request_api_version)
        _receiving.is_large_fetch = asked == (FETCH_API_KEY, FETCH_VERSION)
    if not _receiving.is_large_fetch:
        _original_validate_frame_size(protocol, size)


def _make_buffer(size: int) -> KafkaBytes | LargeFetchResponse:
    """Return the buffer for a response whose size was validated just before."""
    if _receiving.is_large_fetch:
        _receiving.is_large_fetch = False
        return LargeFetchResponse(size, FETCH_MAX_BYTES)
    return KafkaBytes(size)


def _append_within_limit(
    fetcher: Fetcher, drained: Any, part: Any, max_records: int, update_offsets: Any
) -> int:
    """Add records of a partition to the result of a poll, up to `POLL_MAX_BYTES`."""
    part.bytes_left = POLL_MAX_BYTES - sum(
        _memory_of(record) for records in drained.values() for record in records
    )
    if part.bytes_left <= 0:
        return max_records  # ends the poll; the next one returns the rest
    added: int = _original_append(fetcher, drained, part, max_records, update_offsets)
    return added


def _take_within_limit(part: Any, count: int | None = None) -> list[Any]:
    """Take the next records of a fetched partition, up to `part.bytes_left`."""
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
    """Estimate the memory that a record takes, in bytes."""
    sizes = (
        record.serialized_key_size,
        record.serialized_value_size,
        record.serialized_header_size,
        len(record.headers) * _HEADER_OVERHEAD_BYTES,
    )
    return sum(size for size in sizes if size > 0)
