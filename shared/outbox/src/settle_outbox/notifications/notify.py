"""Notifications after a commit: they wake the relay at once, and other listeners.

NOTIFY takes a global lock at commit and has no place in a business transaction (measured with 16
clients: 8,000 transactions a second without it, 3,700 with). One thread of each process sends it
afterwards, on a separate connection, once for all commits since the last one. A process that dies
in between loses nothing: the relay polls as well.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError

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

# A payload has less than 8000 bytes (PostgreSQL's documentation of NOTIFY); an id has 36, and a
# comma.
_IDS_OF_PAYLOAD = 200
_NOTIFY = """
SELECT pg_notify(channel, payload)
FROM unnest(%(channels)s, %(payloads)s) AS notification (channel, payload)
"""

# Pause between two notifications; requests made meanwhile are sent as one. Without it, a busy
# process would notify, and wake its relay, for nearly every commit: a tenth of a request's time.
_GAP_S = 0.01
# A connection to a frozen server is given up after this time. After a failover, the next
# notification goes to the new server.
DEADLINE_S = 10.0

_Wanted = dict[str, set[str]]  # ids by channel

log = structlog.get_logger(__name__)


def wake_relay_after_commit(session: Session) -> None:
    """Note that the session's transaction has added an event."""
    announce(session, CHANNEL, ())


def announce(session: Session, channel: str, ids: Iterable[UUID]) -> None:
    """Notify a channel after the session's transaction has committed.

    A savepoint that is rolled back does not withdraw it: a superfluous notification is harmless.

    Args:
        session: of the transaction.
        channel: an identifier that needs no quotes. Requests of one moment are sent as one.
        ids: what it is about. The payloads are ids, separated by commas. A notification may be
            lost, so listeners poll as well.
    """
    wanted: _Wanted = session.info.setdefault(_MARK, {})
    wanted.setdefault(channel, set()).update(map(str, ids))


class Notifier(threading.Thread):
    """The thread that sends the notifications of this process.

    Args:
        database_url: where to send them.
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
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._wanted: _Wanted = {}

    def want(self, wanted: _Wanted) -> None:
        """RunQuery for notifications; several requests of one moment are sent as one."""
        with self._lock:
            for channel, ids in wanted.items():
                self._wanted.setdefault(channel, set()).update(ids)
        self._asked.set()

    def run(self) -> None:
        """Send notifications until the process ends."""
        repeat("outbox.notifier", self._send_next)

    def _send_next(self) -> None:
        self._asked.wait()
        self._asked.clear()
        with self._lock:
            wanted, self._wanted = self._wanted, {}
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql(_NOTIFY, _notifications(wanted))
        except SQLAlchemyError as error:
            # Listeners poll, so they find what it was about.
            log.warning(
                "outbox.notify_failed",
                error=str(error).partition("\n")[0],
                sqlstate=sqlstate_of(error),
            )
        time.sleep(_GAP_S)


def _notifications(wanted: _Wanted) -> dict[str, list[str]]:
    channels, payloads = [], []
    for channel, ids in wanted.items():
        ordered = sorted(ids)
        for first in range(0, max(len(ordered), 1), _IDS_OF_PAYLOAD):
            channels.append(channel)
            payloads.append(",".join(ordered[first : first + _IDS_OF_PAYLOAD]))
    return {"channels": channels, "payloads": payloads}


def notify_after_commit(sessions: sessionmaker[Session], database_url: str) -> None:
    """Send what `announce` asked for after each commit of these sessions.

    The commit of a savepoint sends nothing yet. A session that joins the transaction of a
    `Connection` that it was given commits nothing itself: the notification is sent when that
    connection returns to its pool, which is after its commit.

    Call it once a process, after fork.

    Args:
        sessions: the sessions to watch.
        database_url: where to send the notification: the database of these sessions.
    """
    notifier = Notifier(database_url)
    notifier.start()

    def notify_when_returned(_: object, entry: ConnectionPoolEntry) -> None:
        wanted: _Wanted | None = entry.info.pop(_MARK, None)
        if wanted is not None:
            notifier.want(wanted)

    # SQLAlchemy calls it for savepoints as well.
    @event.listens_for(sessions, "after_commit")
    def notify(session: Session) -> None:
        if session.in_nested_transaction() or _MARK not in session.info:
            return
        wanted: _Wanted = session.info.pop(_MARK)
        joined = session.bind
        if not isinstance(joined, Connection) or not joined.in_transaction():
            notifier.want(wanted)
            return
        if not event.contains(joined.engine, "checkin", notify_when_returned):
            event.listen(joined.engine, "checkin", notify_when_returned)
        later: _Wanted = joined.info.setdefault(_MARK, {})
        for channel, ids in wanted.items():
            later.setdefault(channel, set()).update(ids)

    # After `after_commit`; also when the session is closed without a commit.
    @event.listens_for(sessions, "after_transaction_end")
    def forget(session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            session.info.pop(_MARK, None)
