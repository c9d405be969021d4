"""Add partitions to a service's topics without breaking the order of any key.

More partitions move keys. An event of a key may then be read before an earlier event of the same
key that is still unread in the old partition. So partitions are added only while no relay sends
and after every consumer group has read the topic to its end.
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

# How long delivery may stand still while consumers read the rest.
READ_TIMEOUT_S = 15.0
READ_POLL_S = 0.5
CREATE_TIMEOUT_MS = 10_000

# A relay gives a shard back after a batch, in under 10 s. A frozen command loses its locks.
_BEGIN = text(
    """
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL lock_timeout = 20000;
    SET LOCAL idle_in_transaction_session_timeout = 60000
    """
)

log = structlog.get_logger(__name__)


class PartitionsError(SettleError):
    """The partitions cannot be raised now."""


def add_partitions(engine: Engine, admin: KafkaAdminClient, service: Service, count: int) -> None:
    """Give each topic that a service publishes `count` partitions.

    Events that are added meanwhile wait in the outbox. Relays may run: those that are connected
    send nothing more until they have made a new producer, which knows the new partitions.

    Args:
        engine: of the service's database.
        admin: of its broker; the topics exist.
        service: whose topics.
        count: of partitions.

    Raises:
        PartitionsError: what is in the way; nothing was changed.
    """
    if is_embedded(admin):
        raise PartitionsError("The embedded broker cannot add partitions: use Apache Kafka.")
    with engine.connect() as connection:
        connection.execute(_BEGIN)
        lock_topics(connection)
        lock_all_shards(connection)
        lower = _find_lower(admin, service, count)
        if lower:
            _wait_until_read(connection, admin, lower, service.topic_prefix)
        # Also when there is nothing to add: a command before this one may have been killed.
        record_change(connection, service.published_topics)
        try:
            if lower:
                admin.create_partitions(dict.fromkeys(lower, count), timeout_ms=CREATE_TIMEOUT_MS)
        finally:
            # Also when the answer was lost: the partitions may be there.
            connection.commit()
    log.info("topic.partitions_raised", topics=lower, partitions=count)


def _find_lower(admin: KafkaAdminClient, service: Service, count: int) -> list[str]:
    partitions = count_partitions(admin, service.published_topics)
    for topic, existing in partitions.items():
        if existing > count:
            raise PartitionsError(
                f"{topic} has {existing} partitions, and Kafka cannot remove any: {count} is too "
                "few. Nothing was changed."
            )
    return [topic for topic, existing in partitions.items() if existing < count]


def _wait_until_read(
    connection: Connection, admin: KafkaAdminClient, topics: list[str], topic_prefix: str
) -> None:
    ids = find_topics(admin, topics)
    deadline = time.monotonic() + READ_TIMEOUT_S
    while unread := _what_is_unread(admin, ids, topic_prefix):
        if time.monotonic() > deadline:
            raise PartitionsError(
                f"{'; '.join(unread)}. Nothing was changed. Start the consumers, wait until they "
                "have read everything, and run the command again. If a group is no longer used, "
                "delete it: kafka-consumer-groups.sh --delete --group GROUP."
            )
        time.sleep(READ_POLL_S)
        connection.execute(text("SELECT 1"))  # it still holds the shards, and is not idle


def _what_is_unread(
    admin: KafkaAdminClient, ids: Mapping[str, UUID | None], topic_prefix: str
) -> list[str]:
    try:
        return list(_find_unread(admin, ids, topic_prefix))
    except KafkaError as error:
        if not error.retriable:
            raise
        # A coordinator or a leader has just been elected.
        return [f"The groups' offsets cannot be read: {error}"]


def _find_unread(
    admin: KafkaAdminClient, ids: Mapping[str, UUID | None], topic_prefix: str
) -> Iterator[str]:
    """Describe each group that has unread records of these topics.

    A group counts if it has ever committed an offset there, or if it belongs to an installed
    service that consumes the topic.
    """
    counts = count_partitions(admin, ids)
    partitions = [TopicPartition(topic, n) for topic, count in counts.items() for n in range(count)]
    starts = _offsets(admin, partitions, OffsetSpec.EARLIEST)
    ends = _offsets(admin, partitions, OffsetSpec.LATEST)
    consumers = {
        read_consumer_group(name): set(
            load_service(name).with_topic_prefix(topic_prefix).consumed_topics
        )
        for name in service_names()
    }
    groups = {group["group_id"] for group in admin.list_groups()}
    for group in sorted(groups | consumers.keys()):
        found = admin.list_group_offsets(group).get(group, {}) if group in groups else {}
        stale = find_stale(found, ids)
        done = {
            partition: offset.offset
            for partition, offset in found.items()
            if offset.offset >= 0 and partition not in stale
        }
        for topic in ids:
            committed = any(partition.topic == topic for partition in found)
            if not committed and topic not in consumers.get(group, ()):
                continue
            unread = sum(
                max(0, ends[partition] - max(starts[partition], done.get(partition, 0)))
                for partition in partitions
                if partition.topic == topic
            )
            if unread:
                yield f"The group {group} has not read {unread} records of {topic}"


def _offsets(
    admin: KafkaAdminClient, partitions: Iterable[TopicPartition], spec: OffsetSpec
) -> dict[TopicPartition, int]:
    found = admin.list_partition_offsets(dict.fromkeys(partitions, spec))
    return {partition: each.offset for partition, each in found.items()}
