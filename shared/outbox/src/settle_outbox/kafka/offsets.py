"""Committed offsets, each with the id of the topic that it belongs to.

An offset outlives its topic: after a topic is deleted and created again, the group's old offset
points into the new topic, and the records before it would never be read. The topic's id in the
commit's metadata shows which topic an offset belongs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka import ConsumerRebalanceListener, OffsetAndMetadata

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from kafka import TopicPartition
    from kafka.consumer.fetcher import ConsumerRecord


def offsets_of(
    batch: Mapping[TopicPartition, Sequence[ConsumerRecord]], topic_ids: Mapping[str, UUID | None]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return what to commit when a batch is done.

    Args:
        batch: the records of each partition, at least one.
        topic_ids: the ids that the consumer found before it read the records.
    """
    return {
        partition: OffsetAndMetadata(
            records[-1].offset + 1,
            str(topic_ids.get(partition.topic) or ""),
            records[-1].leader_epoch,
        )
        for partition, records in batch.items()
    }


def find_stale(
    committed: Mapping[TopicPartition, OffsetAndMetadata],
    topic_ids: Mapping[str, UUID | None],
    recreated: Collection[str] = (),
) -> list[TopicPartition]:
    """Return the partitions whose committed offset belongs to a topic that no longer exists.

    An offset without an id counts as right: an earlier release, an operator's tool or the embedded
    broker, which drops metadata, leaves such offsets.

    Args:
        committed: the group's offsets.
        topic_ids: the current ids.
        recreated: topics that this process saw being replaced. Their offsets without an id are
            stale.
    """
    stale = []
    for partition, offset in committed.items():
        topic_id = topic_ids.get(partition.topic)
        if topic_id is None or offset.metadata == str(topic_id):
            continue
        if offset.metadata or partition.topic in recreated:
            stale.append(partition)
    return stale


class OnAssignment(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """Calls a function with the partitions of each new assignment, before anything is fetched.

    An error of the function becomes a KafkaError of the poll.
    """

    def __init__(self, call: Callable[[Collection[TopicPartition]], None]) -> None:
        self._call = call

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Do nothing."""

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Call the function."""
        self._call(assigned)
