"""Reading requests from their connections, for no longer than `READ_S`.

gunicorn's threads wait for a client without end (its setting `timeout` is of workers, not of their
threads): a few clients that stop in the middle of a request, their network gone say, would have all
of them.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from gunicorn.http.errors import ParseException
from gunicorn.http.unreader import SocketUnreader

if TYPE_CHECKING:
    from socket import socket

# Seconds for all of a request to arrive, its body included.
READ_S = 10.0
# Of a request's first line and headers together. gunicorn looks through all that came of them each
# time more comes: by its own limit (100 headers of 8 kB), a client that sends byte after byte would
# have a processor core for itself.
HEAD_MAX_BYTES = 64 * 1024
# Of a request's body with the framing of its chunks. A chunk of one byte costs the processor as
# much as one of a thousand.
BODY_MAX_BYTES = 160 * 1024


class RequestError(ParseException):  # type: ignore[misc]  # it has no type information
    """A request that is answered before it reaches the app, or while its body is read.

    Args:
        detail: a sentence for a person.
        status: of the answer.
    """

    def __init__(self, detail: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(detail)
        self.status = status


class RequestTooSlowError(RequestError):
    """A request had not arrived in time."""

    def __init__(self) -> None:
        super().__init__(
            f"The request had not arrived in whole after {READ_S:.0f} seconds.",
            HTTPStatus.REQUEST_TIMEOUT,
        )


class Unreader(SocketUnreader):  # type: ignore[misc]  # it has no type information
    """What gunicorn reads a connection by, one request after the other.

    Args:
        connection: to the client.
    """

    def __init__(self, connection: socket) -> None:
        super().__init__(connection)
        self.expect_request()

    def expect_request(self) -> None:
        """Wait for the next request. Its time begins when its first bytes are read."""
        self._deadline: float | None = None
        self._begun = bool(self.buf.getvalue())
        self._is_head = True
        self._bytes_left = HEAD_MAX_BYTES
        self._invites = False

    def expect_body(self, *, invites: bool) -> None:
        """Go on from the head of a request to its body.

        Args:
            invites: whether the client waits for `100 Continue`; it is sent when the body is read
                and has not come (RFC 9110, section 10.1.1).
        """
        self._is_head = False
        self._bytes_left = BODY_MAX_BYTES
        self._invites = invites

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Read what has come, or wait for more.

        Raises:
            RequestTooSlowError: the request's time is over.
            RequestError: the connection ended within the request (RFC 9112, section 8), or the
                head is over `HEAD_MAX_BYTES`, or the body over `BODY_MAX_BYTES`.
        """
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + READ_S
        if now >= self._deadline:
            raise RequestTooSlowError
        self.sock.settimeout(self._deadline - now)
        try:
            if self._invites:
                self._invites = False
                self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            received: bytes = super().chunk(size_hint)
        except TimeoutError as error:
            raise RequestTooSlowError from error
        if not received and self._begun:
            raise RequestError("The connection ended before the request did.")
        self._begun = True
        self._bytes_left -= len(received)
        if self._bytes_left < 0:
            raise self._too_large()
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
