"""The SQL of the consumer: what was received, what became of it, what could not be applied."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from settle_outbox.consume.records import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy.orm import Session

    from settle_outbox.event import ReceivedEvent
    from settle_outbox.service import Outcome, Verdict

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

_FORGET = text("DELETE FROM inbox WHERE id = ANY(CAST(:ids AS uuid[]))")

_FORGET_ATTEMPTS = text("DELETE FROM inbox_attempts WHERE event_id = ANY(CAST(:ids AS uuid[]))")

_COUNT_ATTEMPT = text(
    """
    INSERT INTO inbox_attempts AS known (event_id, attempts, reason, detail)
    VALUES (:event_id, 1, :reason, :detail)
    ON CONFLICT (event_id) DO UPDATE SET
        attempts = CASE WHEN known.reason = excluded.reason THEN known.attempts + 1 ELSE 1 END,
        reason = excluded.reason,
        detail = excluded.detail,
        last_at = now()
    RETURNING attempts
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
    """Record events in the inbox.

    Args:
        session: its transaction also holds the events' effects.
        events: each id once.
        outcomes: what becomes of each event, by id, unless a verdict changes it.

    Returns:
        The ids that were not there before. Waits for a transaction that is recording one of them.
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


def forget(session: Session, event_ids: Sequence[UUID]) -> None:
    """Remove events that the same transaction recorded, but that must not be applied."""
    if event_ids:
        session.execute(_FORGET, {"ids": [str(event_id) for event_id in event_ids]})


def forget_attempts(session: Session, event_ids: Sequence[UUID]) -> None:
    """Forget the failed attempts at events that are applied, or become dead letters."""
    session.execute(_FORGET_ATTEMPTS, {"ids": [str(event_id) for event_id in event_ids]})


def count_attempt(session: Session, event_id: UUID, reason: str, detail: str) -> int:
    """Count a failed attempt at an event that is to be tried again.

    Args:
        session: of a transaction of its own; the attempt's was rolled back.
        event_id: the event.
        reason: why; attempts are counted for each reason from 1.
        detail: a sentence.

    Returns:
        How many attempts failed in a row for this reason.
    """
    attempts: int = session.execute(
        _COUNT_ATTEMPT,
        {"event_id": event_id, "reason": reason, "detail": storable(detail)},
    ).scalar_one()
    return attempts


def note_verdict(session: Session, event: ReceivedEvent, verdict: Verdict) -> None:
    """Note in the inbox that an event was not applied, and why."""
    session.execute(
        _NOTE_VERDICT,
        {
            "id": event.id,
            "outcome": str(verdict.outcome),
            "detail": storable(f"{verdict.reason}: {verdict.detail}"),
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
            "reason": storable(reason),
            "detail": storable(detail),
        },
    )


def storable(detail: str) -> str:
    """Escape what a text column cannot hold; an error's text may quote a malformed event."""
    return detail.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


def _header(name: str, value: bytes | None) -> list[Any]:
    if value is None:
        return [name, None]
    try:
        return [name, value.decode()]
    except UnicodeDecodeError:
        return [name, {"base64": base64.b64encode(value).decode()}]
