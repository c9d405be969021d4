"""Receives requests without blocking a thread on a slow client.

gunicorn reads a request in the thread that answers it. A few clients that stop in the middle of a
request would hold all threads. Here the worker's main thread receives the requests of all clients,
for at most `READ_S` each. A thread takes a request when its head is complete. If the thread needs
more of the body than has arrived, it abandons the request (`RequestPending`) before anything is
done. When the body is complete, a thread reads the request again from its start.
"""

from __future__ import annotations

import io
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import ParseException
from gunicorn.http.unreader import SocketUnreader

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

# Maximum time for a whole request to arrive, in seconds.
READ_S = 10.0
# Maximum size of a request's first line and headers together. gunicorn's own limit is 100 headers
# of 8 kB.
HEAD_MAX_BYTES = 64 * 1024
# Maximum size of a request's body with the framing of its chunks. A chunk of one byte takes as much
# processor time as a chunk of 1,000 bytes.
BODY_MAX_BYTES = 160 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# Maximum bytes of one `recv`. It is small, because bytes of the next request stay in memory until
# this one is answered. Only the rest of a body of known length is read in larger pieces.
_RECEIVE_BYTES = 8 * 1024
_BODY_RECEIVE_BYTES = 64 * 1024
# The end of a head; or a line break that gunicorn refuses (RFC 9112, section 2.2).
_HEAD_END = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]+")
# Maximum of the line before a chunk, and of the trailers. It is not below the limits that gunicorn
# checks (8,190 and 8,192), so that gunicorn reports the error.
_CHUNK_LINE_MAX_BYTES = 8 * 1024


class RequestPending(BaseException):
    """A request needs more than has arrived. Nothing was done for it.

    It is a BaseException, so that no error handler answers the request.
    """


class RequestError(ParseException):  # type: ignore[misc]  # it has no type information
    """An error for which the server refuses a request, or the app while it reads the body."""

    def __init__(self, detail: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(detail)
        self.status = status


class RequestTooSlowError(RequestError):
    """A request did not arrive in time."""

    def __init__(self) -> None:
        super().__init__(
            f"The request did not arrive completely within {READ_S:.0f} seconds. Send it again.",
            HTTPStatus.REQUEST_TIMEOUT,
        )


class Unreader(SocketUnreader):  # type: ignore[misc]  # it has no type information
    """Gives gunicorn the bytes of a connection, one request after the other. Never blocks."""

    buf: io.BytesIO
    sock: socket

    def __init__(self, connection: socket) -> None:
        super().__init__(connection)
        self.expect_request()

    def expect_request(self) -> None:
        """Go on to the next request. The client may have sent some of it already."""
        self._received = bytearray(self.buf.getvalue())
        self.deadline: float | None = time.monotonic() + READ_S if self._received else None
        """When all of the request must have arrived. None before its first byte."""
        self._searched = 0
        self._is_invited = False
        self._is_head = True
        self._max_bytes = HEAD_MAX_BYTES

    def rewind(self, *, queued_s: float) -> None:
        """Let gunicorn read the request from its start.

        Args:
            queued_s: how long the request has waited for a thread. The client gets this time in
                addition, because nothing was received from it meanwhile.
        """
        if self.deadline is not None:
            self.deadline += queued_s
        self.buf = io.BytesIO(self._received)
        self._is_head = True
        self._max_bytes = HEAD_MAX_BYTES

    def expect_body(
        self, reader: LengthReader | ChunkedReader, invite: Callable[[bytes], None] | None
    ) -> None:
        """Go on from the head of a request to its body.

        Args:
            reader: gunicorn's reader of the body.
            invite: sends `100 Continue`; None if the client does not wait for that. It is called at
                most once, when the app reads a body that has not arrived (RFC 9110, section
                10.1.1).
        """
        start = len(self._received) - self.buf.getbuffer().nbytes
        self._is_head = False
        self._max_bytes = start + BODY_MAX_BYTES
        self._end: int | None = start + reader.length if isinstance(reader, LengthReader) else None
        self._chunk = start
        self._invite = None if self._is_invited else invite

    @property
    def size(self) -> int:
        """Bytes that have arrived of the request, and perhaps of the next ones."""
        return len(self._received)

    def starts_with(self, prefixes: tuple[bytes, ...]) -> bool:
        """Return whether the request starts with one of these."""
        return self._received.startswith(prefixes)

    def receive(self) -> bool:
        """Receive some of the request. Return whether a thread should read it now.

        Raises:
            BlockingIOError: nothing has arrived.
            OSError: the connection is broken, or ended before the first byte of a request.
        """
        missing = 0 if self._is_head or self._end is None else self._end - len(self._received)
        wanted = max(_RECEIVE_BYTES, min(missing, _BODY_RECEIVE_BYTES))
        # At most one byte above the limit: more of a head that is too large is not received.
        received = self.sock.recv(min(wanted, self._max_bytes + 1 - len(self._received)))
        if not received:
            if not self._received:
                raise ConnectionResetError
            return True  # the thread finds the end again
        if self.deadline is None:
            self.deadline = time.monotonic() + READ_S
        self._received += received
        return self.is_ready()

    def is_ready(self) -> bool:
        """Return whether a thread can read on: to the end of the head or body, or to an error."""
        if len(self._received) > self._max_bytes:
            return True
        if self._is_head:
            found = _HEAD_END.search(self._received, max(0, self._searched - 3))
            self._searched = len(self._received)
            return found is not None
        if self._end is not None:
            return len(self._received) >= self._end
        return self._has_last_chunk()

    def _has_last_chunk(self) -> bool:
        """Return whether the chunks have ended (RFC 9112, section 7.1), or are malformed."""
        while (line_end := self._received.find(b"\r\n", self._chunk)) >= 0:
            size = _CHUNK_SIZE.match(self._received, self._chunk)
            if size is None:
                return True
            if int(size[0], 16) == 0:
                return (
                    self._received.find(b"\r\n\r\n", line_end) >= 0
                    or len(self._received) - line_end > _CHUNK_LINE_MAX_BYTES + 2
                )
            self._chunk = line_end + 2 + int(size[0], 16) + 2
        return len(self._received) - self._chunk > _CHUNK_LINE_MAX_BYTES

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Override gunicorn's read: return bytes that have arrived, without blocking.

        Raises:
            RequestPending: nothing has arrived.
            RequestError: the connection ended within the request (RFC 9112, section 8). Or the
                head needs more than `HEAD_MAX_BYTES`, or the body more than `BODY_MAX_BYTES`.
        """
        left = self._max_bytes - len(self._received)
        if left <= 0:
            raise self._too_large()
        self.sock.settimeout(0)
        try:
            # Not beyond the limit: bytes of the next request must not count for this one.
            received = self.sock.recv(min(max(size_hint or 0, self.mxchunk), left))
        except BlockingIOError:
            if not self._is_head and self._invite is not None:
                self._is_invited = True
                self._invite(CONTINUE)
            self.buf = io.BytesIO()  # gunicorn reads the request again from the start
            raise RequestPending from None
        if not received and self._received:
            raise RequestError("The connection ended before the request did.")
        self._received += received
        return received

    def _too_large(self) -> RequestError:
        if self._is_head:
            return RequestError(
                f"The headers have more than {HEAD_MAX_BYTES // 1024} KiB together.",
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            )
        return RequestError(
            f"The body has more than {BODY_MAX_BYTES // 1024} KiB with the framing of its chunks.",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
