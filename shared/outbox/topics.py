"""Topics are created here, with an explicit partition count, and never by a first write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka import KafkaAdminClient

    from shared.settings import Settings

log = structlog.get_logger(__name__)

_UNKNOWN_TOPIC = 3  # UNKNOWN_TOPIC_OR_PARTITION
_NO_ID = UUID(int=0)


def ensure_topics(
    admin: KafkaAdminClient, topics: Iterable[str], settings: Settings
) -> dict[str, UUID | None]:
    """Create those of the topics that are missing.

    Returns:
        The broker's id of each topic (KIP-516), which another topic of that name will not have;
        None from a broker that gives no ids.

    Raises:
        KafkaError: the broker cannot be reached, or refuses.
    """
    wanted = sorted(topics)
    found = _describe(admin, wanted)
    missing = [topic for topic in wanted if topic not in found]
    for topic in missing:
        _create(admin, topic, settings)
    if missing:
        # Also for those that another was faster to create: they exist before they can be seen.
        admin.wait_for_topics(missing)
        found = _describe(admin, wanted)
    return {topic: _id_of(found[topic]) for topic in wanted if topic in found}


def _describe(admin: KafkaAdminClient, topics: list[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for description in admin.describe_topics(topics):
        code = description["error_code"]
        if code == 0:
            found[description["name"]] = description
        elif code != _UNKNOWN_TOPIC:
            raise for_code(code)(description["name"])
    return found


def _create(admin: KafkaAdminClient, topic: str, settings: Settings) -> None:
    try:
        admin.create_topics(
            {
                topic: {
                    "num_partitions": settings.topic_partitions,
                    "replication_factor": settings.topic_replication,
                    "configs": {"retention.ms": str(settings.topic_retention_s * 1000)},
                }
            },
            timeout_ms=3_000,
        )
    except TopicAlreadyExistsError:
        return  # another relay or consumer was faster
    log.info("topic.created", topic=topic, partitions=settings.topic_partitions)


def _id_of(description: dict[str, Any]) -> UUID | None:
    topic_id = description.get("topic_id")
    if not topic_id or UUID(str(topic_id)) == _NO_ID:
        return None
    return UUID(str(topic_id))


def close_quietly(client: Any) -> None:
    """Close a Kafka client that may be broken already; what it says then helps nobody."""
    try:
        client.close()
    except (KafkaError, OSError, RuntimeError) as error:
        log.debug("kafka.close_failed", error=str(error))
