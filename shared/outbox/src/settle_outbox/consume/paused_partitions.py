"""Partitions that wait at an offset while the consumer polls the others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from kafka import KafkaConsumer, TopicPartition
    from kafka.consumer.fetcher import ConsumerRecord

    from settle_outbox.consume.circuit_breaker import SubscriptionKey


class Pause(NamedTuple):
    """Where, how long and why a partition waits.

    Args:
        offset: of the first record that is not applied.
        wait_s: how long, in seconds.
        detail: the reason, for the health file.
        subscription: the stopped subscription, if that is the reason.
    """

    offset: int
    wait_s: float
    detail: str
    subscription: SubscriptionKey | None


class PausedPartitions:
    """The partitions of a Kafka consumer that wait."""

    def __init__(self) -> None:
        # Each pause with the time of its end, by the monotonic clock.
        self._pauses: dict[TopicPartition, tuple[float, Pause]] = {}

    def pause(self, consumer: KafkaConsumer, pauses: Mapping[TopicPartition, Pause]) -> None:
        """Seek each partition to its first record that is not applied, and pause it."""
        for partition, pause in pauses.items():
            consumer.seek(partition, pause.offset)
            consumer.pause(partition)
            self._pauses[partition] = (time.monotonic() + pause.wait_s, pause)

    def pause_again(
        self, consumer: KafkaConsumer, batch: dict[TopicPartition, list[ConsumerRecord]]
    ) -> None:
        """Remove partitions that must still wait from a batch, and pause them again.

        After a rebalance, kafka-python reads such a partition again, from the committed offset.
        """
        now = time.monotonic()
        for partition in self._pauses.keys() & batch.keys():
            until, _ = self._pauses[partition]
            if until > now:
                consumer.seek(partition, batch.pop(partition)[0].offset)
                consumer.pause(partition)

    def resume_due(self, consumer: KafkaConsumer) -> None:
        """Resume partitions whose wait is over. Forget those that other consumers have now."""
        now, assigned = time.monotonic(), consumer.assignment()
        for partition, (until, _) in list(self._pauses.items()):
            if partition not in assigned:
                del self._pauses[partition]
            elif until <= now:
                self._resume(consumer, partition)

    def resume(self, consumer: KafkaConsumer, subscriptions: Collection[SubscriptionKey]) -> None:
        """Resume the partitions that wait for one of these subscriptions."""
        for partition, (_, pause) in list(self._pauses.items()):
            if pause.subscription in subscriptions and partition in consumer.assignment():
                self._resume(consumer, partition)

    def subscriptions(self) -> set[SubscriptionKey]:
        """Return the stopped subscriptions for which partitions wait."""
        return {pause.subscription for _, pause in self._pauses.values() if pause.subscription}

    def details(self, *, stopped: bool) -> list[str]:
        """Return the reasons of the waits, without waits of 0 s, which end before the next poll.

        Args:
            stopped: True for the waits for stopped subscriptions, False for all other waits.
        """
        return sorted(
            {
                pause.detail
                for _, pause in self._pauses.values()
                if (pause.subscription is not None) is stopped and pause.wait_s > 0
            }
        )

    def _resume(self, consumer: KafkaConsumer, partition: TopicPartition) -> None:
        consumer.resume(partition)
        del self._pauses[partition]
