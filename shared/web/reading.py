"""Reading requests from their connections, for no longer than `READ_S`.

gunicorn's threads wait for a client without end (its setting `timeout` is of workers, not of their
threads): a few clients that stop in the middle of a request, their network gone say, would have all
of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gunicorn.http.errors import ParseException
from gunicorn.http.unreader import SocketUnreader

if TYPE_CHECKING:
    from socket import socket

# Seconds: for all of a request to arrive, its body included; and for the client to take an answer.
READ_S = 10.0
WRITE_S = 60.0


class RequestTooSlowError(ParseException):  # type: ignore[misc]  # it has no type information
    """A request had not arrived in time."""

    def __str__(self) -> str:
        return f"The request had not arrived in whole after {READ_S:.0f} seconds."


class Unreader(SocketUnreader):  # type: ignore[misc]  # it has no type information
    """What gunicorn reads a connection by, one request after the other.

    Args:
        connection: to the client.
    """

    def __init__(self, connection: socket) -> None:
        super().__init__(connection)
        self._deadline: float | None = None

    def expect_request(self) -> None:
        """Have the time begin anew, when the next request's first bytes are read."""
        self._deadline = None

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Read what has come, or wait for more.

        Raises:
            RequestTooSlowError: the request's time is over.
        """
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + READ_S
        if now >= self._deadline:
            raise RequestTooSlowError
        self.sock.settimeout(self._deadline - now)
        try:
            received: bytes = super().chunk(size_hint)
        except TimeoutError as error:
            raise RequestTooSlowError from error
        finally:
            self.sock.settimeout(WRITE_S)
        return received
