"""Poll a consumer so that a problem with one partition affects only that partition.

A corrupt batch is fetched again over new connections. If that does not help, a record with the
batch's bytes takes its place. A record or batch that is too large is replaced by a record with its
size and digest. If a codec is missing or the broker cannot serve a partition, the partition is
paused and tried again without limit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from kafka.consumer.fetcher import ConsumerRecord

from settle_outbox.kafka.internals.consumer import close_connection
from settle_outbox.kafka.internals.unreadable import UnreadableBatchError, UnreadablePartitionError
from settle_outbox.kafka.record_stream import HEADERS_MAX, RECORD_MAX_BYTES, TooLarge

if TYPE_CHECKING:
    from kafka import KafkaConsumer, TopicPartition

log = structlog.get_logger(__name__)

# A new fetch helps after a damaged connection or a memory error of the broker.
REFETCH_LIMIT = 3
_DELAY_FIRST_S = 0.1
DELAY_MAX_S = 5.0
# A partition that has unread records but returns none for this time is reported.
STALLED_S = 60.0
# A partition that was tried again and does not fail for this time counts as readable.
READABLE_AFTER_S = 5.0

# The reason of a dead letter.
TOO_LARGE = "too_large"

Batch = dict["TopicPartition", list[ConsumerRecord]]


class Unreadable(ConsumerRecord):  # type: ignore[misc]  # kafka-python is untyped
    """A record in the place of something that cannot be read, with the texts of its dead letter."""

    reason: str
    detail: str


def _without_value(record: ConsumerRecord) -> Unreadable:
    """Return the replacement of a record whose value is a `TooLarge`."""
    replacement = Unreadable(*record._replace(value=None))
    replacement.reason = TOO_LARGE
    replacement.detail = (
        f"The record at offset {record.offset} has {record.value.describe()}."
        f" At most {RECORD_MAX_BYTES} bytes and {HEADERS_MAX} headers are read."
    )
    return replacement


class UnreadableBatch(Unreadable):
    """A record in the place of a batch that cannot be read.

    Its value is the batch as the broker sent it, or None if that is too large. Its offset is the
    last one of the batch, so a commit after this record skips the batch.
    """

    @classmethod
    def of(cls, error: UnreadableBatchError) -> UnreadableBatch:
        """Return the replacement of a batch."""
        is_kept = not isinstance(error.value, TooLarge)
        record = cls(
            topic=error.partition.topic,
            partition=error.partition.partition,
            leader_epoch=-1,
            offset=error.last_offset,
            timestamp=-1,
            timestamp_type=0,
            key=None,
            value=error.value if is_kept else None,
            headers=[],
            checksum=None,
            serialized_key_size=-1,
            serialized_value_size=len(error.value) if is_kept else -1,
            serialized_header_size=-1,
        )
        record.reason = TOO_LARGE if error.is_too_large else "unreadable_batch"
        # Put the digest before the reason, because log lines cut long values.
        measure = f", {error.value.describe()}," if isinstance(error.value, TooLarge) else ""
        record.detail = (
            f"The batch with offsets {error.offset} to {error.last_offset}{measure} cannot be read:"
            f" {error.reason}"
        )
        return record


@dataclass(slots=True)
class _ReadFailure:
    """The failed attempts to read a partition at an offset, with the reason of the last one."""

    offset: int
    reason: str
    attempts: int = 0
    retry_at: float = 0.0  # by the monotonic clock


class PartitionReader:
    """Polls a consumer. It pauses partitions that cannot be read, and tries them again.

    Args:
        skips_missing_codec: whether to return an `UnreadableBatch` for a batch whose codec is
            missing, instead of pausing its partition.
    """

    def __init__(self, *, skips_missing_codec: bool = False) -> None:
        self._skips_missing_codec = skips_missing_codec
        self._failures: dict[TopicPartition, _ReadFailure] = {}
        # For each partition with unread records: the next offset, and since when it is the same.
        self._positions: dict[TopicPartition, tuple[int, float]] = {}

    def poll(
        self, consumer: KafkaConsumer, *, timeout_ms: int, max_records: int | None = None
    ) -> Batch:
        """Return records, with an `Unreadable` in the place of what cannot be read.

        Raises:
            KafkaError: the broker or the group failed, and not only one partition.
        """
        timeout_ms = self._resume_due(consumer, timeout_ms)
        try:
            batch: Batch = consumer.poll(timeout_ms=timeout_ms, max_records=max_records)
        except UnreadableBatchError as error:
            return self._fetch_again_or_replace(consumer, error)
        except UnreadablePartitionError as error:
            self._pause(consumer, error)
            return {}
        for partition in self._failures.keys() & batch.keys():
            self._recovered(partition)
        self._record_positions(consumer)
        return {
            partition: [
                _without_value(record) if isinstance(record.value, TooLarge) else record
                for record in records
            ]
            for partition, records in batch.items()
        }

    def describe_paused(self) -> str:
        """Return which partitions cannot be read and why, or "" if all can."""
        stalled_since = time.monotonic() - STALLED_S
        reasons = {
            partition: (position, "the broker gives nothing: is a transaction open there?")
            for partition, (position, since) in self._positions.items()
            if since < stalled_since
        } | {
            partition: (failure.offset, failure.reason)
            for partition, failure in self._failures.items()
        }
        return "; ".join(
            f"cannot read {partition.topic}-{partition.partition} at {offset} ({reason})"
            for partition, (offset, reason) in sorted(reasons.items())
        )

    def _record_positions(self, consumer: KafkaConsumer) -> None:
        last_positions, now = self._positions, time.monotonic()
        self._positions = {}
        for partition in consumer.assignment() - consumer.paused():
            end = consumer.highwater(partition)
            position = None if end is None else consumer.position(partition)
            if position is not None and position < end:
                last, since = last_positions.get(partition, (position, now))
                self._positions[partition] = (position, since if last == position else now)

    def _resume_due(self, consumer: KafkaConsumer, timeout_ms: int) -> int:
        """Resume partitions that are due. Return `timeout_ms`, or less if one is due earlier."""
        now = time.monotonic()
        assigned = consumer.assignment()
        for partition, failure in list(self._failures.items()):
            if partition not in assigned:
                del self._failures[partition]  # another consumer reads it
            elif now < failure.retry_at:
                timeout_ms = min(timeout_ms, int((failure.retry_at - now) * 1000) + 1)
            elif now < failure.retry_at + READABLE_AFTER_S:
                consumer.resume(partition)
            else:
                self._recovered(partition)
        return timeout_ms

    def _fetch_again_or_replace(
        self, consumer: KafkaConsumer, error: UnreadableBatchError
    ) -> Batch:
        attempts = self._pause(consumer, error)
        if error.lacks_codec:
            if not self._skips_missing_codec:
                return {}
        elif attempts <= REFETCH_LIMIT and not error.is_too_large:
            close_connection(consumer, error.partition)
            return {}
        consumer.seek(error.partition, error.last_offset + 1)
        consumer.resume(error.partition)
        self._recovered(error.partition)
        return {error.partition: [UnreadableBatch.of(error)]}

    def _pause(self, consumer: KafkaConsumer, error: UnreadablePartitionError) -> int:
        """Pause a partition until its next attempt. Return the number of failed attempts."""
        partition = error.partition
        failure = self._failures.get(partition)
        if failure is None or failure.offset != error.offset:
            failure = self._failures[partition] = _ReadFailure(error.offset, error.reason)
            log.error("consumer.partition_held", reason=error.reason, **_place(partition, failure))
        delay_s = min(DELAY_MAX_S, _DELAY_FIRST_S * 2 ** min(failure.attempts, 10))
        failure.reason = error.reason
        failure.attempts += 1
        failure.retry_at = time.monotonic() + delay_s
        consumer.pause(partition)
        return failure.attempts

    def _recovered(self, partition: TopicPartition) -> None:
        failure = self._failures.pop(partition)
        log.info(
            "consumer.partition_resumed", attempts=failure.attempts, **_place(partition, failure)
        )


def _place(partition: TopicPartition, failure: _ReadFailure) -> dict[str, Any]:
    return {
        "topic": partition.topic,
        "partition": partition.partition,
        "offset": failure.offset,
    }
