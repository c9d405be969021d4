"""When a paused partition continues, and at which offset."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kafka import TopicPartition

from settle_outbox.consume.paused_partitions import Pause, PausedPartitions
from support.number_service import number_record

if TYPE_CHECKING:
    from kafka.consumer.fetcher import ConsumerRecord

HELD, OTHER = TopicPartition("numbers.events", 0), TopicPartition("numbers.events", 1)


class FakeConsumer:
    """The positions and pauses of a Kafka client."""

    def __init__(self) -> None:
        self.assigned = {HELD, OTHER}
        self.paused: set[TopicPartition] = set()
        self.positions: dict[TopicPartition, int] = {}

    def assignment(self) -> set[TopicPartition]:
        return self.assigned

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.positions[place] = offset

    def pause(self, place: TopicPartition) -> None:
        self.paused.add(place)

    def resume(self, place: TopicPartition) -> None:
        self.paused.remove(place)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(
        "settle_outbox.consume.paused_partitions.time", SimpleNamespace(monotonic=lambda: fake.now)
    )
    return fake


def wait(offset: int = 7, subscription: tuple[str, str] | None = None) -> Pause:
    """Return a pause of 5 seconds."""
    return Pause(offset, 5.0, "it waits", subscription)


def batch(place: TopicPartition, *offsets: int) -> dict[TopicPartition, list[ConsumerRecord]]:
    return {place: [number_record(offset, partition=place.partition) for offset in offsets]}


def test_a_partition_is_read_again_from_its_offset_when_its_time_has_come(clock: Any) -> None:
    consumer, paused = FakeConsumer(), PausedPartitions()

    paused.pause(consumer, {HELD: wait()})
    assert (consumer.positions, consumer.paused) == ({HELD: 7}, {HELD})
    clock.now += 4.9
    paused.resume_due(consumer)
    assert consumer.paused == {HELD}
    clock.now += 0.2
    paused.resume_due(consumer)

    assert consumer.paused == set()
    assert paused.details(stopped=False) == []


def test_a_rebalance_does_not_shorten_the_wait(clock: Any) -> None:
    consumer, paused = FakeConsumer(), PausedPartitions()
    paused.pause(consumer, {HELD: wait()})
    consumer.paused.clear()  # a rebalance returns the partition without the pause
    records = batch(HELD, 7, 8) | batch(OTHER, 3)

    paused.pause_again(consumer, records)

    assert records.keys() == {OTHER}
    assert (consumer.positions, consumer.paused) == ({HELD: 7}, {HELD})


def test_a_partition_of_another_consumer_is_forgotten(clock: Any) -> None:
    consumer, paused = FakeConsumer(), PausedPartitions()
    paused.pause(consumer, {HELD: wait()})
    consumer.assigned = {OTHER}

    paused.resume_due(consumer)

    assert paused.details(stopped=False) == []


def test_a_resumed_subscription_releases_only_its_partitions(clock: Any) -> None:
    consumer, paused = FakeConsumer(), PausedPartitions()
    key = ("numbers.events", "number")
    paused.pause(consumer, {HELD: wait(subscription=key), OTHER: wait()})
    assert paused.subscriptions() == {key}

    paused.resume(consumer, {key})

    assert consumer.paused == {OTHER}
    assert paused.details(stopped=True) == []
