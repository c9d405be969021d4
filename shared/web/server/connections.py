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

# Seconds between two checks of the deadlines. Each check goes through all connections, up to 1,000.
_CHECK_S = 0.25


@dataclass(slots=True)
class _Wait:
    resume: Callable[[TConn], None]
    give_up: Callable[[TConn], None]
    deadline: float
    is_idle: bool


class WaitingConnections:
    """The waiting connections of a worker. Only the main thread uses it, with its selector."""

    def __init__(self, poller: BaseSelector, close: Callable[[TConn], None]) -> None:
        self._poller = poller
        self._close = close
        self._waits: dict[TConn, _Wait] = {}  # the one that has waited longest is first
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

        If gunicorn has already closed its socket, the `close` of the constructor is called instead.

        Args:
            conn: the connection.
            event: `EVENT_READ` or `EVENT_WRITE`.
            resume: is called at each such event, until the connection is removed.
            give_up: is called after the deadline, or earlier to make room for another connection.
                The connection is removed before this call.
            deadline: value of `time.monotonic()`, in seconds.
            is_idle: whether there is no request on the connection.

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
        """Stop waiting for a connection, and call its `give_up`. Ignore one that does not wait."""
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
        # Its callback may answer an incomplete request with an error, and add the connection again,
        # to wait until the client closes it. In this case, the second call closes it.
        while conn in self._waits:
            self.give_up(conn)

    def shorten_idle(self, deadline: float) -> None:
        """Lower the deadline of each idle connection, which has no request, to `deadline`."""
        for wait in self._waits.values():
            if wait.is_idle:
                wait.deadline = min(wait.deadline, deadline)

    def _resume(self, conn: TConn, wait: _Wait, _: object) -> None:
        # The poller may report a connection that another event has just removed.
        if self._waits.get(conn) is wait:
            wait.resume(conn)
