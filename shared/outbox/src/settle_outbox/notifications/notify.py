"""Send notifications after commits. They wake the relay and other listeners at once.

A business transaction must not contain NOTIFY, which takes a global lock at the commit
(benchmarks/README.md). So a thread of the process sends it after the commit, on a separate
connection, once for all commits since the last NOTIFY. If the process dies between the commit and
the NOTIFY, nothing is lost, because listeners also poll.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import structlog
from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.errors import first_line
from settle_outbox.runtime.threads import repeat
from settle_outbox.storage.database import make_engine
from settle_outbox.storage.sqlstate import sqlstate_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from sqlalchemy.orm import Session, SessionTransaction, sessionmaker
    from sqlalchemy.pool import ConnectionPoolEntry

CHANNEL = "outbox"
_MARK = "outbox_notifications"

# A payload must be shorter than 8000 bytes (PostgreSQL's documentation of NOTIFY). An id and its
# comma have 37.
_PAYLOAD_IDS_MAX = 200
_NOTIFY = """
SELECT pg_notify(channel, payload)
FROM unnest(%(channels)s, %(payloads)s) AS notification (channel, payload)
"""

# Pause between two notifications, in which requests are collected. Without it, a busy process would
# send one for nearly every commit (benchmarks/README.md).
_PAUSE_S = 0.025
# A connection to a frozen server is cut after this time. After a failover, the next notification
# goes to the new server.
DEADLINE_S = 10.0

_Requests = dict[str, set[str]]  # ids by channel

log = structlog.get_logger(__name__)


def wake_relay_after_commit(session: Session) -> None:
    """Wake the relay after the session's transaction has committed, because it added an event."""
    announce(session, CHANNEL, ())


def announce(session: Session, channel: str, ids: Iterable[UUID]) -> None:
    """Notify a channel after the session's transaction has committed.

    The rollback of a savepoint does not withdraw the notification, because an unnecessary one is
    harmless. A notification can be lost, so listeners must also poll.

    Args:
        session: of the transaction.
        channel: an identifier that needs no quotes.
        ids: the ids to send, in one or more payloads, separated by commas.
    """
    _merge(session.info.setdefault(_MARK, {}), {channel: set(map(str, ids))})


def _merge(requests: _Requests, more: _Requests) -> None:
    for channel, ids in more.items():
        requests.setdefault(channel, set()).update(ids)


class Notifier(threading.Thread):
    """The thread that sends the notifications of this process.

    Args:
        database_url: of the database that sends them.
    """

    def __init__(self, database_url: str) -> None:
        super().__init__(name="outbox-notifier", daemon=True)
        self._engine = make_engine(
            database_url,
            application_name="outbox-notifier",
            pool_size=1,
            deadline_s=DEADLINE_S,
            autocommit=True,
        )
        self._has_requests = threading.Event()
        self._lock = threading.Lock()
        self._requests: _Requests = {}

    def request(self, requests: _Requests) -> None:
        """Request notifications. Requests that come together are sent as one."""
        with self._lock:
            _merge(self._requests, requests)
        if not self._has_requests.is_set():
            self._has_requests.set()

    def run(self) -> None:
        """Send notifications until the process ends."""
        repeat(self._send_next, failed_event="outbox.notifier_failed")

    def _send_next(self) -> None:
        self._has_requests.wait()
        self._has_requests.clear()  # before they are taken: `request` merges before it looks
        with self._lock:
            requests, self._requests = self._requests, {}
        try:
            self._send(requests)
        except (SQLAlchemyError, psycopg2.Error) as error:
            # Nothing is lost, because listeners also poll.
            log.warning(
                "outbox.notify_failed", error=first_line(error), sqlstate=sqlstate_of(error)
            )
        time.sleep(_PAUSE_S)

    def _send(self, requests: _Requests) -> None:
        # Through the driver, which takes a third of a Connection's time (benchmarks/README.md).
        pooled = self._engine.raw_connection()
        try:
            with closing(pooled.cursor()) as cursor:
                cursor.execute(_NOTIFY, _notifications(requests))
        except psycopg2.Error as error:
            pooled.invalidate(error)
            raise
        finally:
            pooled.close()


def _notifications(requests: _Requests) -> dict[str, list[str]]:
    channels, payloads = [], []
    for channel, ids in requests.items():
        ordered = sorted(ids)
        for first in range(0, max(len(ordered), 1), _PAYLOAD_IDS_MAX):
            channels.append(channel)
            payloads.append(",".join(ordered[first : first + _PAYLOAD_IDS_MAX]))
    return {"channels": channels, "payloads": payloads}


def notify_after_commit(sessions: sessionmaker[Session], database_url: str) -> None:
    """Send the notifications that `announce` requests, after each commit of these sessions.

    The commit of a savepoint sends nothing. If a session joins the transaction of an existing
    `Connection`, its commit does not end that transaction. Then the notification is sent when the
    connection returns to its pool, which is after the end of the transaction.

    Call it once in each process, after fork.

    Args:
        sessions: the session factory.
        database_url: of the database of these sessions.
    """
    notifier = Notifier(database_url)
    notifier.start()

    def notify_when_returned(_: object, entry: ConnectionPoolEntry) -> None:
        requests: _Requests | None = entry.info.pop(_MARK, None)
        if requests is not None:
            notifier.request(requests)

    # SQLAlchemy also calls it for savepoints.
    @event.listens_for(sessions, "after_commit")
    def notify(session: Session) -> None:
        if session.in_nested_transaction() or _MARK not in session.info:
            return
        requests: _Requests = session.info.pop(_MARK)
        joined = session.bind
        if not isinstance(joined, Connection) or not joined.in_transaction():
            notifier.request(requests)
            return
        if not event.contains(joined.engine, "checkin", notify_when_returned):
            event.listen(joined.engine, "checkin", notify_when_returned)
        _merge(joined.info.setdefault(_MARK, {}), requests)

    # SQLAlchemy calls it after `after_commit`, and when a session is closed without a commit.
    @event.listens_for(sessions, "after_transaction_end")
    def forget(session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            session.info.pop(_MARK, None)
