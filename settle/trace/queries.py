"""What both databases know of an order.

Most queries read by an index, or in few partitions. No index has the request ids of events, nor the
events of dead letters.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from settle_outbox.storage.partitions import DAY, existing_days
from settle_outbox.uuid7 import lowest_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Connection, RowMapping

# An event is added in the same transaction as the row that it is about. But their times may be from
# two clocks: the process's and the database's. The first window is for clocks that agree, the
# second for clocks that differ by minutes.
_WINDOWS = (timedelta(seconds=10), timedelta(hours=1))
MAX_ORDERS_PER_REQUEST = 20

_ORDER = text(
    """
    SELECT id, user_id, amount, status, failure_reason, created_at, updated_at
    FROM orders WHERE id = :id
    """
)

_PAYMENT = text("SELECT status, reason, created_at FROM payments WHERE order_id = :id")

# CASE: the payload is parsed only for the right key.
_EVENT = text(
    """
    SELECT event.id, event.type, event.created_at, event.requestid AS request_id,
           pending.id IS NOT NULL AS unsent, refused.reason AS refused, refused.refused_at
    FROM outbox AS event
    LEFT JOIN outbox_pending AS pending
        ON pending.shard = event.shard AND pending.seq = event.seq
    LEFT JOIN outbox_refused AS refused ON refused.seq = event.seq
    WHERE event.id > :after AND event.id < :before
        AND CASE WHEN event.aggregateid = :key
                 THEN convert_from(event.payload, 'UTF8')::json ->> 'order_id' = :order_id END
    ORDER BY event.id LIMIT 1
    """
)

_RECEIVED = text(
    """
    SELECT outcome, detail, received_at, topic, partition, "offset" FROM inbox WHERE id = :id
    """
)

# A record that is not a valid event has no event_id, but its headers may have one. They are
# searched as the text that `write_dead_letter` wrote: PostgreSQL cannot decode JSON with a NUL.
_DEAD_LETTERS = text(
    """
    SELECT letter.id, letter.reason, letter.detail, letter.state, letter.parked_at,
           request.action, request.answer, request.detail AS answer_detail, request.requested_by,
           request.answered_at
    FROM dead_letters AS letter
    LEFT JOIN dead_letter_requests AS request ON request.dead_letter_id = letter.id
    WHERE letter.event_id = :id
        OR (letter.event_id IS NULL AND position(:header IN letter.headers::text) > 0)
    ORDER BY letter.id, request.id
    """
)

_ATTEMPTS = text(
    "SELECT attempts, reason, detail, last_at FROM inbox_attempts WHERE event_id = :id"
)

# The table of circuit breakers has an older name.
_IS_STOPPED = text(
    "SELECT EXISTS (SELECT FROM inbox_brakes WHERE type = :type AND stopped_at IS NOT NULL)"
)

# By the small partial index inbox_not_applied.
_ANOMALIES = text(
    """
    SELECT id, detail, received_at FROM inbox
    WHERE outcome = 'anomaly' AND key = :order_id ORDER BY received_at
    """
)

_EVENT_BY_ID = text("SELECT payload FROM outbox WHERE id = :id")

_LETTER_BY_EVENT = text("SELECT value FROM dead_letters WHERE event_id = :id LIMIT 1")

_EVENTS_OF_REQUEST = text(
    """
    SELECT payload FROM outbox
    WHERE id >= :low AND id < :high AND requestid = :request_id LIMIT :limit
    """
)

_STUCK = text(
    """
    SELECT id FROM orders
    WHERE status = 'created' AND created_at < clock_timestamp() - make_interval(secs => :age_s)
    ORDER BY created_at LIMIT :limit
    """
)


def read_order(orders: Connection, order_id: UUID) -> RowMapping | None:
    """Return an order."""
    return orders.execute(_ORDER, {"id": order_id}).mappings().one_or_none()


def read_payment(payments: Connection, order_id: UUID) -> RowMapping | None:
    """Return what payments decided on an order."""
    return payments.execute(_PAYMENT, {"id": order_id}).mappings().one_or_none()


def read_event(
    publisher: Connection, order_id: UUID, *, key: UUID, at: datetime
) -> RowMapping | None:
    """Return the first event about an order in an outbox, and whether it is sent.

    Args:
        publisher: the database of the service that published it.
        order_id: the order.
        key: the event's aggregateid.
        at: the time of the row that was written with the event.
    """
    for window in _WINDOWS:
        row = publisher.execute(
            _EVENT,
            {
                "after": lowest_id(at - window),
                "before": lowest_id(at + window),
                "key": str(key),
                "order_id": str(order_id),
            },
        )
        found = row.mappings().one_or_none()
        if found is not None:
            return found
    return None


def read_received(consumer: Connection, event_id: UUID) -> RowMapping | None:
    """Return the row of an event in the inbox."""
    return consumer.execute(_RECEIVED, {"id": event_id}).mappings().one_or_none()


def read_dead_letters(consumer: Connection, event_id: UUID) -> list[RowMapping]:
    """Return the dead letters of an event: a row for each request to repair one, or one row."""
    header = json.dumps(["ce_id", str(event_id)])
    return list(consumer.execute(_DEAD_LETTERS, {"id": event_id, "header": header}).mappings())


def read_attempts(consumer: Connection, event_id: UUID) -> RowMapping | None:
    """Return the failed attempts at an event; None if it is not tried again."""
    return consumer.execute(_ATTEMPTS, {"id": event_id}).mappings().one_or_none()


def is_stopped(consumer: Connection, event_type: str) -> bool:
    """Return whether the subscription to a type of events is stopped."""
    return bool(consumer.execute(_IS_STOPPED, {"type": event_type}).scalar_one())


def read_anomalies(orders: Connection, order_id: UUID) -> list[RowMapping]:
    """Return the payment results that came when the order was already final."""
    return list(orders.execute(_ANOMALIES, {"order_id": str(order_id)}).mappings())


def read_stuck(orders: Connection, *, age_s: float, limit: int) -> list[UUID]:
    """Return the orders that are open for longer than an age, oldest first."""
    return list(orders.execute(_STUCK, {"age_s": age_s, "limit": limit}).scalars())


def find_orders(orders: Connection, payments: Connection, given: str) -> list[UUID]:
    """Find orders by the id of an order, an event or a request.

    Args:
        orders: the database of orders.
        payments: the database of payments.
        given: the id.
    """
    try:
        event_id = UUID(given)
    except ValueError:
        return _orders_of_request(orders, given)
    if read_order(orders, event_id) is not None:
        return [event_id]
    for connection in (orders, payments):
        for query in (_EVENT_BY_ID, _LETTER_BY_EVENT):
            payload = connection.execute(query, {"id": event_id}).scalar_one_or_none()
            found = None if payload is None else _order_in(payload)
            if found is not None:
                return [found]
    return _orders_of_request(orders, given)


def _orders_of_request(orders: Connection, request_id: str) -> list[UUID]:
    """Look through the outbox, newest day first: no index has the request ids.

    Rows of days without a partition are in the default partition, which is looked through last.
    """
    for low, high in _days(orders):
        rows = orders.execute(
            _EVENTS_OF_REQUEST,
            {"low": low, "high": high, "request_id": request_id, "limit": MAX_ORDERS_PER_REQUEST},
        )
        found = [order_id for order_id in map(_order_in, rows.scalars()) if order_id is not None]
        if found:
            return found
    return []


def _days(orders: Connection) -> Iterator[tuple[UUID, UUID]]:
    """Return the ranges of ids of the days that have a partition, newest first."""
    for day in sorted(existing_days(orders, "outbox"), reverse=True):
        yield lowest_id(day), lowest_id(day + DAY)
    yield UUID(int=0), UUID(int=2**128 - 1)


def _order_in(payload: memoryview | bytes) -> UUID | None:
    try:
        return UUID(json.loads(bytes(payload))["order_id"])
    except (ValueError, KeyError, TypeError):
        return None
