"""Mark events that can never be sent as refused, so that they do not block the others.

Such an event is rejected by the broker or the producer, cannot be encoded as a record, has an
aggregatetype that the service does not declare, or no longer has a row in the outbox. A refused
event is in ``outbox_refused`` with the reason, and is no longer pending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text

from settle_outbox.errors import describe_error
from settle_outbox.publish.pending import mark_sent
from settle_outbox.publish.sender import REJECTIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, RowMapping

    from settle_outbox.publish.pending import PendingEvent
    from settle_outbox.service import Service

log = structlog.get_logger(__name__)

_MARK_REFUSED = text(
    """
    INSERT INTO outbox_refused (seq, id, reason) VALUES (:seq, :id, :reason)
    ON CONFLICT (seq) DO UPDATE SET reason = excluded.reason, refused_at = now()
    """
)

_MARK_ORPHANS_REFUSED = text(
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


_READ_REFUSED = text(
    """
    SELECT refused.id AS event_id, refused.seq, refused.reason, refused.refused_at,
           refused.discarded_at, refused.discarded_by, refused.note,
           event.aggregatetype, event.aggregateid AS aggregate_id, event.type, event.payload,
           event.requestid AS request_id,
           event.created_at
    FROM outbox_refused AS refused LEFT JOIN outbox AS event ON event.id = refused.id
    WHERE (CAST(:ids AS uuid[]) IS NULL OR refused.id = ANY(CAST(:ids AS uuid[])))
        AND (:discarded OR refused.discarded_at IS NULL)
    ORDER BY refused.seq LIMIT :limit
    """
)

_RETRY_REFUSED = text(
    """
    WITH again AS (
        DELETE FROM outbox_refused AS refused USING outbox AS event
        WHERE refused.id = ANY(CAST(:ids AS uuid[])) AND event.id = refused.id
        RETURNING event.shard, event.seq, event.id
    )
    INSERT INTO outbox_pending (shard, seq, id) SELECT shard, seq, id FROM again
    ON CONFLICT (shard, seq) DO NOTHING
    RETURNING id
    """
)

_DISCARD_REFUSED = text(
    """
    UPDATE outbox_refused SET discarded_at = now(), discarded_by = :discarded_by, note = :note
    WHERE id = ANY(CAST(:ids AS uuid[])) AND discarded_at IS NULL
    RETURNING id
    """
)


class RejectedEventSearch:
    """Finds the event because of which the broker rejects a batch.

    A broker may reject many records because of one of them. So after a rejected batch, the relay
    sends single events: as many as the batch had. An event that is rejected alone is marked as
    refused.
    """

    def __init__(self) -> None:
        self._batches_left = 0

    @property
    def is_on(self) -> bool:
        """Whether the next batch must have only one event."""
        return self._batches_left > 0

    def batch_sent(
        self, connection: Connection, events: Sequence[PendingEvent], error: Exception | None
    ) -> None:
        """Start the search after a rejected batch. Mark an event that was rejected alone.

        Args:
            connection: in the transaction that holds the shards.
            events: of the batch, without unsendable ones.
            error: `Sent.error` of the batch.
        """
        self._batches_left = max(0, self._batches_left - 1)
        if not isinstance(error, REJECTIONS):
            return
        if len(events) > 1:
            self._batches_left = len(events)
            return
        (event,) = events
        mark_refused(connection, event, describe_error(error))


def mark_refused(connection: Connection, event: PendingEvent, reason: str) -> None:
    """Mark an event as refused, and log it."""
    connection.execute(_MARK_REFUSED, {"seq": event.seq, "id": event.id, "reason": reason})
    mark_sent(connection, [event])
    log.error(
        "relay.refused",
        event_id=str(event.id),
        seq=event.seq,
        type=event.type,
        aggregate_id=event.aggregateid,
        request_id=event.requestid,
        error=reason,
    )


def mark_undeclared_refused(
    connection: Connection, service: Service, events: Sequence[PendingEvent]
) -> list[PendingEvent]:
    """Mark events as refused if the service does not declare their aggregatetype.

    The relay creates no topics for them. To send such an event would fail like an outage of the
    broker, and block all events.

    Returns:
        The other events.
    """
    declared = []
    for event in events:
        if event.aggregatetype in service.aggregatetypes:
            declared.append(event)
        else:
            mark_refused(
                connection,
                event,
                f"{service.name} does not declare the aggregatetype {event.aggregatetype!r}; it"
                f" declares: {', '.join(service.aggregatetypes) or 'none'}.",
            )
    return declared


def mark_orphans_refused(connection: Connection, shards: Collection[int]) -> None:
    """Mark pending events as refused if their rows in the outbox are gone, at most 1,000.

    Somebody deleted the rows in the outbox, or detached the table's partition with them. The rows
    that remain in ``outbox_pending`` would block their shard.

    Args:
        connection: in the transaction that holds the shards.
        shards: the locked shards of which no event was read.
    """
    if not shards:
        return
    count = connection.execute(_MARK_ORPHANS_REFUSED, {"shards": sorted(shards)}).rowcount
    if count:
        log.error("relay.orphans_refused", events=count)


def read_refused(
    connection: Connection,
    *,
    limit: int | None = None,
    ids: Sequence[UUID] | None = None,
    discarded: bool = False,
) -> Iterator[RowMapping]:
    """Return refused events, oldest first, with what the outbox still has of them.

    Each event is read only when the caller takes it, because it may have a megabyte.

    Args:
        connection: to the service's database.
        limit: how many at most; None for all.
        ids: only these events; None for all.
        discarded: whether to include discarded ones.
    """
    wanted = None if ids is None else list(ids)
    parameters = {"limit": limit, "ids": wanted, "discarded": discarded}
    one_by_one = _READ_REFUSED.execution_options(yield_per=1)
    yield from connection.execute(one_by_one, parameters).mappings()


def retry_refused(connection: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """Make refused events pending again, even discarded ones.

    Later events of the same keys may have been sent already.

    Returns:
        The ids of the events that became pending. The others are not refused, or lost their rows.
    """
    return set(connection.execute(_RETRY_REFUSED, {"ids": list(ids)}).scalars())


def discard_refused(
    connection: Connection, ids: Sequence[UUID], *, discarded_by: str, note: str | None
) -> set[UUID]:
    """Record that an operator decided not to send refused events. They can still be retried.

    Returns:
        The ids of the events that this call discarded. The others are not refused, or were
        discarded before.
    """
    parameters = {"ids": list(ids), "discarded_by": discarded_by, "note": note}
    return set(connection.execute(_DISCARD_REFUSED, parameters).scalars())
