"""The SQL of the relay: what is still to be sent, who sends it, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

# What one batch may weigh in memory, in bytes of payload.
BATCH_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """A row of the outbox that is still to be sent."""

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
    LIMIT :most
    FOR UPDATE SKIP LOCKED
    """
)

# The head of each shard by its index, however long the shard's tail is.
_READ = text(
    """
    SELECT id, seq, shard, aggregatetype, aggregateid, type, payload, requestid, traceparent,
           created_at
    FROM (
        SELECT o.*, sum(octet_length(o.payload)) OVER (ORDER BY o.seq) AS weight
        FROM unnest(CAST(:shards AS integer[])) AS locked (shard)
        CROSS JOIN LATERAL (
            SELECT p.id FROM outbox_pending p
            WHERE p.shard = locked.shard ORDER BY p.seq LIMIT :per_shard
        ) AS head
        JOIN outbox o ON o.id = head.id
    ) AS weighed
    WHERE weight - octet_length(payload) < :max_bytes
    ORDER BY seq
    LIMIT :most
    """
)

_MARK_SENT = text(
    """
    DELETE FROM outbox_pending p
    USING unnest(CAST(:shards AS integer[]), CAST(:seqs AS bigint[])) AS sent (shard, seq)
    WHERE p.shard = sent.shard AND p.seq = sent.seq
    """
)

_REFUSE = text(
    """
    INSERT INTO outbox_refused (seq, id, reason) VALUES (:seq, :id, :reason)
    ON CONFLICT (seq) DO UPDATE SET reason = excluded.reason, refused_at = now()
    """
)

_LOCK_ALL_SHARDS = text("SELECT shard FROM outbox_shards ORDER BY shard FOR UPDATE")

_QUEUE_AGAIN = text(
    """
    INSERT INTO outbox_pending (shard, seq, id)
    SELECT o.shard, o.seq, o.id FROM outbox o
    WHERE o.id >= :since AND o.aggregatetype = ANY(CAST(:aggregatetypes AS text[]))
      AND NOT EXISTS (SELECT FROM outbox_refused r WHERE r.seq = o.seq)
    ON CONFLICT (shard, seq) DO NOTHING
    """
)


def lock_shards(connection: Connection, most: int) -> list[int]:
    """Lock shards that have events to send and that no other relay holds, by chance.

    The events must be read by a later statement: under READ COMMITTED it sees what the last
    holder of the shard has marked; the locking statement's own snapshot may be older than that.
    """
    return list(connection.execute(_LOCK_SHARDS, {"most": most}).scalars())


def read_pending(connection: Connection, shards: Sequence[int], most: int) -> list[PendingEvent]:
    """Read the oldest unsent events of locked shards, in the order in which they were added."""
    rows = connection.execute(
        _READ,
        {
            "shards": list(shards),
            "per_shard": max(1, most // len(shards)),
            "most": most,
            "max_bytes": BATCH_MAX_BYTES,
        },
    )
    return [
        PendingEvent(
            id=row.id,
            seq=row.seq,
            shard=row.shard,
            aggregatetype=row.aggregatetype,
            aggregateid=row.aggregateid,
            type=row.type,
            payload=bytes(row.payload),
            requestid=row.requestid,
            traceparent=row.traceparent,
            created_at=row.created_at,
        )
        for row in rows
    ]


def mark_sent(connection: Connection, events: Sequence[PendingEvent]) -> None:
    """Note that the broker has acknowledged these events."""
    if events:
        connection.execute(
            _MARK_SENT,
            {
                "shards": [event.shard for event in events],
                "seqs": [event.seq for event in events],
            },
        )


def refuse(connection: Connection, event: PendingEvent, reason: str) -> None:
    """Note that an event can never be sent, and stop trying."""
    connection.execute(_REFUSE, {"seq": event.seq, "id": event.id, "reason": reason})
    mark_sent(connection, [event])


def queue_again(connection: Connection, aggregatetypes: Sequence[str], since: UUID) -> int:
    """Have published events sent again, except those that were refused.

    Holds every shard until the caller's transaction ends, so that none of the keys' later events
    can overtake them.

    Args:
        connection: in a transaction.
        aggregatetypes: of which events.
        since: the least event id; see `shared.outbox.uuid7.least_id`.

    Returns:
        How many were queued that were not yet.
    """
    connection.execute(_LOCK_ALL_SHARDS)
    queued = connection.execute(
        _QUEUE_AGAIN, {"since": since, "aggregatetypes": list(aggregatetypes)}
    )
    return queued.rowcount
