"""Topics and their cluster: create topics, and read ids and settings from the broker."""

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
# The same for every embedded broker (tansu). Apache Kafka's ids are random.
_EMBEDDED_CLUSTER = "tansu_cluster"


def ensure_topics(
    admin: KafkaAdminClient, topics: Iterable[str], settings: Settings
) -> dict[str, UUID | None]:
    """Create the missing ones among the topics that the service publishes.

    A first write never creates a topic: the partition count must be the publisher's.

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


def find_topics(admin: KafkaAdminClient, topics: Iterable[str]) -> dict[str, UUID | None]:
    """Return the ids of the topics that exist, as `ensure_topics` does, and create none.

    Raises:
        KafkaError: the broker cannot be reached, or refuses.
    """
    return {topic: _id_of(found) for topic, found in _describe(admin, sorted(topics)).items()}


def count_partitions(admin: KafkaAdminClient, topics: Iterable[str]) -> dict[str, int]:
    """Return the number of partitions of each topic that exists."""
    found = _describe(admin, sorted(topics))
    return {topic: len(description["partitions"]) for topic, description in found.items()}


def find_cluster(admin: KafkaAdminClient) -> str | None:
    """Return the id of the broker's cluster; None for the embedded broker.

    The embedded broker loses everything when it ends, so its id identifies nothing.
    """
    cluster_id: str | None = admin.describe_cluster()["cluster_id"]
    return None if cluster_id == _EMBEDDED_CLUSTER else cluster_id


def is_embedded(admin: KafkaAdminClient) -> bool:
    """Return whether this is the embedded broker, which needs other cures than Apache Kafka."""
    return bool(admin.describe_cluster()["cluster_id"] == _EMBEDDED_CLUSTER)


def read_topic_settings(admin: KafkaAdminClient, topic: str) -> dict[str, str]:
    """Return the settings of a topic by their names; none from the embedded broker.

    Raises:
        KafkaError: the broker cannot be reached.
    """
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    answer = admin.describe_configs([resource], config_filter="all")
    found = answer.get("topic", {}).get(topic, {})
    return {name: each["value"] for name, each in found.items() if each["value"] is not None}


def retention_problem(topic_settings: Mapping[str, str], settings: Settings) -> str | None:
    """Return why a topic keeps events longer than the inbox remembers them; None if it does not.

    Args:
        topic_settings: from `read_topic_settings`.
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
                    "configs": {
                        "retention.ms": str(settings.topic_retention_s * 1000),
                        # By the broker's clock. By that of a relay which is days behind, the broker
                        # would drop events that nobody has read; it refuses those of one ahead.
                        "message.timestamp.type": "LogAppendTime",
                    },
                }
            },
            timeout_ms=3_000,
        )
    except TopicAlreadyExistsError:
        return  # another relay was faster
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
