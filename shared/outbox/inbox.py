"""The SQL of the consumer: what was received, what became of it, what could not be applied."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from shared.outbox.records import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy.orm import Session

    from shared.outbox.event import ReceivedEvent
    from shared.outbox.service import Outcome, Verdict

# Sorted by id, so that two consumers that were given the same events (a rebalance) wait for each
# other in one order and never in a circle.
_RECORD = text(
    """
    INSERT INTO inbox (id, type, source, topic, partition, "offset", requestid, outcome)
    SELECT * FROM unnest(
        CAST(:ids AS uuid[]), CAST(:types AS text[]), CAST(:sources AS text[]),
        CAST(:topics AS text[]), CAST(:partitions AS integer[]), CAST(:offsets AS bigint[]),
        CAST(:requestids AS text[]), CAST(:outcomes AS text[])
    ) AS event (id, type, source, topic, partition, "offset", requestid, outcome)
    ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
    """
)

_NOTE_VERDICT = text("UPDATE inbox SET outcome = :outcome, detail = :detail WHERE id = :id")

_PARK = text(
    """
    INSERT INTO dead_letters (fingerprint, event_id, type, topic, partition, "offset",
                              timestamp_ms, key, value, headers, requestid, reason, detail)
    VALUES (:fingerprint, :event_id, :type, :topic, :partition, :offset, :timestamp_ms, :key,
            :value, CAST(:headers AS json), :requestid, :reason, :detail)
    ON CONFLICT (fingerprint) DO NOTHING
    """
)


def record_new(
    session: Session, events: Sequence[ReceivedEvent], outcomes: Mapping[UUID, Outcome]
) -> set[UUID]:
    """Record events in the inbox, with the outcome they will have unless told otherwise.

    Returns:
        The ids that were not there before. An event under way in another transaction is waited
        for.
    """
    if not events:
        return set()
    rows = session.execute(
        _RECORD,
        {
            "ids": [str(event.id) for event in events],
            "types": [event.type for event in events],
            "sources": [event.source for event in events],
            "topics": [event.topic for event in events],
            "partitions": [event.partition for event in events],
            "offsets": [event.offset for event in events],
            "requestids": [event.trace.request_id for event in events],
            "outcomes": [str(outcomes[event.id]) for event in events],
        },
    )
    return set(rows.scalars())


def note_verdict(session: Session, event: ReceivedEvent, verdict: Verdict) -> None:
    """Note in the inbox that an event was not applied, and why."""
    session.execute(
        _NOTE_VERDICT,
        {
            "id": event.id,
            "outcome": str(verdict.outcome),
            "detail": f"{verdict.reason}: {verdict.detail}",
        },
    )


def park(
    session: Session, record: ConsumerRecord, event: ReceivedEvent | None, reason: str, detail: str
) -> None:
    """Put a record into the dead letters, whole. The same record is not put there twice."""
    session.execute(
        _PARK,
        {
            "fingerprint": fingerprint(record),
            "event_id": event.id if event else None,
            "type": event.type if event else None,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp,
            "key": record.key,
            "value": record.value,
            "headers": json.dumps([_header(name, value) for name, value in record.headers or ()]),
            "requestid": event.trace.request_id if event else None,
            "reason": reason,
            "detail": _storable(detail),
        },
    )


def _storable(detail: str) -> str:
    """Without what PostgreSQL has no place for: it may quote the event that is to be parked."""
    return detail.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


def _header(name: str, value: bytes | None) -> list[Any]:
    if value is None:
        return [name, None]
    try:
        return [name, value.decode()]
    except UnicodeDecodeError:
        return [name, {"base64": base64.b64encode(value).decode()}]
