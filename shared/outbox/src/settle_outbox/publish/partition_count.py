"""Add partitions to a service's topics and keep the order of events of each key.

A larger number of partitions moves keys to other partitions. A consumer could then read an event
before an earlier one of the same key, which is still unread in the old partition. So partitions are
added only while no relay sends, and after all consumer groups have read everything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError
from sqlalchemy import text

from settle_outbox.errors import SettleError
from settle_outbox.kafka.offsets import find_stale
from settle_outbox.kafka.topics import count_partitions, find_topics, is_embedded
from settle_outbox.publish.lost_topics import lock_topics, record_change
from settle_outbox.publish.pending import lock_all_shards
from settle_outbox.service import load_service, service_names
from settle_outbox.settings import read_consumer_group

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from uuid import UUID

    from kafka import KafkaAdminClient
    from sqlalchemy import Connection, Engine

    from settle_outbox.service import Service

# Maximum time in which relays send nothing while consumers read the rest.
READ_TIMEOUT_S = 15.0
READ_POLL_S = 0.5
CREATE_TIMEOUT_MS = 10_000

# A relay unlocks its shards after each batch, normally within 10 s. So a lock_timeout of 20 s is
# enough. If this command is frozen, PostgreSQL ends its transaction, and relays can send.
_BEGIN = text(
    """
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL lock_timeout = 20000;
    SET LOCAL idle_in_transaction_session_timeout = 60000
    """
)

log = structlog.get_logger(__name__)


class PartitionsError(SettleError):
    """No partitions can be added now."""


def add_partitions(engine: Engine, admin: KafkaAdminClient, service: Service, count: int) -> None:
    """Raise the number of partitions of all topics that a service publishes. The topics must exist.

    Relays may run. They send nothing until they have a new producer, which knows the new
    partitions. Events that are added during the change stay pending.

    Raises:
        PartitionsError: nothing was changed, for the reason in the message.
    """
    if is_embedded(admin):
        raise PartitionsError("The embedded broker cannot add partitions: use Apache Kafka.")
    with engine.connect() as connection:
        connection.execute(_BEGIN)
        lock_topics(connection)
        lock_all_shards(connection)
        topics = _topics_below(admin, service, count)
        if topics:
            _wait_until_read(connection, admin, topics, service.topic_prefix)
        # Do this even if no topic needs partitions: an earlier command may have been killed after
        # it added them and before its commit.
        record_change(connection, service.published_topics)
        try:
            if topics:
                admin.create_partitions(dict.fromkeys(topics, count), timeout_ms=CREATE_TIMEOUT_MS)
        finally:
            # Commit even after an error: the partitions may exist although the answer was lost.
            connection.commit()
    log.info("topic.partitions_raised", topics=topics, partitions=count)


def _topics_below(admin: KafkaAdminClient, service: Service, count: int) -> list[str]:
    partitions = count_partitions(admin, service.published_topics)
    for topic, existing in partitions.items():
        if existing > count:
            raise PartitionsError(
                f"{topic} has {existing} partitions, and Kafka cannot reduce them to {count}. "
                "Nothing was changed."
            )
    return [topic for topic, existing in partitions.items() if existing < count]


def _wait_until_read(
    connection: Connection, admin: KafkaAdminClient, topics: list[str], topic_prefix: str
) -> None:
    topic_ids = find_topics(admin, topics)
    deadline = time.monotonic() + READ_TIMEOUT_S
    while unread := _unread_or_error(admin, topic_ids, topic_prefix):
        if time.monotonic() > deadline:
            raise PartitionsError(
                f"{'; '.join(unread)}. Nothing was changed. Start the consumers, wait until they "
                "have read everything, and run the command again. If a group is no longer used, "
                "delete it: kafka-consumer-groups.sh --delete --group GROUP."
            )
        time.sleep(READ_POLL_S)
        connection.execute(text("SELECT 1"))  # fails if the locks were lost; restarts the idle time


def _unread_or_error(
    admin: KafkaAdminClient, topic_ids: Mapping[str, UUID | None], topic_prefix: str
) -> list[str]:
    try:
        return list(_find_unread(admin, topic_ids, topic_prefix))
    except KafkaError as error:
        if not error.retriable:
            raise
        # The error is temporary. For example, a coordinator or a leader is being elected.
        return [f"The groups' offsets cannot be read: {error}"]


def _find_unread(
    admin: KafkaAdminClient, topic_ids: Mapping[str, UUID | None], topic_prefix: str
) -> Iterator[str]:
    """Describe each consumer group that has unread records of these topics.

    A group counts if it has committed an offset of the topic, or if it belongs to an installed
    service that consumes the topic.
    """
    counts = count_partitions(admin, topic_ids)
    partitions = [TopicPartition(topic, n) for topic, count in counts.items() for n in range(count)]
    starts = _offsets(admin, partitions, OffsetSpec.EARLIEST)
    ends = _offsets(admin, partitions, OffsetSpec.LATEST)
    consumers = {
        read_consumer_group(name): load_service(name, topic_prefix).consumed_topics
        for name in service_names()
    }
    groups = {group["group_id"] for group in admin.list_groups()}
    for group in sorted(groups | consumers.keys()):
        committed = admin.list_group_offsets(group).get(group, {}) if group in groups else {}
        stale = find_stale(committed, topic_ids)
        read_to = {
            partition: offset.offset
            for partition, offset in committed.items()
            if offset.offset >= 0 and partition not in stale
        }
        for topic in topic_ids:
            reads_topic = any(partition.topic == topic for partition in committed)
            if not reads_topic and topic not in consumers.get(group, ()):
                continue
            unread = sum(
                max(0, ends[partition] - max(starts[partition], read_to.get(partition, 0)))
                for partition in partitions
                if partition.topic == topic
            )
            if unread:
                yield f"The group {group} has not read {unread} records of {topic}"


def _offsets(
    admin: KafkaAdminClient, partitions: Iterable[TopicPartition], spec: OffsetSpec
) -> dict[TopicPartition, int]:
    offsets = admin.list_partition_offsets(dict.fromkeys(partitions, spec))
    return {partition: offset.offset for partition, offset in offsets.items()}
