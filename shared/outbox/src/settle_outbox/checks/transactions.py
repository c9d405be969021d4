"""Check for long transactions: they hold back vacuum, and the events that they added."""

from __future__ import annotations

from typing import TYPE_CHECKING

from settle_outbox.checks.check import duration, grade, ok
from settle_outbox.checks.database import APPLICATION_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from settle_outbox.checks.check import Finding
    from settle_outbox.checks.database import Database

LONG_WARN_S = 60.0
LONG_FAIL_S = 600.0

_TRANSACTIONS = """
    SELECT pid::text, coalesce(application_name, ''), coalesce(state, ''),
           extract(epoch FROM clock_timestamp() - xact_start)::float
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'
      AND xact_start IS NOT NULL AND application_name <> %(doctor)s
    UNION ALL
    SELECT gid, 'prepared transaction', 'prepared',
           extract(epoch FROM clock_timestamp() - prepared)::float
    FROM pg_prepared_xacts WHERE database = current_database()
    ORDER BY 4 DESC
"""
_HIDDEN = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query = '<insufficient privilege>'
"""


def check_transactions(database: Database) -> Iterator[Finding]:
    """Check how long the oldest transaction of the database has been open."""
    name = f"{database.service} transactions"
    found = database.ask(_TRANSACTIONS, {"doctor": APPLICATION_NAME})
    ((hidden,),) = database.ask(_HIDDEN)
    unseen = f"; {hidden} of other roles are hidden (GRANT pg_read_all_stats)" if hidden else ""
    if not found:
        yield ok(name, f"none open{unseen}")
        return
    who, application, state, age_s = found[0]
    yield grade(
        name,
        age_s,
        f"{len(found)} open, the oldest for {duration(age_s)}: {who} ({application or 'no name'},"
        f" {state}){unseen}",
        "end it with SELECT pg_terminate_backend(pid) or COMMIT PREPARED: it holds back vacuum,"
        " and the events that it added",
        warn_over=LONG_WARN_S,
        fail_over=LONG_FAIL_S,
    )
