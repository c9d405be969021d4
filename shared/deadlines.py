"""Ends waiting for a database that says nothing.

PostgreSQL's own time-outs need a PostgreSQL that runs. Behind one that is frozen (its machine, its
disk, a debugger), whose kernel goes on acknowledging what is sent, libpq waits for ever: neither
keep-alives nor ``tcp_user_timeout`` see anything wrong. What ends it is the socket, shut by another
thread: libpq takes that for the server's end of the connection.

psycopg2's wait callback could do it too, at much the same price (measured with either: some 3 us a
transaction). But it belongs to the process and not to an engine, knows no ``connect_timeout``,
refuses COPY, and bounds a statement, where a request waits for its whole transaction.
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

if TYPE_CHECKING:
    from psycopg2.extensions import connection
    from sqlalchemy import Connection, Dialect, Engine
    from sqlalchemy.pool import ConnectionPoolEntry

# How often the deadlines are looked at, and so how late they are met at most.
_LOOK_S = 0.5
# An attempt to connect that failed after this long was no refusal, but silence.
_SILENCE_S = 1.0
# How long the others wait for the one that tries: enough for a server that is back.
_PATIENCE_S = 1.0

_SOCKET = "settle-socket"
_LIFTED = "settle-deadline-lifted"

log = structlog.get_logger(__name__)


def hold_deadline(engine: Engine, seconds: float) -> None:
    """Cut each connection of an engine that one transaction has held for too long.

    The transaction then fails as if the server had closed the connection. While a server lets
    nobody connect and does not say so, one attempt is under way at a time, and all others fail
    soon: else each request would wait for its own.

    Call it after fork: a thread watches.

    Args:
        engine: with a pool.
        seconds: that a connection may be away from the pool.
    """
    watch = _Watch(seconds)
    # Before SQLAlchemy's own, which asks a new server questions.
    event.listen(engine, "connect", watch.opened, insert=True)
    event.listen(engine, "checkout", watch.taken)
    event.listen(engine, "checkin", watch.returned)
    event.listen(engine, "close", watch.closed)
    event.listen(engine, "do_connect", _Door().connect)
    watch.start()


def lift_deadline(connection: Connection) -> None:
    """Let a connection's transaction take as long as it takes; the next one has its deadline again.

    For what takes longer the more rows there are: cut off and begun anew, it would never end.
    """
    connection.info[_LIFTED] = True


class _Watch(threading.Thread):
    """Watches the connections that are in use."""

    def __init__(self, seconds: float) -> None:
        super().__init__(name="database-deadlines", daemon=True)
        self._seconds = seconds
        self._since: dict[ConnectionPoolEntry, float] = {}
        # A number of a socket that was closed may be another's already.
        self._shutting = threading.Lock()

    def opened(self, opened: connection, entry: ConnectionPoolEntry) -> None:
        entry.info[_SOCKET] = socket.socket(fileno=os.dup(opened.fileno()))
        self._since[entry] = time.monotonic()

    def taken(self, _: connection, entry: ConnectionPoolEntry, __: object) -> None:
        entry.info.pop(_LIFTED, None)
        self._since[entry] = time.monotonic()

    def returned(self, _: connection | None, entry: ConnectionPoolEntry) -> None:
        self._since.pop(entry, None)

    def closed(self, _: connection, entry: ConnectionPoolEntry) -> None:
        self._since.pop(entry, None)
        with self._shutting:
            entry.info.pop(_SOCKET).close()

    def run(self) -> None:
        """Look, for as long as the process lives."""
        while True:
            time.sleep(_LOOK_S)
            latest = time.monotonic() - self._seconds
            for entry, since in list(self._since.items()):
                if since < latest and _LIFTED not in entry.info:
                    self._cut(entry)

    def _cut(self, entry: ConnectionPoolEntry) -> None:
        """Shut a connection's socket; returned meanwhile, it is found shut at its next use."""
        self._since.pop(entry, None)
        with self._shutting, suppress(OSError):
            shared: socket.socket | None = entry.info.get(_SOCKET)
            if shared is not None:
                shared.shutdown(socket.SHUT_RDWR)
                log.warning("database.silent", waited_s=self._seconds)


class _Door:
    """Where connections are made: by one at a time while the server is silent."""

    def __init__(self) -> None:
        self._is_silent = False
        self._trying = threading.Lock()

    def connect(
        self, dialect: Dialect, _: ConnectionPoolEntry, args: list[Any], options: dict[str, Any]
    ) -> object:
        if not self._is_silent:
            return self._try(dialect, args, options)
        if not self._trying.acquire(timeout=_PATIENCE_S):
            raise dialect.loaded_dbapi.OperationalError("the server is silent; being tried again")
        try:
            return self._try(dialect, args, options)
        finally:
            self._trying.release()

    def _try(self, dialect: Dialect, args: list[Any], options: dict[str, Any]) -> object:
        began = time.monotonic()
        try:
            made = dialect.connect(*args, **options)
        except dialect.loaded_dbapi.OperationalError:
            self._is_silent = time.monotonic() - began > _SILENCE_S
            raise
        self._is_silent = False
        return made
