"""Send answers without blocking a thread on a slow client.

gunicorn sends an answer in the thread that made it. The thread waits until the client has received
all of it. gunicorn's time-out applies to each write and not to the whole answer, so a slow client
can hold a thread forever. Here the thread sends only what fits into the connection's send buffer.
The worker's main thread sends the rest when there is room again, for at most `WRITE_S`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedReader
    from selectors import BaseSelector
    from socket import socket

    from gunicorn.workers.gthread import TConn

# Maximum time for a client to receive a whole answer, in seconds.
WRITE_S = 60.0
# Maximum memory of a worker for answers that clients have not received yet, beside the kernel's
# send buffers. Beyond it, the connection of the oldest answer is closed. A worker of about 70 MB
# stays far below 200 MB. A page of a list is 512 KiB before JSON escapes it.
UNSENT_MAX_BYTES = 16 * 1024 * 1024

log = structlog.get_logger(__name__)


class AnswerSocket:
    """A connection to which gunicorn writes one answer. Writing never blocks.

    Args:
        connection: to the client.
        path: of the request.
    """

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
        """Send a file, or a part of it, as `sendall` does. The files of the docs are small."""
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


@dataclass(slots=True)
class _Rest:
    answer: AnswerSocket
    deadline: float
    then: Callable[[], None]


class UnsentAnswers:
    """The answers of a worker that are not completely sent. Only the main thread uses it.

    Args:
        poller: of the main thread.
        close: closes a connection.
    """

    def __init__(self, poller: BaseSelector, close: Callable[[TConn], None]) -> None:
        self._poller = poller
        self._close = close
        self._rests: dict[TConn, _Rest] = {}  # oldest first
        self._bytes = 0

    def add(self, conn: TConn, answer: AnswerSocket, then: Callable[[], None]) -> None:
        """Send the rest of an answer; `then` is called when all of it is sent."""
        try:
            conn.sock.settimeout(0)
            self._poller.register(conn.sock, EVENT_WRITE, partial(self._send, conn))
        except (OSError, ValueError):  # gunicorn has closed the connection
            self._close(conn)
            return
        self._rests[conn] = _Rest(answer, time.monotonic() + WRITE_S, then)
        self._bytes += len(answer.unsent)
        while self._bytes > UNSENT_MAX_BYTES:
            self._give_up(next(iter(self._rests)))

    def end_late(self) -> None:
        """Give up the answers whose time is over."""
        now = time.monotonic()
        while self._rests and next(iter(self._rests.values())).deadline <= now:
            self._give_up(next(iter(self._rests)))

    def _send(self, conn: TConn, _: object) -> None:
        rest = self._rests.get(conn)
        if rest is None:  # given up since the poller saw that there was room
            return
        try:
            sent = send_some(conn.sock, rest.answer.unsent)
        except OSError:  # the client is gone
            self._remove(conn)
            self._close(conn)
            return
        del rest.answer.unsent[:sent]
        self._bytes -= sent
        if not rest.answer.unsent:
            self._remove(conn)
            rest.then()

    def _give_up(self, conn: TConn) -> None:
        rest = self._remove(conn)
        log.warning(
            "web.answer_not_taken", path=rest.answer.path, unsent_bytes=len(rest.answer.unsent)
        )
        self._close(conn)

    def _remove(self, conn: TConn) -> _Rest:
        self._poller.unregister(conn.sock)
        rest = self._rests.pop(conn)
        self._bytes -= len(rest.answer.unsent)
        return rest
