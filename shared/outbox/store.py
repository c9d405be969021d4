"""Adding events to the outbox, inside the caller's transaction."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sqlalchemy import text

from shared.errors import SettleError
from shared.outbox.wakeup import mark_for_wakeup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from shared.outbox.event import Event

# A broker takes records of up to 1 MiB unless told otherwise (message.max.bytes); the rest is
# room for the headers and the batch around the record.
PAYLOAD_MAX_BYTES = 900_000


class EventTooLargeError(SettleError):
    """An event's payload is larger than a broker takes."""


_ADD = text(
    """
    WITH added AS (
        INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, requestid, traceparent)
        SELECT id, aggregatetype, aggregateid, type, payload, requestid, traceparent
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:aggregatetypes AS text[]), CAST(:aggregateids AS text[]),
            CAST(:types AS text[]), CAST(:payloads AS bytea[]), CAST(:requestids AS text[]),
            CAST(:traceparents AS text[])
        ) WITH ORDINALITY AS event (
            id, aggregatetype, aggregateid, type, payload, requestid, traceparent, position
        )
        ORDER BY position
        RETURNING shard, seq, id
    )
    INSERT INTO outbox_pending (shard, seq, id) SELECT shard, seq, id FROM added
    """
)


# For the driver itself: every order executes it. Through SQLAlchemy's text(), its thirteen
# parameters took 5 to 10 % of the request's time.
_WITH_EVENT = """
    WITH business AS (
        {statement}
    ), added AS (
        INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, requestid, traceparent)
        VALUES (
            %(event_id)s, %(event_aggregatetype)s, %(event_aggregateid)s, %(event_type)s,
            %(event_payload)s, %(event_requestid)s, %(event_traceparent)s
        )
        RETURNING shard, seq, id
    )
    INSERT INTO outbox_pending (shard, seq, id) SELECT shard, seq, id FROM added
    """


def with_event(statement: str) -> str:
    """Join a use case's own statement with the adding of one event, for `add_with`.

    Args:
        statement: an INSERT, UPDATE or DELETE in SQL, parameters as ``%(name)s``, in the form that
            psycopg2 takes; none of their names begins with ``event_``. It must take no lock that
            decides the order of events: the event may get its number before it.
    """
    return _WITH_EVENT.format(statement=statement)


def add_with(
    session: Session, statement: str, parameters: Mapping[str, object], event: Event
) -> None:
    """Execute a use case's own statement and add an event: one round trip instead of two.

    Args:
        session: its transaction holds both, or neither.
        statement: made by `with_event`.
        parameters: of the use case's own statement.
        event: what it is told by; see `add`.

    Raises:
        EventTooLargeError: the payload is over `PAYLOAD_MAX_BYTES`.
    """
    session.connection().exec_driver_sql(
        statement,
        {
            **parameters,
            "event_id": str(event.id),
            "event_aggregatetype": event.aggregatetype,
            "event_aggregateid": event.aggregateid,
            "event_type": event.type,
            "event_payload": _payload(event),
            "event_requestid": event.trace.request_id,
            "event_traceparent": event.trace.traceparent,
        },
    )
    mark_for_wakeup(session)


def add(session: Session, event: Event) -> None:
    """Add an event to the outbox. It is sent if, and only if, the caller's transaction commits.

    A use case that locks its aggregate adds its event after taking the lock: events of one key
    are sent in the order in which they were added.

    Raises:
        EventTooLargeError: the payload is over `PAYLOAD_MAX_BYTES`.
    """
    add_all(session, [event])


def add_all(session: Session, events: Sequence[Event]) -> None:
    """Add events in their order, by one statement; see `add`."""
    if not events:
        return
    session.execute(
        _ADD,
        {
            "ids": [str(event.id) for event in events],
            "aggregatetypes": [event.aggregatetype for event in events],
            "aggregateids": [event.aggregateid for event in events],
            "types": [event.type for event in events],
            "payloads": [_payload(event) for event in events],
            "requestids": [event.trace.request_id for event in events],
            "traceparents": [event.trace.traceparent for event in events],
        },
    )
    mark_for_wakeup(session)


def _payload(event: Event) -> bytes:
    payload = json.dumps(
        event.data, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise EventTooLargeError(
            f"Event {event.id} ({event.type}, key {event.aggregateid}) has a payload of "
            f"{len(payload)} bytes; at most {PAYLOAD_MAX_BYTES} can be sent."
        )
    return payload
