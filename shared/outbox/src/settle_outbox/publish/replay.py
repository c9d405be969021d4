"""Send published events again, after a broker lost them or a topic was replaced."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from settle_outbox.publish.pending import lock_all_shards, lock_shard_of
from settle_outbox.uuid7 import lowest_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from sqlalchemy import Connection

# Events that one statement of a replay reads, in far less than a second.
REPLAY_PIECE = 10_000
_EPOCH = datetime.fromtimestamp(0, UTC)

_PIECE = text(
    """
    WITH piece AS MATERIALIZED (
        SELECT id, shard, seq, aggregatetype, aggregateid, type FROM outbox
        WHERE id > :after AND id <= :last ORDER BY id LIMIT :limit
    ), chosen AS (
        SELECT id, shard, seq FROM piece
        WHERE aggregatetype = ANY(CAST(:aggregatetypes AS text[]))
          AND (CAST(:key AS text) IS NULL OR aggregateid = :key)
          AND (CAST(:type AS text) IS NULL OR type = :type)
          AND NOT EXISTS (SELECT FROM outbox_refused r WHERE r.seq = piece.seq)
          AND NOT EXISTS (
              SELECT FROM outbox_pending p WHERE p.shard = piece.shard AND p.seq = piece.seq
          )
    ), queued AS (
        INSERT INTO outbox_pending (shard, seq, id)
        SELECT shard, seq, id FROM chosen WHERE NOT :dry_run
        ON CONFLICT (shard, seq) DO NOTHING
    )
    SELECT (SELECT count(*) FROM piece) AS found, (SELECT count(*) FROM chosen) AS chosen,
           (SELECT id FROM piece ORDER BY id DESC LIMIT 1) AS last
    """
)


@dataclass(frozen=True, slots=True)
class ReplayFilter:
    """Chooses published events; each condition that is not None must hold.

    Args:
        since: age of the oldest event, by the database's clock.
        until: age of the newest event.
        ids: only these events.
        key: with this aggregateid.
        type: of this type.
    """

    since: timedelta | None = None
    until: timedelta | None = None
    ids: Sequence[UUID] | None = None
    key: str | None = None
    type: str | None = None


def queue_again(
    connection: Connection,
    aggregatetypes: Sequence[str],
    chosen: ReplayFilter,
    on_piece: Callable[[], None] = lambda: None,
    *,
    dry_run: bool = False,
) -> int:
    """Make published events pending again, except those in ``outbox_refused``.

    The transaction locks all shards until its end, or with `ReplayFilter.key` only the key's shard.
    Without the lock, a relay could send later events of a key before earlier ones. Each statement
    reads a limited number of events. So no statement takes long, and `on_piece` can write a
    heartbeat before each.

    Args:
        connection: in a transaction.
        aggregatetypes: whose events are sent again.
        chosen: which events.
        on_piece: called before each statement.
        dry_run: only count the events, without locks.

    Returns:
        Number of events that became pending, or would become pending without `dry_run`.
    """
    if not dry_run and chosen.key is not None:
        lock_shard_of(connection, chosen.key)
    elif not dry_run:
        lock_all_shards(connection)
    count = 0
    for after, last in _ranges(connection, chosen):
        found, position = REPLAY_PIECE, after
        # A smaller piece is the last one. Events that were added since are already pending.
        while found == REPLAY_PIECE:
            on_piece()
            piece = connection.execute(
                _PIECE,
                {
                    "after": position,
                    "last": last,
                    "limit": REPLAY_PIECE,
                    "aggregatetypes": list(aggregatetypes),
                    "key": chosen.key,
                    "type": chosen.type,
                    "dry_run": dry_run,
                },
            ).one()
            count += int(piece.chosen)
            found, position = piece.found, piece.last
    return count


def _ranges(connection: Connection, chosen: ReplayFilter) -> list[tuple[UUID, UUID]]:
    """Return the ranges of ids to read. Each is the id before the first one, and the last one."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    after, last = UUID(int=0), UUID(int=2**128 - 1)
    if chosen.since is not None:
        after = _id_before(lowest_id(now - min(chosen.since, now - _EPOCH)))
    if chosen.until is not None:
        last = _id_before(lowest_id(now - min(chosen.until, now - _EPOCH)))
    if chosen.ids is None:
        return [(after, last)]
    return [(_id_before(each), each) for each in sorted(set(chosen.ids)) if after < each <= last]


def _id_before(event_id: UUID) -> UUID:
    return UUID(int=max(0, event_id.int - 1))
