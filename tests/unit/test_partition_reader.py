"""Partitions that are paused, tried again or given up, without a broker."""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import patch

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import CorruptRecordError, UnknownError, UnsupportedCodecError

from settle_outbox.consume import partition_reader
from settle_outbox.consume.partition_reader import PartitionReader, Unreadable, UnreadableBatch
from settle_outbox.kafka.internals.unreadable import UnreadableBatchError, UnreadablePartitionError
from settle_outbox.kafka.record_stream import TooLarge, TooLargeError
from settle_outbox.log import VALUE_MAX

BAD, GOOD = TopicPartition("orders.events", 0), TopicPartition("orders.events", 1)
RECORD = ConsumerRecord(
    topic=GOOD.topic,
    partition=GOOD.partition,
    leader_epoch=0,
    offset=3,
    timestamp=0,
    timestamp_type=0,
    key=b"key",
    value=b"good",
    headers=[],
    checksum=None,
    serialized_key_size=3,
    serialized_value_size=4,
    serialized_header_size=-1,
)


class FakeConsumer:
    """A consumer whose partition `BAD` raises an error until it is paused or moved on."""

    def __init__(self, error: UnreadablePartitionError | None) -> None:
        self.error = error
        self.are_paused: set[TopicPartition] = set()
        self.partitions = {BAD, GOOD}
        self.sought: list[tuple[TopicPartition, int]] = []
        self.ends: dict[TopicPartition, int] = {}
        self.positions: dict[TopicPartition, int] = {}

    def assignment(self) -> set[TopicPartition]:
        return self.partitions

    def paused(self) -> set[TopicPartition]:
        return self.are_paused

    def highwater(self, partition: TopicPartition) -> int | None:
        return self.ends.get(partition)

    def position(self, partition: TopicPartition) -> int:
        return self.positions[partition]

    def pause(self, partition: TopicPartition) -> None:
        self.are_paused.add(partition)

    def resume(self, partition: TopicPartition) -> None:
        self.are_paused.discard(partition)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought.append((partition, offset))
        self.error = None

    def poll(self, **_: Any) -> dict[TopicPartition, list[ConsumerRecord]]:
        if self.error is not None and BAD not in self.are_paused:
            raise self.error
        return {GOOD: [RECORD]}


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[TopicPartition]:
    """Return the partitions whose connection to the leader was closed."""
    seen: list[TopicPartition] = []
    monkeypatch.setattr(
        partition_reader, "close_connection", lambda _, partition: seen.append(partition)
    )
    return seen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def corrupt() -> UnreadableBatchError:
    return UnreadableBatchError(BAD, 7, CorruptRecordError("crc"), last_offset=9, value=b"raw")


def missing_codec() -> UnreadableBatchError:
    return UnreadableBatchError(
        BAD, 7, UnsupportedCodecError("snappy"), last_offset=9, value=b"raw"
    )


def poll(reader: PartitionReader, consumer: FakeConsumer) -> Any:
    return reader.poll(consumer, timeout_ms=500)


def test_a_corrupt_batch_is_fetched_over_three_new_connections_and_then_given_up(
    closed: list[TopicPartition], clock: list[float]
) -> None:
    reader, consumer = PartitionReader(), FakeConsumer(corrupt())
    for _ in range(3):
        assert poll(reader, consumer) == {}
        assert poll(reader, consumer) == {GOOD: [RECORD]}  # the other partition continues
        clock[0] += 1

    given = poll(reader, consumer)

    assert closed == [BAD] * 3
    assert consumer.sought == [(BAD, 10)]
    ((record,),) = given.values()
    assert isinstance(record, UnreadableBatch)
    assert (record.offset, record.value) == (9, b"raw")
    assert "offsets 7 to 9" in record.detail
    assert reader.describe_paused() == ""
    assert consumer.are_paused == set()


def test_a_batch_that_can_be_read_after_all_is_not_given_up(
    closed: list[TopicPartition], clock: list[float]
) -> None:
    reader, consumer = PartitionReader(), FakeConsumer(corrupt())
    poll(reader, consumer)
    consumer.error = None
    clock[0] += 1
    poll(reader, consumer)
    clock[0] += partition_reader.READABLE_AFTER_S + 1

    poll(reader, consumer)

    assert len(closed) == 1
    assert reader.describe_paused() == ""


@pytest.mark.parametrize(
    "error", [missing_codec(), UnreadablePartitionError(BAD, 7, UnknownError("a bug"))]
)
def test_a_problem_other_than_corruption_pauses_the_partition_without_limit(
    error: UnreadablePartitionError, closed: list[TopicPartition], clock: list[float]
) -> None:
    reader, consumer = PartitionReader(), FakeConsumer(error)

    for _ in range(50):
        assert poll(reader, consumer) == {}
        assert poll(reader, consumer) == {GOOD: [RECORD]}
        clock[0] += partition_reader.DELAY_MAX_S

    assert "orders.events-0 at 7" in reader.describe_paused()
    assert (closed, consumer.sought) == ([], [])


def test_a_reader_that_cannot_wait_skips_batches_of_a_missing_codec(
    closed: list[TopicPartition], clock: list[float]
) -> None:
    reader, consumer = PartitionReader(skips_missing_codec=True), FakeConsumer(missing_codec())

    given = poll(reader, consumer)

    assert isinstance(given[BAD][0], UnreadableBatch)
    assert consumer.sought == [(BAD, 10)]


def test_a_partition_that_moved_to_another_consumer_is_forgotten(
    closed: list[TopicPartition], clock: list[float]
) -> None:
    reader, consumer = PartitionReader(), FakeConsumer(missing_codec())
    poll(reader, consumer)
    consumer.partitions = {GOOD}

    poll(reader, consumer)

    assert reader.describe_paused() == ""


def test_a_partition_that_returns_nothing_although_it_has_records_is_reported(
    clock: list[float],
) -> None:
    reader, consumer = PartitionReader(), FakeConsumer(None)
    consumer.ends = {BAD: 9, GOOD: 9}
    consumer.positions = {BAD: 7, GOOD: 9}
    poll(reader, consumer)
    clock[0] += partition_reader.STALLED_S - 1
    poll(reader, consumer)
    early = reader.describe_paused()
    clock[0] += 2
    poll(reader, consumer)

    late = reader.describe_paused()
    consumer.positions[BAD] = 8
    poll(reader, consumer)

    assert early == ""
    assert "orders.events-0 at 7" in late
    assert reader.describe_paused() == ""


def test_a_too_large_record_is_reported_with_its_size_and_digest() -> None:
    consumer = FakeConsumer(None)
    measured = RECORD._replace(key=None, value=TooLarge.measured(2_000_000, "ab" * 32))

    with patch.object(consumer, "poll", return_value={GOOD: [RECORD, measured]}):
        batch = PartitionReader().poll(consumer, timeout_ms=0)

    kept, too_large = batch[GOOD]
    assert kept is RECORD
    assert isinstance(too_large, Unreadable)
    assert (too_large.reason, too_large.offset, too_large.value) == ("too_large", 3, None)
    assert f"2000000 bytes with the SHA-256 {'ab' * 32}" in too_large.detail


@pytest.mark.parametrize("cause", [TooLargeError("it " * 100), CorruptRecordError("it " * 100)])
def test_a_log_line_contains_the_whole_digest(cause: Exception) -> None:
    measure = TooLarge.measured(10**10, "ab" * 32)
    error = UnreadableBatchError(BAD, 2**63 - 2, cause, last_offset=2**63 - 1, value=measure)
    consumer = FakeConsumer(None)
    record = RECORD._replace(offset=2**63 - 1, value=measure)

    with patch.object(consumer, "poll", return_value={GOOD: [record]}):
        (replaced_record,) = PartitionReader().poll(consumer, timeout_ms=0)[GOOD]
    replaced = [UnreadableBatch.of(error), replaced_record]

    assert all(f"SHA-256 {'ab' * 32}" in each.detail[:VALUE_MAX] for each in replaced)


def test_a_batch_that_is_too_large_is_not_fetched_again(closed: list[TopicPartition]) -> None:
    measure = TooLarge.measured(3_000, "ab" * 32)
    error = UnreadableBatchError(BAD, 7, TooLargeError("it"), last_offset=9, value=measure)
    consumer = FakeConsumer(error)

    batch = PartitionReader().poll(consumer, timeout_ms=0)

    (replaced,) = batch[BAD]
    assert isinstance(replaced, UnreadableBatch)
    assert (replaced.reason, replaced.offset, replaced.value) == ("too_large", 9, None)
    assert f"3000 bytes with the SHA-256 {'ab' * 32}" in replaced.detail
    assert consumer.sought == [(BAD, 10)]
    assert closed == []
