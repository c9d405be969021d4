"""Committed offsets with the id of their topic.

If a topic is deleted and created again, the group keeps its offset of the old topic. The consumer
would skip the records before this offset in the new topic. So the metadata of each commit has the
topic's id.
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
    """Return the offsets to commit after a batch.

    Args:
        batch: the records of each partition, at least one.
        topic_ids: the topics' ids from before the records were read.
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
    """Return the partitions whose committed offset belongs to a deleted topic.

    An offset without an id counts as valid. Earlier releases, tools of Kafka and the embedded
    broker leave such offsets.

    Args:
        committed: the offsets of the group.
        topic_ids: the current ids of the topics.
        recreated: topics that were replaced while this process ran. Their offsets without an id
            are not valid.
    """
    stale = []
    for partition, offset in committed.items():
        topic_id = topic_ids.get(partition.topic)
        if topic_id is None or offset.metadata == str(topic_id):
            continue
        if offset.metadata or partition.topic in recreated:
            stale.append(partition)
    return stale


class OnRebalance(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """Calls a function at each step of a rebalance.

    If a function raises an error, the poll raises a KafkaError.

    Args:
        assigned: called with the partitions of each new assignment, before the first fetch.
        revoked: called before the consumer gives up all its partitions, or after it lost them.
    """

    def __init__(
        self, assigned: Callable[[Collection[TopicPartition]], None], revoked: Callable[[], None]
    ) -> None:
        self._assigned = assigned
        self._revoked = revoked

    def on_partitions_revoked(self, _: Collection[TopicPartition]) -> None:
        """Call the function. Both assignment strategies revoke all partitions (KIP-429, eager)."""
        self._revoked()

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Call the function."""
        self._assigned(assigned)
