"""Create topics, and read the ids and settings of topics and of their cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kafka import KafkaAdminClient

    from settle_outbox.settings import Settings

log = structlog.get_logger(__name__)

_UNKNOWN_TOPIC = 3  # UNKNOWN_TOPIC_OR_PARTITION
_NO_ID = UUID(int=0)
# All embedded brokers (tansu) have this id. Apache Kafka's ids are random.
_EMBEDDED_CLUSTER = "tansu_cluster"


def ensure_topics(
    admin: KafkaAdminClient, topics: Iterable[str], settings: Settings
) -> dict[str, UUID | None]:
    """Create the topics that do not exist, with the partition count of the settings.

    Returns:
        The broker's id of each topic (KIP-516), or None from a broker without ids. If a topic is
        deleted and created again, its id changes.

    Raises:
        KafkaError: the broker cannot be reached, or refuses.
    """
    wanted = sorted(topics)
    descriptions = _describe(admin, wanted)
    missing = [topic for topic in wanted if topic not in descriptions]
    for topic in missing:
        _create(admin, topic, settings)
    if missing:
        # A new topic exists before the broker describes it, even if another relay created it.
        admin.wait_for_topics(missing)
        descriptions = _describe(admin, wanted)
    return {topic: _id_of(descriptions[topic]) for topic in wanted if topic in descriptions}


def find_topics(admin: KafkaAdminClient, topics: Iterable[str]) -> dict[str, UUID | None]:
    """Return the ids of the existing topics, as `ensure_topics` does, without creating any.

    Raises:
        KafkaError: the broker cannot be reached, or refuses.
    """
    return {
        topic: _id_of(description)
        for topic, description in _describe(admin, sorted(topics)).items()
    }


def count_partitions(admin: KafkaAdminClient, topics: Iterable[str]) -> dict[str, int]:
    """Return the number of partitions of each existing topic."""
    descriptions = _describe(admin, sorted(topics))
    return {topic: len(description["partitions"]) for topic, description in descriptions.items()}


def find_cluster(admin: KafkaAdminClient) -> str | None:
    """Return the id of the broker's cluster, or None for the embedded broker.

    All embedded brokers have the same id, so the id does not identify a cluster.
    """
    cluster_id: str | None = admin.describe_cluster()["cluster_id"]
    return None if cluster_id == _EMBEDDED_CLUSTER else cluster_id


def is_embedded(admin: KafkaAdminClient) -> bool:
    """Return whether this is the embedded broker, whose defects need workarounds."""
    return bool(admin.describe_cluster()["cluster_id"] == _EMBEDDED_CLUSTER)


def read_settings_of(
    admin: KafkaAdminClient, kind: ConfigResourceType, name: str
) -> dict[str, str]:
    """Return the settings of a topic or a broker by name. The embedded broker returns none.

    Raises:
        KafkaError: the broker cannot be reached.
    """
    configs = admin.describe_configs([ConfigResource(kind, name)], config_filter="all")
    entries = configs.get(kind.name.lower(), {}).get(name, {})
    return {key: entry["value"] for key, entry in entries.items() if entry["value"] is not None}


def retention_problem(topic_settings: Mapping[str, str], settings: Settings) -> str | None:
    """Return why a topic keeps events longer than the inbox remembers them, or None.

    Args:
        topic_settings: from `read_settings_of`.
        settings: of the consuming service.
    """
    if "compact" in topic_settings.get("cleanup.policy", ""):
        return "cleanup.policy contains compact: the last event of each key is kept forever"
    retention_ms = int(topic_settings.get("retention.ms", 0))
    if retention_ms < 0:
        return "retention.ms is -1: events are kept forever"
    limit_ms = (settings.inbox_retention_s - settings.replay_window_s) * 1000
    if retention_ms >= limit_ms:
        return (
            f"retention.ms is {retention_ms}; it must be below {limit_ms}, which is"
            " INBOX_RETENTION_S - REPLAY_WINDOW_S"
        )
    return None


def _describe(admin: KafkaAdminClient, topics: list[str]) -> dict[str, dict[str, Any]]:
    descriptions = {}
    for description in admin.describe_topics(topics):
        code = description["error_code"]
        if code == 0:
            descriptions[description["name"]] = description
        elif code != _UNKNOWN_TOPIC:
            raise for_code(code)(description["name"])
    return descriptions


def _create(admin: KafkaAdminClient, topic: str, settings: Settings) -> None:
    try:
        admin.create_topics(
            {
                topic: {
                    "num_partitions": settings.topic_partitions,
                    "replication_factor": settings.topic_replication,
                    "configs": {
                        "retention.ms": str(settings.topic_retention_s * 1000),
                        # Use the broker's clock. If a relay's clock were days behind, the broker
                        # would delete unread events. With a clock ahead, it would reject events.
                        "message.timestamp.type": "LogAppendTime",
                    },
                }
            },
            timeout_ms=3_000,
        )
    except TopicAlreadyExistsError:
        return  # another relay created it
    log.info("topic.created", topic=topic, partitions=settings.topic_partitions)


def _id_of(description: dict[str, Any]) -> UUID | None:
    topic_id = description.get("topic_id")
    if not topic_id or UUID(str(topic_id)) == _NO_ID:
        return None
    return UUID(str(topic_id))


def close_quietly(client: Any) -> None:
    """Close a Kafka client that may be broken. An error of the close is only logged."""
    try:
        client.close()
    except (KafkaError, OSError, RuntimeError) as error:
        log.debug("kafka.close_failed", error=str(error))
