"""The SQL of the relay: lock shards, read their pending events, and mark events as sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from settle_outbox.kafka.clients import MAX_REQUEST_BYTES
from settle_outbox.kafka.header_text import HEADER_MAX_LENGTH
from settle_outbox.publish.outbox import KEY_MAX_LENGTH, PAYLOAD_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

# A batch ends with the event that reaches this size, in bytes of payloads, keys and headers.
BATCH_MAX_BYTES = 4 * 1024 * 1024
# A longer payload is cut to this length. `outbox.add` accepts none of this length, but a row may
# have been inserted with SQL. The cut payload is too large for the producer, so it is never sent.
_PAYLOAD_READ_BYTES = MAX_REQUEST_BYTES + 1

# A character has up to 4 bytes. Three headers have a text that the publisher chooses: ce_type,
# ce_requestid and traceparent.
if PAYLOAD_MAX_BYTES + 4 * (KEY_MAX_LENGTH + 3 * HEADER_MAX_LENGTH) >= MAX_REQUEST_BYTES:
    raise AssertionError("an event that `outbox.add` accepts must fit into a record")


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An event of the outbox that is not yet acknowledged by the broker."""

    id: UUID
    seq: int
    shard: int
    aggregatetype: str
    aggregateid: str
    type: str
    payload: bytes
    requestid: str | None
    traceparent: str | None
    created_at: datetime


_LOCK_SHARDS = text(
    """
    SELECT s.shard FROM outbox_shards s
    WHERE EXISTS (SELECT FROM outbox_pending p WHERE p.shard = s.shard)
    ORDER BY random()
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
    """
)

# Reads only the oldest events of each shard, by the index. So the time does not depend on how many
# are pending. Returns no events if a topic was recorded after the relay made its producer. Such a
# producer may be connected to an old cluster, or know a replaced topic or only some partitions.
_READ = text(
    """
    SELECT id, seq, shard, aggregatetype, aggregateid, type,
           substring(payload FROM 1 FOR :payload_bytes) AS payload, requestid, traceparent,
           created_at
    FROM (
        SELECT o.*, size.bytes, sum(size.bytes) OVER (ORDER BY o.seq) AS weight
        FROM unnest(CAST(:shards AS integer[])) AS locked (shard)
        CROSS JOIN LATERAL (
            SELECT p.id FROM outbox_pending p
            WHERE p.shard = locked.shard ORDER BY p.seq LIMIT :per_shard
        ) AS head
        JOIN outbox o ON o.id = head.id
        CROSS JOIN LATERAL (
            SELECT octet_length(o.payload)
                + octet_length(concat(o.aggregateid, o.type, o.requestid, o.traceparent)) AS bytes
        ) AS size
    ) AS weighed
    WHERE weight - bytes < :max_bytes
      AND CAST(:noted_at AS timestamptz[]) = (
        SELECT coalesce(array_agg(noted_at ORDER BY topic), '{}') FROM outbox_topics
      )
    ORDER BY seq
    LIMIT :limit
    """
)

_MARK_SENT = text(
    """
    DELETE FROM outbox_pending p
    USING unnest(CAST(:shards AS integer[]), CAST(:seqs AS bigint[])) AS sent (shard, seq)
    WHERE p.shard = sent.shard AND p.seq = sent.seq
    """
)

_LOCK_SHARD_OF = text("SELECT shard FROM outbox_shards WHERE shard = outbox_shard(:key) FOR UPDATE")

_LOCK_ALL_SHARDS = text("SELECT shard FROM outbox_shards ORDER BY shard FOR UPDATE")


def lock_shards(connection: Connection, limit: int) -> list[int]:
    """Lock random shards that have pending events and that no other relay has locked.

    Read the events in a later statement. Under READ COMMITTED, the later statement sees which
    events the last relay of the shard has marked as sent. This statement may not see that yet.
    """
    return list(connection.execute(_LOCK_SHARDS, {"limit": limit}).scalars())


def read_pending(
    connection: Connection, shards: Sequence[int], limit: int, noted_at: Sequence[datetime]
) -> list[PendingEvent]:
    """Read the oldest pending events of locked shards, in the order in which they were added.

    Args:
        connection: in the transaction that holds the shards.
        shards: the locked shards.
        limit: maximum number of events.
        noted_at: the `noted_at` that `settle_outbox.publish.lost_topics.record_topics` returned
            before the producer was made. If a topic was recorded since, no events are read.
    """
    rows = connection.execute(
        _READ,
        {
            "shards": list(shards),
            "per_shard": max(1, limit // len(shards)),
            "limit": limit,
            "max_bytes": BATCH_MAX_BYTES,
            "payload_bytes": _PAYLOAD_READ_BYTES,
            "noted_at": list(noted_at),
        },
    )
    return [
        PendingEvent(**{**row, "payload": bytes(row["payload"])})  # psycopg2 returns a memoryview
        for row in rows.mappings()
    ]


def mark_sent(connection: Connection, events: Sequence[PendingEvent]) -> None:
    """Remove events from the pending ones: the broker acknowledged them, or they are refused."""
    if events:
        connection.execute(
            _MARK_SENT,
            {
                "shards": [event.shard for event in events],
                "seqs": [event.seq for event in events],
            },
        )


def lock_all_shards(connection: Connection) -> None:
    """Lock all shards, so that no relay sends events until the caller's transaction ends."""
    connection.execute(_LOCK_ALL_SHARDS)


def lock_shard_of(connection: Connection, key: str) -> None:
    """Lock the shard of a key. No relay sends the key's events until the transaction ends."""
    connection.execute(_LOCK_SHARD_OF, {"key": key})
