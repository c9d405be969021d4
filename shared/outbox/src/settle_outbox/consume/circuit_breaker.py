"""Stop a subscription whose handler fails for every event, instead of parking them all.

A defect that fails every event would turn a day's orders into dead letters. So failures in a row
with one error are counted for each subscription, in the database, over all consumers and restarts.
At the limit the subscription is stopped: its consumers keep their offsets and try one event from
time to time. The first success, or an operator (`inbox-consumer resume`), releases it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import text

from settle_outbox.consume.inbox import storable

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

SubscriptionKey = tuple[str, str]  # topic and type

# One statement for each batch, so as cheap as can be: these tables are empty nearly always.
_READ = text(
    """
    SELECT (SELECT before FROM inbox_horizon ORDER BY before DESC LIMIT 1) AS horizon,
           EXISTS (SELECT FROM inbox_brakes) AS has_brakes,
           EXISTS (SELECT FROM inbox_attempts) AS has_attempts
    """
)

_BREAKERS = text("SELECT topic, type, error, stopped_at FROM inbox_brakes")

# The same error again counts on; another one starts at 1. A stopped subscription stays stopped.
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

_STOPPED = text(
    """
    SELECT topic, type, error, detail, failures, stopped_at FROM inbox_brakes
    WHERE stopped_at IS NOT NULL ORDER BY topic, type
    """
)

_RESUME = text(
    """
    DELETE FROM inbox_brakes
    WHERE stopped_at IS NOT NULL AND (CAST(:type AS text) IS NULL OR type = :type)
    RETURNING topic, type
    """
)


@dataclass(frozen=True, slots=True)
class Breaker:
    """The last failures of a subscription.

    Args:
        error: the class and SQLSTATE that the failures share.
        stopped: whether there were enough of them to stop the subscription.
    """

    error: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class StoppedSubscription:
    """A subscription that is stopped, for operators."""

    topic: str
    type: str
    error: str
    detail: str
    failures: int
    stopped_at: datetime


class InboxState(NamedTuple):
    """What a batch must know of the inbox.

    Args:
        horizon: the oldest id that the inbox still knows; None if nothing was ever dropped. One
            in the future, which a wrong clock left, holds as well: rows up to there were dropped.
        has_attempts: whether attempts at any event have failed.
        breakers: of the subscriptions whose last events failed.
    """

    horizon: UUID | None
    has_attempts: bool
    breakers: dict[SubscriptionKey, Breaker]


def read_state(session: Session) -> InboxState:
    """Read the state of the inbox.

    Call it after the batch's ids were inserted into the inbox: a partition dropped before that has
    moved the horizon already.
    """
    row = session.execute(_READ).one()
    found = session.execute(_BREAKERS) if row.has_brakes else ()
    breakers = {
        (topic, event_type): Breaker(error, stopped=stopped_at is not None)
        for topic, event_type, error, stopped_at in found
    }
    return InboxState(row.horizon, row.has_attempts, breakers)


def count_failure(
    session: Session, key: SubscriptionKey, *, error: str, detail: str, limit: int
) -> bool:
    """Count an event that failed alone in the handler.

    Args:
        session: of a transaction of its own; the failed one was rolled back.
        key: the subscription.
        error: what failures of one cause have in common.
        detail: a sentence on this failure.
        limit: how many failures in a row stop the subscription.

    Returns:
        Whether the subscription is stopped, now or before. The event must not be parked then.
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
    """Forget the failures of a subscription, because an event of it was applied."""
    session.execute(_RELEASE, {"topic": key[0], "type": key[1]})


def stopped_subscriptions(connection: Connection) -> list[StoppedSubscription]:
    """Return the subscriptions that are stopped."""
    return [StoppedSubscription(**row) for row in connection.execute(_STOPPED).mappings()]


def resume(connection: Connection, event_type: str | None) -> list[SubscriptionKey]:
    """Release stopped subscriptions; their consumers notice within a second.

    Args:
        connection: in a transaction.
        event_type: of which subscription; None releases all of the service.

    Returns:
        Those that were stopped.
    """
    rows = connection.execute(_RESUME, {"type": event_type})
    return [(row.topic, row.type) for row in rows]
