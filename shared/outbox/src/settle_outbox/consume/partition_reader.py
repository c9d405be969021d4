"""Polling a consumer so that trouble with one partition stops that partition alone.

A batch that is corrupt is fetched again over new connections, then handed on as a record that
holds its bytes. What is too large is handed on as a record that names its size and digest. A batch
whose codec is missing, and a partition that the broker cannot serve, are held back and tried again
for as long as it takes.
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

# A fetch over a new connection cures a damaged connection, or a memory error of the broker.
REFETCH_LIMIT = 3
_DELAY_FIRST_S = 0.1
DELAY_MAX_S = 5.0
# A partition that gives nothing for this time, although it has more, is reported.
STALLED_S = 60.0
# A partition that was tried again and has not failed for this time is sound, and may be empty.
SOUND_AFTER_S = 5.0

# The reason of a dead letter.
TOO_LARGE = "too_large"

Batch = dict["TopicPartition", list[ConsumerRecord]]


class Refused(ConsumerRecord):  # type: ignore[misc]  # kafka-python is untyped
    """Stands for what cannot be read.

    Args:
        reason: of its dead letter.
        detail: a sentence.
    """

    reason: str
    detail: str


class TooLargeRecord(Refused):
    """A record that is too large, without its key, value and headers."""

    @classmethod
    def of(cls, record: ConsumerRecord) -> TooLargeRecord:
        """Return what stands for a record whose value is a `TooLarge`."""
        found = cls(*record._replace(value=None))
        found.reason = TOO_LARGE
        found.detail = (
            f"The record at offset {record.offset} has {record.value.describe()}."
            f" At most {RECORD_MAX_BYTES} bytes and {HEADERS_MAX} headers are read."
        )
        return found


class UnreadableBatch(Refused):
    """A batch that cannot be read, in the place of its records.

    Its value is the batch as the broker sent it, or None if that is too large. Its offset is the
    batch's last one: committing it skips the batch.
    """

    @classmethod
    def of(cls, error: UnreadableBatchError) -> UnreadableBatch:
        """Return the record for a batch."""
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
        # The digest stands before the reason: a long value is cut in a log line.
        measure = f", {error.value.describe()}," if isinstance(error.value, TooLarge) else ""
        record.detail = (
            f"The batch with offsets {error.offset} to {error.last_offset}{measure} cannot be read:"
            f" {error.reason}"
        )
        return record


@dataclass(slots=True)
class _Trouble:
    """A partition that could not be read.

    Args:
        offset: where.
        reason: why.
        attempts: how often it was tried.
        retry_at: when it is tried again, on the monotonic clock.
    """

    offset: int
    reason: str
    attempts: int = 0
    retry_at: float = 0.0


class PartitionReader:
    """Polls a consumer; partitions that cannot be read are paused and tried again.

    Args:
        skips_missing_codec: whether to hand on a batch whose codec is missing as unreadable,
            rather than to hold its partition back.
    """

    def __init__(self, *, skips_missing_codec: bool = False) -> None:
        self._skips_missing_codec = skips_missing_codec
        self._troubles: dict[TopicPartition, _Trouble] = {}
        # Where each partition stands that has more to read, and since when.
        self._positions: dict[TopicPartition, tuple[int, float]] = {}

    def poll(
        self, consumer: KafkaConsumer, *, timeout_ms: int, max_records: int | None = None
    ) -> Batch:
        """Return records, among them a `Refused` for each record or batch that is given up.

        Raises:
            KafkaError: the broker or the group is in trouble, not one partition.
        """
        timeout_ms = self._resume_due(consumer, timeout_ms)
        try:
            batch: Batch = consumer.poll(timeout_ms=timeout_ms, max_records=max_records)
        except UnreadableBatchError as error:
            return self._fetch_again_or_give_up(consumer, error)
        except UnreadablePartitionError as error:
            self._hold(consumer, error)
            return {}
        for partition in self._troubles.keys() & batch.keys():
            self._forget(partition)
        self._record_positions(consumer)
        return {
            partition: [
                TooLargeRecord.of(record) if isinstance(record.value, TooLarge) else record
                for record in records
            ]
            for partition, records in batch.items()
        }

    def describe_paused(self) -> str:
        """Return which partitions stand still and why; empty when all can be read."""
        stalled_since = time.monotonic() - STALLED_S
        found = {
            partition: (position, "the broker gives nothing: is a transaction open there?")
            for partition, (position, since) in self._positions.items()
            if since < stalled_since
        } | {
            partition: (trouble.offset, trouble.reason)
            for partition, trouble in self._troubles.items()
        }
        return "; ".join(
            f"cannot read {partition.topic}-{partition.partition} at {offset} ({reason})"
            for partition, (offset, reason) in sorted(found.items())
        )

    def _record_positions(self, consumer: KafkaConsumer) -> None:
        noted, now = self._positions, time.monotonic()
        self._positions = {}
        for partition in consumer.assignment() - consumer.paused():
            end = consumer.highwater(partition)
            position = None if end is None else consumer.position(partition)
            if position is not None and position < end:
                before, since = noted.get(partition, (position, now))
                self._positions[partition] = (position, since if before == position else now)

    def _resume_due(self, consumer: KafkaConsumer, timeout_ms: int) -> int:
        """Resume partitions whose time has come. Return how long the poll may take."""
        now = time.monotonic()
        assigned = consumer.assignment()
        for partition, trouble in list(self._troubles.items()):
            if partition not in assigned:
                del self._troubles[partition]  # another consumer reads it
            elif now < trouble.retry_at:
                timeout_ms = min(timeout_ms, int((trouble.retry_at - now) * 1000) + 1)
            elif now < trouble.retry_at + SOUND_AFTER_S:
                consumer.resume(partition)
            else:
                self._forget(partition)
        return timeout_ms

    def _fetch_again_or_give_up(
        self, consumer: KafkaConsumer, error: UnreadableBatchError
    ) -> Batch:
        attempts = self._hold(consumer, error)
        if error.lacks_codec:
            if not self._skips_missing_codec:
                return {}
        elif attempts <= REFETCH_LIMIT and not error.is_too_large:
            close_connection(consumer, error.partition)
            return {}
        consumer.seek(error.partition, error.last_offset + 1)
        consumer.resume(error.partition)
        self._forget(error.partition)
        return {error.partition: [UnreadableBatch.of(error)]}

    def _hold(self, consumer: KafkaConsumer, error: UnreadablePartitionError) -> int:
        """Pause a partition until its next attempt. Return how many have failed."""
        partition = error.partition
        trouble = self._troubles.get(partition)
        if trouble is None or trouble.offset != error.offset:
            trouble = self._troubles[partition] = _Trouble(error.offset, error.reason)
            log.error("consumer.partition_held", reason=error.reason, **_place(partition, trouble))
        delay_s = min(DELAY_MAX_S, _DELAY_FIRST_S * 2 ** min(trouble.attempts, 10))
        trouble.reason = error.reason
        trouble.attempts += 1
        trouble.retry_at = time.monotonic() + delay_s
        consumer.pause(partition)
        return trouble.attempts

    def _forget(self, partition: TopicPartition) -> None:
        trouble = self._troubles.pop(partition)
        log.info(
            "consumer.partition_resumed", attempts=trouble.attempts, **_place(partition, trouble)
        )


def _place(partition: TopicPartition, trouble: _Trouble) -> dict[str, Any]:
    return {
        "topic": partition.topic,
        "partition": partition.partition,
        "offset": trouble.offset,
    }
