"""The topics that a consumer reads: their ids, offsets and retention."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
from kafka import OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResourceType, OffsetSpec
from kafka.errors import BrokerResponseError, GroupIdNotFoundError, NoError
from sqlalchemy import text

from settle_outbox.kafka.offsets import find_stale
from settle_outbox.kafka.topics import (
    count_partitions,
    find_topics,
    read_settings_of,
    retention_problem,
)

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from kafka import KafkaAdminClient, KafkaConsumer
    from sqlalchemy import Engine

    from settle_outbox.service import Service
    from settle_outbox.settings import Settings

log = structlog.get_logger(__name__)

CHECK_INTERVAL_S = 5.0

_HAS_INBOX = text("SELECT EXISTS (SELECT FROM inbox)")


class ConsumedTopics:
    """Detects changes of the topics that a service consumes.

    Attributes:
        ids: the broker's id of each topic when the consumer joined its group.
        missing: the topics that do not exist.
    """

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._settings = settings
        self.ids: dict[str, UUID | None] = {}
        self.missing: list[str] = []
        self._last_ids: dict[str, UUID | None] = {}
        self._replaced: set[str] = set()
        self._were_missing: set[str] = set()
        self._checked_at = 0.0

    def find(self, admin: KafkaAdminClient) -> bool:
        """Read the ids of the topics before a join. Return whether any topic exists.

        Raises:
            KafkaError: the broker cannot be reached.
        """
        self.ids = self._find(admin)
        return bool(self.ids)

    @property
    def is_due(self) -> bool:
        """Whether it is time to check for a change."""
        return time.monotonic() - self._checked_at >= CHECK_INTERVAL_S

    def have_changed(self, admin: KafkaAdminClient) -> bool:
        """Return whether a topic was replaced, deleted or created since `find`.

        Raises:
            KafkaError: the broker cannot be reached.
        """
        return self._find(admin) != self.ids

    def skip_stale_offsets(
        self,
        admin: KafkaAdminClient,
        consumer: KafkaConsumer,
        assigned: Collection[TopicPartition],
    ) -> None:
        """Seek partitions to their start if their committed offset belongs to a deleted topic.

        Raises:
            KafkaError: the broker cannot be reached.
        """
        group = self._settings.consumer_group
        committed = admin.list_group_offsets({group: list(assigned)})
        stale = find_stale(committed.get(group, {}), self.ids, self._replaced)
        if stale:
            consumer.seek_to_beginning(*stale)
            log.info(
                "consumer.stale_offsets_skipped",
                partitions=sorted(
                    f"{partition.topic}[{partition.partition}]" for partition in stale
                ),
            )

    def start_new_group_at_end(self, admin: KafkaAdminClient, engine: Engine) -> None:
        """Commit the end of each partition for a group that has never read anything.

        Kafka's ``auto.offset.reset`` is not used. It would also skip records in new partitions, and
        all unread records after an offset has expired. A service whose inbox has events is not new,
        even if Kafka has no offsets of its group. A topic that was missing before is left out: all
        its events are newer than the group, so they are read.

        Raises:
            KafkaError: the broker cannot be reached, or another consumer joined the group first.
        """
        group = self._settings.consumer_group
        with engine.connect() as connection:
            if connection.execute(_HAS_INBOX).scalar_one():
                return
        try:
            committed = admin.list_group_offsets(group).get(group, {})
        except GroupIdNotFoundError:
            committed = {}
        if any(offset.offset >= 0 for offset in committed.values()):
            return
        counts = count_partitions(admin, self.ids.keys() - self._were_missing)
        ends = admin.list_partition_offsets(
            {
                TopicPartition(topic, number): OffsetSpec.LATEST
                for topic, count in counts.items()
                for number in range(count)
            }
        )
        results = admin.alter_group_offsets(
            group,
            {
                partition: OffsetAndMetadata(end.offset, str(self.ids[partition.topic] or ""), -1)
                for partition, end in ends.items()
            },
        )
        for partition, error in results.items():
            if error is not NoError:
                raise error(f"the start of {group} in {partition.topic}[{partition.partition}]")
        log.info("consumer.group_starts_at_end", group=group, topics=sorted(counts))

    def check_retention(self, admin: KafkaAdminClient) -> None:
        """Log a warning for topics that keep events longer than the inbox remembers them.

        Raises:
            KafkaError: the broker cannot be reached.
        """
        for topic in self.ids:
            try:
                topic_settings = read_settings_of(admin, ConfigResourceType.TOPIC, topic)
            except BrokerResponseError as error:
                # The right to read settings may be missing. The horizon still protects the inbox.
                log.debug("consumer.retention_unknown", topic=topic, error=str(error))
                continue
            reason = retention_problem(topic_settings, self._settings)
            if reason is not None:
                log.warning("consumer.retention_too_long", topic=topic, reason=reason)

    def _find(self, admin: KafkaAdminClient) -> dict[str, UUID | None]:
        """Return the ids of the existing topics. Log the changes since the last call."""
        self._checked_at = time.monotonic()
        wanted = self._service.consumed_topics
        ids = find_topics(admin, wanted)
        missing = [topic for topic in wanted if topic not in ids]
        if missing and missing != self.missing:
            log.info("consumer.topics_missing", topics=missing)
        self.missing = missing
        self._were_missing |= set(missing)
        replaced = {topic for topic in ids if self._last_ids.get(topic, ids[topic]) != ids[topic]}
        if replaced:
            log.warning("consumer.topic_lost", topics=sorted(replaced), action="join again")
        self._replaced |= replaced
        self._last_ids |= ids
        return ids
