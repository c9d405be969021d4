"""Detect that a topic or the whole cluster was replaced, and send the lost events again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import text

from settle_outbox.publish.pending import lock_all_shards
from settle_outbox.publish.replay import ReplayFilter, queue_again
from settle_outbox.runtime.process import FatalError
from settle_outbox.storage.deadlines import without_deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime, timedelta
    from uuid import UUID

    from sqlalchemy import Connection

_LOCK_TOPICS = text("SELECT topic, topic_id, noted_at FROM outbox_topics ORDER BY topic FOR UPDATE")

_RECORD_TOPIC = text(
    """
    INSERT INTO outbox_topics (topic, topic_id, noted_at)
    VALUES (:topic, :topic_id, clock_timestamp())
    ON CONFLICT (topic) DO UPDATE SET topic_id = excluded.topic_id, noted_at = excluded.noted_at
    """
)

_RECORD_CHANGE = text(
    """
    UPDATE outbox_topics SET noted_at = clock_timestamp()
    WHERE topic = ANY(CAST(:topics AS text[]))
    """
)

_CLUSTERS = text("SELECT cluster_id, noted_at FROM outbox_clusters ORDER BY noted_at DESC")

# The newest row is the current cluster, even if the clock was set back.
_RECORD_CLUSTER = text(
    """
    INSERT INTO outbox_clusters (cluster_id, noted_at)
    SELECT :cluster_id, greatest(clock_timestamp(), max(noted_at) + interval '1 microsecond')
    FROM outbox_clusters
    """
)

# Longer than the relay's timeouts, which are for a batch, not for all shards or for a replay.
_RAISE_TIMEOUTS = text("SET LOCAL lock_timeout = 20000; SET LOCAL statement_timeout = 60000")


class ClusterLeftError(FatalError):
    """The outbox was moved to another Kafka cluster, but this relay is connected to an old one."""


class RecordedTopic(NamedTuple):
    """A row of outbox_topics."""

    topic_id: UUID
    noted_at: datetime


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a relay is about to send events.

    Args:
        cluster_id: id of the Kafka cluster, or None for the embedded broker.
        topic_ids: the broker's id of each topic (KIP-516), by topic.
        aggregatetypes: the aggregatetype of each topic's events, by topic.
    """

    cluster_id: str | None
    topic_ids: Mapping[str, UUID]
    aggregatetypes: Mapping[str, str]


@dataclass(slots=True)
class RecordedTopics:
    """The result of `record_topics`.

    Args:
        noted_at: when each topic was recorded. If this list changes, existing producers are out of
            date.
        queued: the number of events that are pending again, by replaced topic.
    """

    noted_at: list[datetime]
    queued: dict[str, int] = field(default_factory=dict)


def record_topics(
    connection: Connection,
    destination: Destination,
    window: timedelta,
    on_piece: Callable[[], None] = lambda: None,
) -> RecordedTopics:
    """Record the cluster and the topics' ids. Make the events of a replaced topic pending again.

    If the cluster or an id is new, the caller's transaction locks all shards until its end. So no
    later event of a key overtakes the events that are sent again. If two relays detect the same
    change, the second one finds it already recorded.

    Args:
        connection: in a transaction.
        destination: as the broker now describes the cluster and its topics.
        window: age of the oldest event to send again.
        on_piece: called before each statement of a replay.

    Raises:
        ClusterLeftError: the outbox was moved away from this cluster.
    """
    topics = lock_topics(connection)
    if _is_recorded(connection, destination, topics):
        return RecordedTopics([topic.noted_at for topic in topics.values()])
    without_deadline(connection)
    connection.execute(_RAISE_TIMEOUTS)
    lock_all_shards(connection)
    topics = lock_topics(connection)
    _record_cluster(connection, destination.cluster_id)
    queued = {}
    for name, topic_id in destination.topic_ids.items():
        known = topics.get(name)
        if known is not None and known.topic_id == topic_id:
            continue
        if known is not None:
            aggregatetypes = [destination.aggregatetypes[name]]
            queued[name] = queue_again(
                connection, aggregatetypes, ReplayFilter(since=window), on_piece
            )
        connection.execute(_RECORD_TOPIC, {"topic": name, "topic_id": topic_id})
    return RecordedTopics([topic.noted_at for topic in lock_topics(connection).values()], queued)


def lock_topics(connection: Connection) -> dict[str, RecordedTopic]:
    """Return the recorded topics by name, and lock them until the caller's transaction ends.

    Until then no relay can connect, because each relay first needs this lock in `record_topics`.
    """
    return {
        row.topic: RecordedTopic(row.topic_id, row.noted_at)
        for row in connection.execute(_LOCK_TOPICS)
    }


def record_change(connection: Connection, topics: Iterable[str]) -> None:
    """Record that topics have changed. Relays send nothing until they have a new producer."""
    connection.execute(_RECORD_CHANGE, {"topics": list(topics)})


def _is_recorded(
    connection: Connection, destination: Destination, topics: Mapping[str, RecordedTopic]
) -> bool:
    recorded_ids = {name: topic.topic_id for name, topic in topics.items()}
    clusters = connection.execute(_CLUSTERS).all()
    return destination.topic_ids.items() <= recorded_ids.items() and (
        destination.cluster_id is None
        or bool(clusters and clusters[0].cluster_id == destination.cluster_id)
    )


def _record_cluster(connection: Connection, cluster_id: str | None) -> None:
    if cluster_id is None:
        return
    clusters = connection.execute(_CLUSTERS).all()
    known = [cluster.cluster_id for cluster in clusters]
    if cluster_id not in known:
        connection.execute(_RECORD_CLUSTER, {"cluster_id": cluster_id})
    elif known[0] != cluster_id:
        raise ClusterLeftError(
            f"This relay is connected to Kafka cluster {cluster_id}, but since "
            f"{clusters[0].noted_at:%Y-%m-%d %H:%M:%S%z} the outbox is sent to cluster {known[0]}. "
            "All relays of an outbox must use one cluster. Correct KAFKA_BOOTSTRAP_SERVERS. If you "
            f"moved back to {cluster_id} on purpose: stop the relays on {known[0]}, run "
            f"{_forget_cluster(cluster_id)} in this database, and start this relay. It then sends "
            "the events of the last REPLAY_WINDOW_S again."
        )


def _forget_cluster(cluster_id: str) -> str:
    return f"DELETE FROM outbox_clusters WHERE cluster_id = '{cluster_id}'"  # noqa: S608 - for a person to run
