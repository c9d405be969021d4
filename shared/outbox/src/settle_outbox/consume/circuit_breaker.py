"""The circuit breaker: it stops a subscription whose handler fails for every event.

Without it, a defect of the handler would turn all events of a day into dead letters. The database
counts failures in a row with the same error, for each subscription, over all consumers and
restarts. At the limit, the subscription is stopped. Its consumers keep their offsets and try one
event from time to time. The first success, or an operator (`inbox-consumer resume`), releases the
subscription.

The table is called ``inbox_brakes``, and the limit is the setting BRAKE_FAILURES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import text

from settle_outbox.consume.inbox import storable

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

SubscriptionKey = tuple[str, str]  # topic and type

# This runs for each batch, so it must be cheap. It only checks whether the tables of failures have
# rows, because they are nearly always empty.
_READ = text(
    """
    SELECT (SELECT before FROM inbox_horizon ORDER BY before DESC LIMIT 1) AS horizon,
           EXISTS (SELECT FROM inbox_brakes) AS has_brakes,
           EXISTS (SELECT FROM inbox_attempts) AS has_attempts
    """
)

_BREAKERS = text("SELECT topic, type, error, stopped_at FROM inbox_brakes")

# Another error than the last one starts the count at 1. A stopped subscription stays stopped.
_COUNT_FAILURE = text(
    """
    INSERT INTO inbox_brakes AS brake (topic, type, error, failures, detail, stopped_at)
    VALUES (:topic, :type, :error, 1, :detail, CASE WHEN 1 >= :limit THEN now() END)
    ON CONFLICT (topic, type) DO UPDATE SET
        failures = CASE WHEN brake.error = excluded.error THEN brake.failures + 1 ELSE 1 END,
        error = excluded.error,
        detail = excluded.detail,
        failed_at = now(),
        stopped_at = coalesce(
            brake.stopped_at,
            CASE
                WHEN CASE WHEN brake.error = excluded.error THEN brake.failures + 1 ELSE 1 END
                    >= :limit
                THEN now()
            END
        )
    RETURNING stopped_at IS NOT NULL
    """
)

_RELEASE = text("DELETE FROM inbox_brakes WHERE topic = :topic AND type = :type")

_STOPPED = text("SELECT topic, type FROM inbox_brakes WHERE stopped_at IS NOT NULL")

_RESUME = text(
    """
    DELETE FROM inbox_brakes
    WHERE stopped_at IS NOT NULL AND (CAST(:type AS text) IS NULL OR type = :type)
    RETURNING topic, type
    """
)


@dataclass(frozen=True, slots=True)
class Breaker:
    """The circuit breaker of a subscription whose last events failed.

    Args:
        error: the class and SQLSTATE that the failures share.
        stopped: whether the subscription is stopped.
    """

    error: str
    stopped: bool


class InboxState(NamedTuple):
    """The state of the inbox that a batch depends on.

    Args:
        horizon: the oldest id that the inbox remembers, or None if nothing was ever dropped. A
            wrong clock may have moved the horizon into the future. It is valid even then, because
            rows with lower ids may have been dropped.
        has_attempts: whether the inbox has failed attempts at any event.
        breakers: the circuit breakers of subscriptions whose last events failed.
    """

    horizon: UUID | None
    has_attempts: bool
    breakers: dict[SubscriptionKey, Breaker]


def read_state(session: Session) -> InboxState:
    """Read the state of the inbox.

    Call it after the batch's ids were inserted. The INSERT waits while a partition of these ids is
    dropped, so the horizon that is read here includes that drop.
    """
    row = session.execute(_READ).one()
    rows = session.execute(_BREAKERS) if row.has_brakes else ()
    breakers = {
        (topic, event_type): Breaker(error, stopped=stopped_at is not None)
        for topic, event_type, error, stopped_at in rows
    }
    return InboxState(row.horizon, row.has_attempts, breakers)


def count_failure(
    session: Session, key: SubscriptionKey, *, error: str, detail: str, limit: int
) -> bool:
    """Count a failure of a handler for a single event.

    Args:
        session: of a new transaction, because the failed one was rolled back.
        key: of the subscription.
        error: a text that failures with the same cause share.
        detail: a sentence about this failure.
        limit: number of failures in a row that stops the subscription.

    Returns:
        Whether the subscription is stopped. If it is, the event must not be parked.
    """
    topic, event_type = key
    stopped: bool = session.execute(
        _COUNT_FAILURE,
        {
            "topic": topic,
            "type": event_type,
            "error": error,
            "detail": storable(detail),
            "limit": limit,
        },
    ).scalar_one()
    return stopped


def release(session: Session, key: SubscriptionKey) -> None:
    """Remove the failures of a subscription, because an event was applied."""
    session.execute(_RELEASE, {"topic": key[0], "type": key[1]})


def stopped_subscriptions(session: Session) -> set[SubscriptionKey]:
    """Return the stopped subscriptions."""
    return {(row.topic, row.type) for row in session.execute(_STOPPED)}


def resume(connection: Connection, event_type: str | None) -> list[SubscriptionKey]:
    """Release stopped subscriptions. Their consumers continue within a second.

    Args:
        connection: in a transaction.
        event_type: of the subscriptions to release, or None for all stopped ones.

    Returns:
        The subscriptions that were stopped.
    """
    rows = connection.execute(_RESUME, {"type": event_type})
    return [(row.topic, row.type) for row in rows]
