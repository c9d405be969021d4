"""Sends answers without blocking a thread on a slow client.

gunicorn sends an answer in the thread that made it, without a time-out, so a slow client can hold a
thread forever. Here the thread sends only what fits into the connection's send buffer. The worker's
main thread sends the rest when there is room again, for at most `WRITE_S`.
"""

from __future__ import annotations

import time
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedReader
    from socket import socket

    from gunicorn.workers.gthread import TConn

    from shared.web.server.connections import WaitingConnections

# Maximum time for a client to receive the rest of an answer, in seconds.
WRITE_S = 60.0
# Maximum memory of a worker for answers that clients have not received yet, in addition to the
# kernel's send buffers. Above it, the connection of the oldest answer is closed. Without such
# answers, a worker takes about 70 MB; with them, it must stay below 200 MB. The largest answers are
# pages of lists, whose rows have at most 512 KiB before they become JSON.
UNSENT_MAX_BYTES = 16 * 1024 * 1024

log = structlog.get_logger(__name__)


class AnswerSocket:
    """A connection to which gunicorn writes the answer to one request. Writing never blocks."""

    def __init__(self, connection: socket, path: str) -> None:
        self._connection = connection
        self.path = path
        self.unsent = bytearray()
        """Bytes that did not fit into the send buffer."""

    def sendall(self, data: bytes) -> None:
        """Send what fits into the send buffer, and keep the rest."""
        sent = 0 if self.unsent else send_some(self._connection, data)
        self.unsent += memoryview(data)[sent:]

    def sendfile(self, file: BufferedReader, offset: int = 0, count: int | None = None) -> None:
        """Send a file, or a part of it. It is read at once: the files of `/docs` are below 2 MB."""
        file.seek(offset)
        self.sendall(file.read(-1 if count is None else count))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def send_some(connection: socket, data: bytes | bytearray) -> int:
    """Send what fits into the send buffer. Return the number of bytes sent."""
    timeout = connection.gettimeout()
    connection.settimeout(0)
    sent = 0
    try:
        with memoryview(data) as view:
            while sent < len(view):
                sent += connection.send(view[sent:])
    except BlockingIOError:
        pass
    finally:
        connection.settimeout(timeout)
    return sent


class UnsentAnswers:
    """The answers of a worker that are not completely sent. Only the main thread uses it."""

    def __init__(self, waiting: WaitingConnections, close: Callable[[TConn], None]) -> None:
        self._waiting = waiting
        self._close = close
        # By connection: the answer, and what to do when it is sent. The oldest is first.
        self._unsent: dict[TConn, tuple[AnswerSocket, Callable[[], None]]] = {}
        self._bytes = 0

    def add(self, conn: TConn, answer: AnswerSocket, then: Callable[[], None]) -> None:
        """Keep an answer until its rest is sent, then call `then`."""
        deadline = time.monotonic() + WRITE_S
        if not self._waiting.add(conn, EVENT_WRITE, self._send, self._given_up, deadline=deadline):
            return  # the connection is closed already
        self._unsent[conn] = answer, then
        self._bytes += len(answer.unsent)
        while self._bytes > UNSENT_MAX_BYTES:
            self._waiting.give_up(next(iter(self._unsent)))  # calls `_given_up`

    def _send(self, conn: TConn) -> None:
        answer, then = self._unsent[conn]
        try:
            sent = send_some(conn.sock, answer.unsent)
        except OSError:  # the client is gone
            self._waiting.remove(conn)
            self._forget(conn)
            self._close(conn)
            return
        del answer.unsent[:sent]
        self._bytes -= sent
        if not answer.unsent:
            self._waiting.remove(conn)
            self._forget(conn)
            then()

    def _given_up(self, conn: TConn) -> None:
        answer = self._forget(conn)
        log.warning("web.answer_not_taken", path=answer.path, unsent_bytes=len(answer.unsent))
        self._close(conn)

    def _forget(self, conn: TConn) -> AnswerSocket:
        answer, _ = self._unsent.pop(conn)
        self._bytes -= len(answer.unsent)
        return answer
