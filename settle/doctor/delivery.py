"""What is late or stuck on its way: unsent, refused, parked, contradicting, and open orders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from settle.doctor.check import duration, fail, graded, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from settle.doctor.check import Check
    from settle.doctor.database import Database

LATE_WARN_S = 60.0
LATE_FAIL_S = 600.0
# Counted so far, and no further: the answer is the same.
COUNT_LIMIT = 10_000
IDS_SHOWN = 5

# The oldest of each shard by its index, however long the shard's tail is.
_UNSENT = """
    SELECT (SELECT count(*) FROM (SELECT FROM outbox_pending LIMIT %(limit)s) AS counted),
           extract(epoch FROM clock_timestamp() - oldest.created_at)::float, oldest.id::text
    FROM (
        SELECT o.created_at, o.id
        FROM outbox_shards s
        CROSS JOIN LATERAL (
            SELECT p.id FROM outbox_pending p WHERE p.shard = s.shard ORDER BY p.seq LIMIT 1
        ) AS head
        JOIN outbox o ON o.id = head.id
        ORDER BY o.created_at LIMIT 1
    ) AS oldest
"""
_REFUSED = """
    SELECT id::text, reason, count(*) OVER () FROM outbox_refused ORDER BY seq DESC LIMIT %(shown)s
"""
_STOPPED = """
    SELECT topic, type, error, failures, extract(epoch FROM clock_timestamp() - stopped_at)::float
    FROM inbox_brakes WHERE stopped_at IS NOT NULL ORDER BY topic, type
"""
_DEAD_LETTERS = """
    SELECT reason, count(*), extract(epoch FROM clock_timestamp() - max(parked_at))::float
    FROM dead_letters GROUP BY reason ORDER BY 2 DESC
"""
_NOT_APPLIED = """
    SELECT id::text, count(*) OVER () FROM (
        SELECT id, received_at FROM inbox WHERE outcome = %(outcome)s
        ORDER BY received_at DESC LIMIT %(limit)s
    ) AS found ORDER BY received_at DESC LIMIT %(shown)s
"""
_OPEN_ORDERS = """
    SELECT id::text, extract(epoch FROM clock_timestamp() - created_at)::float, count(*) OVER ()
    FROM (
        SELECT id, created_at FROM orders
        WHERE status = 'created' AND created_at < clock_timestamp() - interval '1 minute'
        ORDER BY created_at LIMIT %(limit)s
    ) AS late ORDER BY created_at LIMIT %(shown)s
"""


def check_unsent(database: Database) -> Iterator[Check]:
    """The oldest event that the relay has not sent."""
    name = f"{database.service} unsent"
    found = database.ask(_UNSENT, {"limit": COUNT_LIMIT})
    if not found:
        yield ok(name, "none")
        return
    count, age_s, event_id = found[0]
    yield graded(
        name,
        age_s,
        f"{_counted(count)}, the oldest since {duration(age_s)}: {event_id}",
        "see that the relay runs and the broker takes events; while events are replayed it is "
        "to be expected",
        warn_over=LATE_WARN_S,
        fail_over=LATE_FAIL_S,
    )


def check_refused(database: Database) -> Iterator[Check]:
    """Events that the broker will never take: what they tell is told to nobody."""
    name = f"{database.service} refused"
    found = database.ask(_REFUSED, {"shown": IDS_SHOWN})
    if not found:
        yield ok(name, "none")
        return
    _, reason, count = found[0]
    yield fail(
        name,
        f"{count}: {_ids([event_id for event_id, *_ in found], count)}; {reason}",
        "mend what the reason names (docs/how-to/refused-event.md); then delete them from "
        "outbox_refused and outbox-relay replay",
    )


def check_stopped(database: Database) -> Iterator[Check]:
    """Subscriptions whose handler failed for every event."""
    name = f"{database.service} stopped"
    found = database.ask(_STOPPED)
    if not found:
        yield ok(name, "no subscription is stopped")
    for topic, event_type, error, failures, age_s in found:
        yield fail(
            name,
            f"{event_type} of {topic} for {duration(age_s)}: {failures} failures in a row, {error}",
            f"correct the handler; the consumer goes on by itself, or at once with"
            f" inbox-consumer resume {database.service}",
        )


def check_dead_letters(database: Database) -> Iterator[Check]:
    """Records that could not be applied."""
    name = f"{database.service} dead letters"
    found = database.ask(_DEAD_LETTERS)
    if not found:
        yield ok(name, "none")
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count, _ in found)
    latest_s = min(age_s for _, _, age_s in found)
    yield warn(
        name,
        f"{reasons}; the last {duration(latest_s)} ago",
        f"inbox-consumer dead-letters list {database.service}",
    )


def check_parked(database: Database) -> Iterator[Check]:
    """Events that are known, and were not applied."""
    yield _check_outcome(
        database, "parked", f"inbox-consumer dead-letters list {database.service} shows them whole"
    )


def check_anomalies(database: Database) -> Iterator[Check]:
    """Events that contradict what is final."""
    yield _check_outcome(
        database, "anomaly", "SELECT * FROM inbox WHERE outcome = 'anomaly' tells what each says"
    )


def _check_outcome(database: Database, outcome: str, remedy: str) -> Check:
    name = f"{database.service} {outcome}"
    found = database.ask(
        _NOT_APPLIED, {"outcome": outcome, "limit": COUNT_LIMIT, "shown": IDS_SHOWN}
    )
    if not found:
        return ok(name, "none")
    count = found[0][1]
    return warn(name, f"{_counted(count)}: {_ids([each[0] for each in found], count)}", remedy)


def check_open_orders(database: Database) -> Iterator[Check]:
    """Orders that nobody has paid or refused."""
    name = f"{database.service} open"
    found = database.ask(_OPEN_ORDERS, {"limit": COUNT_LIMIT, "shown": IDS_SHOWN})
    if not found:
        yield ok(name, f"none for more than {duration(LATE_WARN_S)}")
        return
    _, age_s, count = found[0]
    yield graded(
        name,
        age_s,
        f"{_counted(count)} in created, the oldest for {duration(age_s)}: "
        f"{_ids([order_id for order_id, *_ in found], count)}",
        "follow the first: unsent here, lag and dead letters of payments, unsent there, lag and "
        "dead letters here",
        warn_over=LATE_WARN_S,
        fail_over=LATE_FAIL_S,
    )


def _counted(count: int) -> str:
    return f"{count} or more" if count >= COUNT_LIMIT else str(count)


def _ids(shown: list[str], count: int) -> str:
    more = ", ..." if count > len(shown) else ""
    return ", ".join(shown) + more
