"""The connections on which a worker waits for its clients.

The main thread waits for all of them at once, so they hold no other thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from selectors import BaseSelector

    from gunicorn.workers.gthread import TConn

# Minimum seconds between two checks of the deadlines. Each check goes through all connections, up
# to 1,000.
_CHECK_S = 0.25


@dataclass(slots=True)
class _Wait:
    resume: Callable[[TConn], None]
    give_up: Callable[[TConn], None]
    deadline: float
    is_idle: bool


class WaitingConnections:
    """The waiting connections of a worker. Only the main thread may use this and `poller`."""

    def __init__(self, poller: BaseSelector, close: Callable[[TConn], None]) -> None:
        self._poller = poller
        self._close = close
        self._waits: dict[TConn, _Wait] = {}  # the connection that has waited longest is first
        self._next_check = 0.0

    def __contains__(self, conn: TConn) -> bool:
        return conn in self._waits

    def add(
        self,
        conn: TConn,
        event: int,
        resume: Callable[[TConn], None],
        give_up: Callable[[TConn], None],
        *,
        deadline: float,
        is_idle: bool = False,
    ) -> bool:
        """Register a connection, to wait for an event on it.

        If gunicorn has already closed the socket, `close` is called instead, so that the worker no
        longer counts the connection.

        Args:
            conn: the connection.
            event: `EVENT_READ` or `EVENT_WRITE`.
            resume: is called at each such event, until the connection is removed.
            give_up: is called after the deadline, or earlier to free memory or to make room for
                another connection. The connection is removed before this call.
            deadline: value of `time.monotonic()`, in seconds.
            is_idle: whether the first byte of a request is awaited. When a worker stops, it closes
                such connections soon (`shorten_idle`).

        Returns:
            Whether the connection was registered.
        """
        wait = _Wait(resume, give_up, deadline, is_idle)
        try:
            conn.sock.settimeout(0)
            self._poller.register(conn.sock, event, partial(self._resume, conn, wait))
        except (OSError, ValueError):  # gunicorn has closed the socket after an error
            self._close(conn)
            return False
        self._waits[conn] = wait
        return True

    def remove(self, conn: TConn) -> None:
        """Stop waiting for a connection."""
        self._poller.unregister(conn.sock)
        del self._waits[conn]

    def give_up(self, conn: TConn) -> None:
        """Stop waiting for a connection, and call its `give_up`. Do nothing if it does not wait."""
        wait = self._waits.get(conn)
        if wait is not None:
            self.remove(conn)
            wait.give_up(conn)

    def give_up_expired(self) -> None:
        """Give up the connections whose deadline has passed."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_S
        for conn in [conn for conn, wait in self._waits.items() if wait.deadline <= now]:
            self.give_up(conn)

    def give_up_longest(self) -> None:
        """Give up the connection that has waited longest, so that it is closed."""
        conn = next(iter(self._waits), None)
        # If its request is incomplete, its `give_up` answers with an error, and adds the connection
        # again, so that the client has time to read the answer. Here there is no time: the second
        # turn of the loop gives up that second wait, which closes the connection.
        while conn in self._waits:
            self.give_up(conn)

    def shorten_idle(self, deadline: float) -> None:
        """Lower the deadline of each idle connection to `deadline`."""
        for wait in self._waits.values():
            if wait.is_idle:
                wait.deadline = min(wait.deadline, deadline)

    def _resume(self, conn: TConn, wait: _Wait, _: object) -> None:
        # The poller reports several connections at once. The callback of another one may have
        # removed this connection, or added it again with another wait.
        if self._waits.get(conn) is wait:
            wait.resume(conn)
