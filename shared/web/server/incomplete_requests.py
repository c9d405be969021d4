"""The requests that a worker has received only in part."""

from __future__ import annotations

import time
from http import HTTPStatus
from selectors import EVENT_READ
from typing import TYPE_CHECKING

from shared.web.server.request_reader import RequestError, RequestTooSlowError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gunicorn.workers.gthread import TConn

    from shared.web.server.connections import WaitingConnections

# Maximum memory of a worker for incomplete requests. Above it, the oldest request is refused.
# Without such requests, a worker takes about 70 MB. With them, it must stay below 200 MB.
INCOMPLETE_MAX_BYTES = 16 * 1024 * 1024
_NO_ROOM = "The server has too many incomplete requests. Send the request again."


class IncompleteRequests:
    """The incomplete requests of a worker. Only the main thread uses it.

    `start` hands a request to a thread. `refuse` answers it with an error, ends its connection, and
    calls `forget`.
    """

    def __init__(
        self,
        waiting: WaitingConnections,
        *,
        start: Callable[[TConn], None],
        refuse: Callable[[TConn, RequestError], None],
        close: Callable[[TConn], None],
    ) -> None:
        self._waiting = waiting
        self._start = start
        self._refuse = refuse
        self._close = close
        self._sizes: dict[TConn, int] = {}  # in the order of their arrival
        self._bytes = 0

    def expect(self, conn: TConn, *, idle_s: float) -> None:
        """Wait for the next request on a connection, or for the rest of one.

        Args:
            conn: the connection.
            idle_s: maximum time until the first byte of a request, in seconds.
        """
        deadline = conn.parser.unreader.deadline
        if deadline is not None:  # the first byte has arrived
            self._expect_rest(conn, deadline)
            return
        deadline = time.monotonic() + idle_s
        self._waiting.add(
            conn, EVENT_READ, self._receive, self._close, deadline=deadline, is_idle=True
        )

    def forget(self, conn: TConn) -> None:
        """Stop counting the bytes of a request that was answered or whose connection is closed."""
        self._bytes -= self._sizes.pop(conn, 0)

    def _expect_rest(self, conn: TConn, deadline: float) -> None:
        if self._waiting.add(conn, EVENT_READ, self._receive, self._give_up, deadline=deadline):
            self._count(conn)

    def _receive(self, conn: TConn) -> None:
        unreader = conn.parser.unreader
        is_first = unreader.deadline is None
        try:
            is_ready = unreader.receive()
        except BlockingIOError:
            return
        except OSError:
            self._waiting.remove(conn)
            self._close(conn)
            return
        if is_ready:
            self._waiting.remove(conn)
            self._start(conn)
        elif is_first:
            self._waiting.remove(conn)
            self._expect_rest(conn, unreader.deadline)
        else:
            self._count(conn)

    def _count(self, conn: TConn) -> None:
        """Count the bytes that have arrived. Above the limit, refuse the oldest request."""
        size = conn.parser.unreader.size
        self._bytes += size - self._sizes.get(conn, 0)
        self._sizes[conn] = size
        while self._bytes > INCOMPLETE_MAX_BYTES:
            oldest = next((each for each in self._sizes if each in self._waiting), None)
            if oldest is None:  # each of them has a thread, or waits for one
                return
            self._waiting.give_up(oldest)  # its bytes are no longer counted

    def _give_up(self, conn: TConn) -> None:
        """Refuse a request: it is too slow, or its memory or connection is needed."""
        if conn.parser.unreader.deadline <= time.monotonic():
            self._refuse(conn, RequestTooSlowError())
        else:
            self._refuse(conn, RequestError(_NO_ROOM, HTTPStatus.REQUEST_TIMEOUT))
