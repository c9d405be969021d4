"""The SQL of the inbox: received events, their outcomes, and failed attempts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import text

from settle_outbox.uuid7 import time_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

    from settle_outbox.event import ReceivedEvent
    from settle_outbox.service import Outcome, Verdict

# The topic of another publisher may have any number of types, each of up to 4,000 bytes. So the
# number of types that are counted is limited. The length of a type is limited, because an entry of
# the table's index can have at most 2,704 bytes.
SKIPPED_TYPES_MAX = 1_000
SKIPPED_TYPE_MAX_LENGTH = 200
# A key of another publisher may have a megabyte.
KEY_MAX_LENGTH = 200

# Sorted by id. After a rebalance, two consumers may record the same events. In the same order they
# cannot cause a deadlock.
_RECORD = text(
    """
    INSERT INTO inbox (id, type, source, topic, partition, "offset", key, requestid, outcome)
    SELECT * FROM unnest(
        CAST(:ids AS uuid[]), CAST(:types AS text[]), CAST(:sources AS text[]),
        CAST(:topics AS text[]), CAST(:partitions AS integer[]), CAST(:offsets AS bigint[]),
        CAST(:keys AS text[]), CAST(:requestids AS text[]), CAST(:outcomes AS text[])
    ) AS event (id, type, source, topic, partition, "offset", key, requestid, outcome)
    ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
    """
)

_DELETE_EVENTS = text("DELETE FROM inbox WHERE id = ANY(CAST(:ids AS uuid[]))")

_DELETE_ATTEMPTS = text("DELETE FROM inbox_attempts WHERE event_id = ANY(CAST(:ids AS uuid[]))")

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

# Sorted, for the same reason as _RECORD.
_COUNT_SKIPPED = text(
    """
    INSERT INTO inbox_skipped AS known (topic, type, records)
    SELECT * FROM unnest(
        CAST(:topics AS text[]), CAST(:types AS text[]), CAST(:counts AS bigint[])
    ) AS skipped (topic, type, records)
    WHERE (SELECT count(*) FROM inbox_skipped) < :types_max OR EXISTS (
        SELECT FROM inbox_skipped AS counted
        WHERE counted.topic = skipped.topic AND counted.type = skipped.type
    )
    ORDER BY topic, type
    ON CONFLICT (topic, type) DO UPDATE SET
        records = known.records + excluded.records,
        last_at = greatest(known.last_at, excluded.last_at)
    RETURNING topic, type, first_at = last_at AS is_new
    """
)

_RECORD_VERDICT = text("UPDATE inbox SET outcome = :outcome, detail = :detail WHERE id = :id")


def record_new(session: Session, events: Sequence[ReceivedEvent], outcome: Outcome) -> set[UUID]:
    """Record events in the inbox.

    Args:
        session: of the transaction that also writes the effects.
        events: each id once.
        outcome: of all of them. A verdict may change it later.

    Returns:
        The ids that were not in the inbox. If another transaction is recording one of them, the
        call waits for the end of that transaction.
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
            "keys": [key_text(event.key) for event in events],
            "requestids": [event.trace.request_id for event in events],
            "outcomes": [str(outcome)] * len(events),
        },
    )
    return set(rows.scalars())


def delete_events(session: Session, event_ids: Sequence[UUID]) -> None:
    """Delete events that this transaction recorded, but that must not be applied."""
    if event_ids:
        session.execute(_DELETE_EVENTS, {"ids": [str(event_id) for event_id in event_ids]})


def delete_attempts(session: Session, event_ids: Sequence[UUID]) -> None:
    """Delete the failed attempts at events that are applied or become dead letters."""
    session.execute(_DELETE_ATTEMPTS, {"ids": [str(event_id) for event_id in event_ids]})


def count_attempt(session: Session, event_id: UUID, reason: str, detail: str) -> int:
    """Count a failed attempt at an event.

    Args:
        session: of a new transaction, because the attempt's transaction was rolled back.
        event_id: of the event.
        reason: of the failure. Another reason than the last one starts the count at 1.
        detail: a sentence about the failure.

    Returns:
        The number of attempts that failed in a row for this reason.
    """
    attempts: int = session.execute(
        _COUNT_ATTEMPT,
        {"event_id": event_id, "reason": reason, "detail": storable(detail)},
    ).scalar_one()
    return attempts


def count_skipped(session: Session, events: Sequence[ReceivedEvent]) -> list[tuple[str, str]]:
    """Count events of types without a subscription, by topic and type.

    An event that is delivered twice is counted twice, because it has no inbox row. Call it last in
    the transaction: it locks the rows of the counts, and other consumers wait for them.

    Args:
        session: of the transaction that applies the rest of the batch.
        events: the events.

    Returns:
        The topics and types that were not counted before.
    """
    counts = Counter((event.topic, event.type[:SKIPPED_TYPE_MAX_LENGTH]) for event in events)
    rows = session.execute(
        _COUNT_SKIPPED,
        {
            "topics": [topic for topic, _ in counts],
            "types": [event_type for _, event_type in counts],
            "counts": list(counts.values()),
            "types_max": SKIPPED_TYPES_MAX,
        },
    )
    return [(topic, event_type) for topic, event_type, is_new in rows if is_new]


def record_verdict(session: Session, event: ReceivedEvent, verdict: Verdict) -> None:
    """Record in the inbox that a handler did not apply an event, and the reason."""
    session.execute(
        _RECORD_VERDICT,
        {
            "id": event.id,
            "outcome": str(verdict.outcome),
            "detail": storable(f"{verdict.reason}: {verdict.detail}"),
        },
    )


def key_text(key: bytes | None) -> str | None:
    """Return the key of a record as the inbox keeps it.

    Returns:
        Its first `KEY_MAX_LENGTH` characters, or None if it is not UTF-8 or has a NUL.
    """
    if key is None:
        return None
    try:
        decoded = key.decode()
    except UnicodeDecodeError:
        return None
    return None if "\x00" in decoded else decoded[:KEY_MAX_LENGTH]


def is_older_than_inbox(event_id: UUID, horizon: UUID) -> bool:
    """Return whether an event may have been applied and forgotten.

    Args:
        event_id: the event. If it is not a UUIDv7, it has no time, and the result is False.
        horizon: the oldest id that the inbox remembers.
    """
    return event_id < horizon and time_of(event_id) is not None


def storable(detail: str) -> str:
    """Escape characters that a text column cannot store. An error may quote them from an event."""
    return detail.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
