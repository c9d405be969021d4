"""Give up events that can never be sent, so that they do not hold up the others.

The broker refuses an event, or no record can be made of it, or the service does not declare its
aggregatetype. Such an event is noted in ``outbox_refused`` with the reason, and is not tried again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text

from settle_outbox.publish.pending import mark_sent
from settle_outbox.publish.sender import REJECTIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection

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


class RejectedEventSearch:
    """Finds the event for which the broker refuses a batch.

    A broker may reject a whole batch because of one record. So the events of a refused batch are
    sent one by one, and only an event that is refused alone is given up.
    """

    def __init__(self) -> None:
        self._batches_left = 0

    @property
    def is_on(self) -> bool:
        """Whether the next batch must have one event only."""
        return self._batches_left > 0

    def batch_sent(
        self, connection: Connection, events: Sequence[PendingEvent], error: Exception | None
    ) -> None:
        """Start the search when a batch was refused; give up an event that was refused alone.

        Args:
            connection: in the transaction that holds the shards.
            events: that were sent.
            error: the first failure among them, if any.
        """
        self._batches_left = max(0, self._batches_left - 1)
        if not isinstance(error, REJECTIONS):
            return
        if len(events) > 1:
            self._batches_left = len(events)
            return
        (event,) = events
        mark_refused(connection, event, f"{type(error).__name__}: {error}")


def mark_refused(connection: Connection, event: PendingEvent, reason: str) -> None:
    """Give up an event that can never be sent, and log it."""
    connection.execute(_MARK_REFUSED, {"seq": event.seq, "id": event.id, "reason": reason})
    mark_sent(connection, [event])
    log.error(
        "relay.refused",
        id=str(event.id),
        seq=event.seq,
        type=event.type,
        requestid=event.requestid,
        error=reason,
    )


def mark_undeclared_refused(
    connection: Connection, service: Service, events: Sequence[PendingEvent]
) -> list[PendingEvent]:
    """Refuse the events of aggregatetypes that the service does not declare.

    Their topics do not exist, so each would hold up all events, as if the broker were down.

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
    """Give up pending rows whose events are gone from the outbox, at most 1,000 at a time.

    Somebody deleted the events, or detached their partition. Their pending rows would hold up
    their shard.

    Args:
        connection: in a transaction that holds the shards.
        shards: those without readable events.
    """
    if not shards:
        return
    count = connection.execute(_MARK_ORPHANS_REFUSED, {"shards": sorted(shards)}).rowcount
    if count:
        log.error("relay.orphans_refused", events=count)
