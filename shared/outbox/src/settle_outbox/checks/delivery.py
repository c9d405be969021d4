"""Check for events that are late, refused or not applied, and for stopped subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from settle_outbox.checks.check import duration, fail, grade, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from settle_outbox.checks.check import Finding
    from settle_outbox.checks.database import Database

LATE_WARN_S = 60.0
LATE_FAIL_S = 600.0
# Rows are counted up to this number. A higher count would not change what to do.
COUNT_LIMIT = 10_000
IDS_SHOWN = 5

# The oldest event of all shards. The index of (shard, seq) finds the oldest of each shard, however
# many events the shard has.
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
    SELECT id::text, reason, count(*) OVER () FROM outbox_refused WHERE discarded_at IS NULL
    ORDER BY seq DESC LIMIT %(shown)s
"""
_STOPPED = """
    SELECT topic, type, error, failures, extract(epoch FROM clock_timestamp() - stopped_at)::float
    FROM inbox_brakes WHERE stopped_at IS NOT NULL ORDER BY topic, type
"""
_DEAD_LETTERS = """
    SELECT reason, count(*), extract(epoch FROM clock_timestamp() - max(parked_at))::float
    FROM dead_letters WHERE state = 'open' GROUP BY reason ORDER BY 2 DESC
"""
_NOT_APPLIED = """
    SELECT id::text, count(*) OVER () FROM (
        SELECT id, received_at FROM inbox WHERE outcome = %(outcome)s AND NOT EXISTS (
            SELECT FROM dead_letters WHERE event_id = inbox.id AND state = 'discarded'
        )
        ORDER BY received_at DESC LIMIT %(limit)s
    ) AS found ORDER BY received_at DESC LIMIT %(shown)s
"""


def check_unsent(database: Database) -> Iterator[Finding]:
    """Check the age of the oldest event that the relay has not sent."""
    name = f"{database.service} unsent"
    found = database.ask(_UNSENT, {"limit": COUNT_LIMIT})
    if not found:
        yield ok(name, "none")
        return
    count, age_s, event_id = found[0]
    yield grade(
        name,
        age_s,
        f"{counted(count)}, the oldest for {duration(age_s)}: {event_id}",
        "check that the relay runs and that the broker accepts events; during a replay this is"
        " normal",
        warn_over=LATE_WARN_S,
        fail_over=LATE_FAIL_S,
    )


def check_refused(database: Database) -> Iterator[Finding]:
    """Check for refused events. They are never sent, so no consumer gets them."""
    name = f"{database.service} refused"
    found = database.ask(_REFUSED, {"shown": IDS_SHOWN})
    if not found:
        yield ok(name, "none")
        return
    _, reason, count = found[0]
    yield fail(
        name,
        f"{count}: {shown_ids([event_id for event_id, *_ in found], count)}; {reason}",
        "correct what the reason names (docs/how-to/refused-event.md); then outbox-relay refused"
        f" retry {database.service}",
    )


def check_stopped(database: Database) -> Iterator[Finding]:
    """Check for subscriptions that stopped because their handler failed many times in a row."""
    name = f"{database.service} stopped"
    found = database.ask(_STOPPED)
    if not found:
        yield ok(name, "no subscription is stopped")
    for topic, event_type, error, failures, age_s in found:
        yield fail(
            name,
            f"{event_type} of {topic} for {duration(age_s)}: {failures} failures in a row, {error}",
            "correct the handler; the consumer goes on by itself, or at once after inbox-consumer"
            f" resume {database.service}",
        )


def check_dead_letters(database: Database) -> Iterator[Finding]:
    """Check for open dead letters."""
    name = f"{database.service} dead letters"
    found = database.ask(_DEAD_LETTERS)
    if not found:
        yield ok(name, "none")
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count, _ in found)
    newest_s = min(age_s for _, _, age_s in found)
    yield warn(
        name,
        f"{reasons}; the last {duration(newest_s)} ago",
        f"read them with inbox-consumer dead-letters list {database.service}, then retry or discard"
        " them (docs/how-to/dead-letter.md)",
    )


def check_parked(database: Database) -> Iterator[Finding]:
    """Check for parked events, except those whose dead letter is discarded."""
    yield _check_outcome(
        database,
        "parked",
        f"read them with inbox-consumer dead-letters list {database.service}",
    )


def check_anomalies(database: Database) -> Iterator[Finding]:
    """Check for anomalies: valid events that changed nothing."""
    yield _check_outcome(
        database, "anomaly", "read each with SELECT * FROM inbox WHERE outcome = 'anomaly'"
    )


def _check_outcome(database: Database, outcome: str, remedy: str) -> Finding:
    name = f"{database.service} {outcome}"
    found = database.ask(
        _NOT_APPLIED, {"outcome": outcome, "limit": COUNT_LIMIT, "shown": IDS_SHOWN}
    )
    if not found:
        return ok(name, "none")
    count = found[0][1]
    return warn(name, f"{counted(count)}: {shown_ids([row[0] for row in found], count)}", remedy)


def counted(count: int) -> str:
    """Format a count that stops at `COUNT_LIMIT`."""
    return f"{count} or more" if count >= COUNT_LIMIT else str(count)


def shown_ids(shown: Sequence[str], count: int) -> str:
    """Join some ids, and show that there are more of them.

    Args:
        shown: the ids.
        count: how many there are in all.
    """
    return ", ".join(shown) + (", ..." if count > len(shown) else "")
