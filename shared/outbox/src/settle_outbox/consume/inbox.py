"""The SQL of the inbox: which events were received, what became of them, and failed attempts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

    from settle_outbox.event import ReceivedEvent
    from settle_outbox.service import Outcome, Verdict

# Limits of the counts: another publisher's topic may have any number of types, each of 4,000 bytes.
# New types are not counted beyond this number. Types that begin alike count as one: an entry of
# the table's index has at most 2,704 bytes.
SKIPPED_TYPES_MAX = 1_000
SKIPPED_TYPE_MAX_LENGTH = 200

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


class SkippedType(NamedTuple):
    """A type of events that a service does not subscribe to, of a topic that it reads."""

    topic: str
    type: str  # its first SKIPPED_TYPE_MAX_LENGTH characters


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


def count_skipped(session: Session, events: Sequence[ReceivedEvent]) -> list[SkippedType]:
    """Count events that nothing is done with, by topic and type.

    An event that is delivered again is counted again: nothing else is kept of it. The rows are
    locked until the transaction ends, and other consumers wait for them, so call it last.

    Args:
        session: of the transaction that deals with the rest of their batch.
        events: of types that the service does not subscribe to.

    Returns:
        The types that were not counted before.
    """
    counts = Counter(
        SkippedType(event.topic, event.type[:SKIPPED_TYPE_MAX_LENGTH]) for event in events
    )
    rows = session.execute(
        _COUNT_SKIPPED,
        {
            "topics": [each.topic for each in counts],
            "types": [each.type for each in counts],
            "counts": list(counts.values()),
            "types_max": SKIPPED_TYPES_MAX,
        },
    )
    return [SkippedType(topic, type_) for topic, type_, is_new in rows if is_new]


def record_verdict(session: Session, event: ReceivedEvent, verdict: Verdict) -> None:
    """Note in the inbox that an event was not applied, and why."""
    session.execute(
        _RECORD_VERDICT,
        {
            "id": event.id,
            "outcome": str(verdict.outcome),
            "detail": storable(f"{verdict.reason}: {verdict.detail}"),
        },
    )


def storable(detail: str) -> str:
    """Escape what a text column cannot hold; an error's text may quote a malformed event."""
    return detail.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
