"""Deadlines for transactions on a database server that no longer responds.

PostgreSQL's own timeouts work only while PostgreSQL runs. If its machine, its disk or a debugger
freezes it, the kernel still acknowledges TCP packets. Keep-alives and ``tcp_user_timeout`` see no
problem, and libpq waits forever. So a thread shuts down the socket of a transaction that is past
its deadline. libpq then reports that the server closed the connection.

The alternative, psycopg2's wait callback, costs as much (benchmarks/README.md) but does not fit. It
applies to the whole process, ignores ``connect_timeout``, does not support COPY, and limits each
statement instead of the whole transaction.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import event

from settle_outbox.runtime.threads import repeat

if TYPE_CHECKING:
    from psycopg2.extensions import connection
    from sqlalchemy import Connection, Dialect, Engine
    from sqlalchemy.pool import ConnectionPoolEntry

# Time between two checks of the deadlines, and so the maximum delay of a cut.
_CHECK_EVERY_S = 0.5
# A server that refuses a connection does so at once. If an attempt to connect fails after a longer
# time than this, the server does not respond.
_SILENCE_S = 1.0
# How long other threads wait for the thread that tries to connect. A server that responds again
# accepts a connection in less time.
_ATTEMPT_WAIT_S = 1.0

_SOCKET = "settle-socket"
_WITHOUT_DEADLINE = "settle-without-deadline"

log = structlog.get_logger(__name__)


def limit_transaction_time(engine: Engine, seconds: float) -> None:
    """Cut a connection of an SQLAlchemy engine when a transaction has held it for too long.

    The transaction then fails as if the server had closed the connection. While the server does not
    respond, one thread at a time tries to connect, and the others fail after about a second.
    Otherwise each HTTP request would wait for its own attempt.

    Call it after fork, because it starts a thread.

    Args:
        engine: with a pool.
        seconds: maximum time in which a transaction may hold its connection.
    """
    watcher = DeadlineWatcher(seconds)
    # Insert it before SQLAlchemy's own listener, which sends queries on a new connection.
    event.listen(engine, "connect", watcher.opened, insert=True)
    event.listen(engine, "checkout", watcher.taken)
    event.listen(engine, "checkin", watcher.returned)
    event.listen(engine, "close", watcher.closed)
    event.listen(engine, "do_connect", ConnectGate().connect)
    watcher.start()


def without_deadline(connection: Connection) -> None:
    """Remove the deadline of the current transaction. The next transaction has one again.

    Use it for work that grows with the tables. If such work were cut each time, it would never end.
    """
    connection.info[_WITHOUT_DEADLINE] = True


class DeadlineWatcher(threading.Thread):
    """Cuts the connections that transactions hold for too long.

    Args:
        seconds: maximum time in which a transaction may hold its connection.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(name="database-deadlines", daemon=True)
        self._seconds = seconds
        self._taken_at: dict[ConnectionPoolEntry, float] = {}
        # Held while a connection is cut, opened, taken, returned or closed. So a cut cannot hit the
        # next transaction of the connection, nor a new socket with the number of a closed one. The
        # lock is reentrant, because the garbage collector may return a connection at any point.
        self._lock = threading.RLock()

    def opened(self, opened: connection, entry: ConnectionPoolEntry) -> None:
        """Start the deadline of a new connection: SQLAlchemy sends queries before its checkout."""
        with self._lock:
            entry.info[_SOCKET] = socket.socket(fileno=os.dup(opened.fileno()))
            self._taken_at[entry] = time.monotonic()

    def taken(self, _: connection, entry: ConnectionPoolEntry, __: object) -> None:
        """Start the deadline of a transaction."""
        with self._lock:
            entry.info.pop(_WITHOUT_DEADLINE, None)
            self._taken_at[entry] = time.monotonic()

    def returned(self, _: connection | None, entry: ConnectionPoolEntry) -> None:
        """End the deadline of a transaction."""
        with self._lock:
            self._taken_at.pop(entry, None)

    def closed(self, _: connection, entry: ConnectionPoolEntry) -> None:
        """Forget a connection."""
        with self._lock:
            self._taken_at.pop(entry, None)
            entry.info.pop(_SOCKET).close()

    def run(self) -> None:
        """Check the deadlines until the process ends."""
        repeat(self._check, failed_event="database.deadlines_failed")

    def _check(self) -> None:
        time.sleep(_CHECK_EVERY_S)
        self.cut_overdue()

    def cut_overdue(self) -> None:
        """Cut every connection whose transaction is past its deadline."""
        latest = time.monotonic() - self._seconds
        for entry, taken_at in list(self._taken_at.items()):
            if taken_at < latest:
                self.cut(entry, taken_at)

    def cut(self, entry: ConnectionPoolEntry, taken_at: float) -> None:
        """Shut down the socket of a connection, if the transaction of `taken_at` still holds it."""
        with self._lock:
            if self._taken_at.get(entry) != taken_at or _WITHOUT_DEADLINE in entry.info:
                return
            self._taken_at.pop(entry, None)
            shared: socket.socket = entry.info[_SOCKET]
            with suppress(OSError):
                shared.shutdown(socket.SHUT_RDWR)
        log.warning("database.silent", waited_s=self._seconds)


class ConnectGate:
    """Lets one thread at a time connect while the server is silent."""

    def __init__(self) -> None:
        self._is_silent = False
        self._attempt = threading.Lock()

    def connect(
        self, dialect: Dialect, _: ConnectionPoolEntry, args: list[Any], options: dict[str, Any]
    ) -> object:
        """Connect, for the pool of an engine.

        Raises:
            OperationalError: of the driver; the server refuses, or is silent.
        """
        if not self._is_silent:
            return self._try(dialect, args, options)
        if not self._attempt.acquire(timeout=_ATTEMPT_WAIT_S):
            raise dialect.loaded_dbapi.OperationalError(
                "the server is silent; another thread tries to connect"
            )
        try:
            return self._try(dialect, args, options)
        finally:
            self._attempt.release()

    def _try(self, dialect: Dialect, args: list[Any], options: dict[str, Any]) -> object:
        began = time.monotonic()
        try:
            made = dialect.connect(*args, **options)
        except dialect.loaded_dbapi.OperationalError:
            self._is_silent = time.monotonic() - began > _SILENCE_S
            raise
        self._is_silent = False
        return made
