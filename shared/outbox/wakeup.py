"""Notifications after a commit: they wake the relay, so that an event is sent at once, and others.

NOTIFY takes a global lock at commit and has no place in a business transaction (measured with 16
clients: 8,000 transactions a second without it, 3,700 with). One thread of each process sends it
afterwards, on a connection of its own, once for however many commits came meanwhile. A process
that dies in between loses nothing: the relay polls as well.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from shared.database import make_engine

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from sqlalchemy.orm import Session, sessionmaker

CHANNEL = "outbox"
_MARK = "outbox_notifications"

# A payload has less than 8000 bytes (PostgreSQL's documentation of NOTIFY); an id has 36, and a
# comma.
_IDS_OF_PAYLOAD = 200
_NOTIFY = """
SELECT pg_notify(channel, payload)
FROM unnest(%(channels)s, %(payloads)s) AS notification (channel, payload)
"""

# Between two: what is asked for meanwhile is sent as one. A busy process would send one for nearly
# every commit, and its relay be woken as often: a tenth of a request's time.
_GAP_S = 0.01
# A server that is frozen is given up after this time: after a failover, the next one is told.
DEADLINE_S = 10.0

_Wanted = dict[str, set[str]]  # ids by channel

log = structlog.get_logger(__name__)


def mark_for_wakeup(session: Session) -> None:
    """Note that the session's transaction has added an event."""
    announce(session, CHANNEL, ())


def announce(session: Session, channel: str, ids: Iterable[UUID]) -> None:
    """Have a channel notified, once the session's transaction has committed.

    Args:
        session: of the transaction.
        channel: an identifier that needs no quotes; all of a moment is sent as one.
        ids: what it is about. The payloads are ids, separated by commas; a notification may be
            lost, so whoever listens polls as well.
    """
    wanted: _Wanted = session.info.setdefault(_MARK, {})
    wanted.setdefault(channel, set()).update(map(str, ids))


class Notifier(threading.Thread):
    """The thread that sends the notifications of this process."""

    def __init__(self, database_url: str) -> None:
        super().__init__(name="outbox-notifier", daemon=True)
        self._database_url = database_url
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._wanted: _Wanted = {}

    def want(self, wanted: _Wanted) -> None:
        """Ask for notifications; several asked for at once are sent as one."""
        with self._lock:
            for channel, ids in wanted.items():
                self._wanted.setdefault(channel, set()).update(ids)
        self._asked.set()

    def run(self) -> None:
        """Send notifications until the process ends."""
        engine = make_engine(
            self._database_url,
            application_name="outbox-notifier",
            pool_size=1,
            deadline_s=DEADLINE_S,
            autocommit=True,
        )
        while True:
            self._asked.wait()
            self._asked.clear()
            with self._lock:
                wanted, self._wanted = self._wanted, {}
            try:
                with engine.connect() as connection:
                    connection.exec_driver_sql(_NOTIFY, _notifications(wanted))
            except SQLAlchemyError as error:
                # Polls find what it was about.
                log.warning("outbox.notify_failed", error=str(error).partition("\n")[0])
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

    Call it once a process, after fork.

    Args:
        sessions: the sessions to watch.
        database_url: where to send the notification: the database of these sessions.
    """
    notifier = Notifier(database_url)
    notifier.start()

    @event.listens_for(sessions, "after_commit")
    def wake(session: Session) -> None:
        wanted: _Wanted | None = session.info.pop(_MARK, None)
        if wanted is not None:
            notifier.want(wanted)

    @event.listens_for(sessions, "after_rollback")
    def forget(session: Session) -> None:
        session.info.pop(_MARK, None)
