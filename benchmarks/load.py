"""A small load generator: a process with several connections, each with a thread."""

from __future__ import annotations

import multiprocessing
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

BUFFER = 65536
CONNECTIONS = 16


@dataclass(frozen=True)
class Load:
    """One kind of request, sent again and again.

    Args:
        port: The server's port on this machine.
        request: Returns the bytes of the next request. Any thread may call it.
        status: The expected status code of each answer, such as ``b"200"``. Others are errors.
    """

    port: int
    request: Callable[[], bytes]
    status: bytes

    def rate(self, seconds: float) -> float:
        """Send requests on `CONNECTIONS` connections, and return how many are answered a second.

        Raises:
            RuntimeError: An answer had another status, or there was none.
        """
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=self._drive, args=(sender, seconds))
        process.start()
        sender.close()  # now only the process can send, so `recv` ends if the process dies
        outcome = receiver.recv()
        process.join()
        if isinstance(outcome, str):
            raise RuntimeError(outcome)  # noqa: TRY004 - it is the message of a failure
        return float(outcome)

    def _drive(self, sender: Connection, seconds: float) -> None:
        ends = [time.monotonic() + seconds] * CONNECTIONS
        try:
            with ThreadPoolExecutor(CONNECTIONS) as threads:
                sender.send(sum(threads.map(self._send_until, ends)) / seconds)
        except (OSError, RuntimeError) as error:
            sender.send(str(error))

    def _send_until(self, end: float) -> int:
        count = 0
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as opened:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while time.monotonic() < end:
                opened.sendall(self.request())
                answer = _read(opened)
                if answer[9:12] != self.status:
                    raise RuntimeError(f"unexpected answer: {answer[:400]!r}")
                count += 1
        return count


def _read(opened: socket.socket) -> bytes:
    received = b""
    while True:
        part = opened.recv(BUFFER)
        if not part:
            raise RuntimeError(f"the server closed the connection after {received!r}")
        received += part
        head, found, body = received.partition(b"\r\n\r\n")
        if not found:
            continue
        lowered = head.lower()
        at = lowered.find(b"content-length:")
        length = int(lowered[at + 15 :].split(b"\r\n", 1)[0])
        if len(body) >= length:
            return received


def get(path: str) -> bytes:
    """Return the bytes of a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: bytes, *, headers: str = "") -> bytes:
    """Return the bytes of a POST request with JSON. Each line of `headers` ends with CRLF."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body
