"""Partitions that wait at an offset, while the consumer goes on polling the others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from kafka import KafkaConsumer, TopicPartition
    from kafka.consumer.fetcher import ConsumerRecord

    from settle_outbox.consume.circuit_breaker import SubscriptionKey


class Pause(NamedTuple):
    """Where a partition waits.

    Args:
        offset: of the first record that is not applied.
        wait_s: how long, in seconds.
        detail: why, for the process's health.
        subscription: the stopped subscription that it waits for, if that is why.
    """

    offset: int
    wait_s: float
    detail: str
    subscription: SubscriptionKey | None


class PausedPartitions:
    """The partitions of one Kafka client that wait."""

    def __init__(self) -> None:
        self._until: dict[TopicPartition, tuple[float, Pause]] = {}

    def hold(self, consumer: KafkaConsumer, held: Mapping[TopicPartition, Pause]) -> None:
        """Go back to the first record of each partition that is not applied, and wait there."""
        for place, wait in held.items():
            consumer.seek(place, wait.offset)
            consumer.pause(place)
            self._until[place] = (time.monotonic() + wait.wait_s, wait)

    def pause_again(
        self, consumer: KafkaConsumer, batch: dict[TopicPartition, list[ConsumerRecord]]
    ) -> None:
        """Take records out of a batch whose partitions must wait longer, and hold these again.

        A rebalance gives a partition back unpaused, at the committed offset.
        """
        now = time.monotonic()
        for place in self._until.keys() & batch.keys():
            until, _ = self._until[place]
            if until > now:
                consumer.seek(place, batch.pop(place)[0].offset)
                consumer.pause(place)

    def resume_due(self, consumer: KafkaConsumer) -> None:
        """Read the partitions again that have waited long enough, or belong to others now."""
        now, assigned = time.monotonic(), consumer.assignment()
        for place, (until, _) in list(self._until.items()):
            if place not in assigned:
                del self._until[place]
            elif until <= now:
                self._resume(consumer, place)

    def release(self, consumer: KafkaConsumer, subscriptions: Collection[SubscriptionKey]) -> None:
        """Read the partitions again that wait for one of these subscriptions."""
        for place, (_, wait) in list(self._until.items()):
            if wait.subscription in subscriptions and place in consumer.assignment():
                self._resume(consumer, place)

    def subscriptions(self) -> set[SubscriptionKey]:
        """Return the stopped subscriptions that partitions wait for."""
        return {wait.subscription for _, wait in self._until.values() if wait.subscription}

    def details(self, *, stopped: bool) -> list[str]:
        """Return why partitions wait: for a stopped subscription, or for something else.

        A wait of 0 s ends with the next poll and is left out.
        """
        return sorted(
            {
                wait.detail
                for _, wait in self._until.values()
                if (wait.subscription is not None) is stopped and wait.wait_s > 0
            }
        )

    def _resume(self, consumer: KafkaConsumer, place: TopicPartition) -> None:
        consumer.resume(place)
        del self._until[place]
