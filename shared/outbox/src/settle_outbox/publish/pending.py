"""The SQL of the relay: what is still to be sent, who sends it, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import text

from settle_outbox.kafka.clients import MAX_REQUEST_BYTES
from settle_outbox.uuid7 import least_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta
    from uuid import UUID

    from sqlalchemy import Connection

# What one batch may weigh in memory, in bytes of payloads, keys and headers.
BATCH_MAX_BYTES = 4 * 1024 * 1024
# What is read of a payload: a producer refuses this much. `outbox.add` takes less, SQL may not.
_PAYLOAD_READ_BYTES = MAX_REQUEST_BYTES + 1
# Events that one statement of a replay reads: far less than a second.
REPLAY_PIECE = 10_000
_EPOCH = datetime.fromtimestamp(0, UTC)


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

# The head of each shard by its index, however long the shard's tail is. Nothing when a topic was
# noted since the relay made its producer: that producer may know another cluster, another topic or
# fewer partitions.
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

_REFUSE_ORPHANS = text(
    """
    WITH orphans AS (
        DELETE FROM outbox_pending p
        WHERE (p.shard, p.seq) IN (
            SELECT o.shard, o.seq FROM outbox_pending o
            WHERE o.shard = ANY(CAST(:shards AS integer[]))
              AND NOT EXISTS (SELECT FROM outbox e WHERE e.id = o.id)
            LIMIT 1000
        )
        RETURNING p.seq, p.id
    )
    INSERT INTO outbox_refused (seq, id, reason)
    SELECT seq, id, 'its row in the outbox is gone' FROM orphans
    ON CONFLICT (seq) DO NOTHING
    """
)

_LOCK_ALL_SHARDS = text("SELECT shard FROM outbox_shards ORDER BY shard FOR UPDATE")

_QUEUE_AGAIN = text(
    """
    WITH piece AS MATERIALIZED (
        SELECT id, shard, seq, aggregatetype FROM outbox
        WHERE id > :after ORDER BY id LIMIT :limit
    ), queued AS (
        INSERT INTO outbox_pending (shard, seq, id)
        SELECT shard, seq, id FROM piece
        WHERE aggregatetype = ANY(CAST(:aggregatetypes AS text[]))
          AND NOT EXISTS (SELECT FROM outbox_refused r WHERE r.seq = piece.seq)
        ON CONFLICT (shard, seq) DO NOTHING
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM piece) AS found, (SELECT count(*) FROM queued) AS queued,
           (SELECT id FROM piece ORDER BY id DESC LIMIT 1) AS last
    """
)


def lock_shards(connection: Connection, most: int) -> list[int]:
    """Lock shards that have events to send and that no other relay holds, by chance.

    The events must be read by a later statement: under READ COMMITTED it sees what the last
    holder of the shard has marked; the locking statement's own snapshot may be older than that.
    """
    return list(connection.execute(_LOCK_SHARDS, {"most": most}).scalars())


def read_pending(
    connection: Connection, shards: Sequence[int], most: int, noted_at: Sequence[datetime]
) -> list[PendingEvent]:
    """Read the oldest unsent events of locked shards, in the order in which they were added.

    Args:
        connection: in the transaction that holds the shards.
        shards: which.
        most: at most so many events.
        noted_at: from `settle_outbox.publish.lost_topics.note_topics`, before the producer was
            made. No events are read when a topic was noted since.
    """
    rows = connection.execute(
        _READ,
        {
            "shards": list(shards),
            "per_shard": max(1, most // len(shards)),
            "most": most,
            "max_bytes": BATCH_MAX_BYTES,
            "payload_bytes": _PAYLOAD_READ_BYTES,
            "noted_at": list(noted_at),
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


def refuse_orphans(connection: Connection, shards: Sequence[int]) -> int:
    """Give up pending rows whose events are gone from the outbox; return how many.

    Somebody deleted the events, or detached their partition. Their pending rows would hold up
    their shard.

    Args:
        connection: in a transaction that holds the shards.
        shards: at most 1,000 rows of them at a time.
    """
    return connection.execute(_REFUSE_ORPHANS, {"shards": list(shards)}).rowcount


def lock_all_shards(connection: Connection) -> None:
    """Lock every shard until the caller's transaction ends: no relay sends anything meanwhile."""
    connection.execute(_LOCK_ALL_SHARDS)


def queue_again(
    connection: Connection,
    aggregatetypes: Sequence[str],
    window: timedelta,
    on_piece: Callable[[], None] = lambda: None,
) -> int:
    """Put published events in line to be sent again, except those that the broker refused.

    One transaction holds every shard from the first to the last event: a relay that read a shard
    in between would send later events of a key before earlier ones. Each statement is bounded, so
    a long replay keeps the transaction from being idle and lets the process show that it is alive.

    Args:
        connection: in a transaction.
        aggregatetypes: of which events.
        window: how far back, by the database's clock.
        on_piece: called before each statement.

    Returns:
        How many were queued that were not yet.
    """
    lock_all_shards(connection)
    after = least_id(_time_before(connection, window))
    queued = 0
    while True:
        on_piece()
        piece = connection.execute(
            _QUEUE_AGAIN,
            {"after": after, "limit": REPLAY_PIECE, "aggregatetypes": list(aggregatetypes)},
        ).one()
        queued += int(piece.queued)
        # What is added meanwhile is in line already.
        if piece.found < REPLAY_PIECE:
            return queued
        after = piece.last


def _time_before(connection: Connection, window: timedelta) -> datetime:
    """Return the database's time minus the window, but no time before 1970."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now - min(window, now - _EPOCH)
