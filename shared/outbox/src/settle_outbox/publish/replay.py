"""Send published events again, after a broker lost them or a topic was replaced."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import text

from settle_outbox.publish.pending import lock_all_shards
from settle_outbox.uuid7 import lowest_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from sqlalchemy import Connection

# Events that one statement of a replay reads, in far less than a second.
REPLAY_PIECE = 10_000
_EPOCH = datetime.fromtimestamp(0, UTC)

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


def queue_again(
    connection: Connection,
    aggregatetypes: Sequence[str],
    window: timedelta,
    on_piece: Callable[[], None] = lambda: None,
) -> int:
    """Make published events pending again, except those in ``outbox_refused``.

    The transaction locks all shards until its end. Otherwise a relay could send later events of a
    key before earlier ones. Each statement reads a limited number of events. So a long replay never
    leaves the transaction idle, and can write heartbeats.

    Args:
        connection: in a transaction.
        aggregatetypes: whose events are sent again.
        window: age of the oldest event to send again, by the database's clock.
        on_piece: called before each statement.

    Returns:
        Number of events that were not pending before.
    """
    lock_all_shards(connection)
    after = lowest_id(_time_before(connection, window))
    queued = 0
    while True:
        on_piece()
        piece = connection.execute(
            _QUEUE_AGAIN,
            {"after": after, "limit": REPLAY_PIECE, "aggregatetypes": list(aggregatetypes)},
        ).one()
        queued += int(piece.queued)
        # Events that were added during the replay are pending already.
        if piece.found < REPLAY_PIECE:
            return queued
        after = piece.last


def _time_before(connection: Connection, window: timedelta) -> datetime:
    """Return the database's time minus the window, or 1970 if that is later."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now - min(window, now - _EPOCH)
