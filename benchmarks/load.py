"""A small load generator: keep-alive connections, one thread each, in processes of their own."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from dataclasses import dataclass

BUFFER = 65536


@dataclass(frozen=True)
class Load:
    """One kind of request, over and over."""

    port: int
    request: bytes
    status: bytes
    connections: int = 16
    seconds: float = 3.0

    def rate(self) -> float:
        """Requests answered in a second. Any other answer than `status` is an error."""
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=self._drive, args=(sender,))
        process.start()
        outcome = receiver.recv()
        process.join()
        if isinstance(outcome, str):
            raise RuntimeError(outcome)  # noqa: TRY004 - it is the message of a failure
        return float(outcome)

    def _drive(self, sender: object) -> None:
        counts = [0] * self.connections
        failures: list[str] = []
        end = time.monotonic() + self.seconds

        def run(number: int) -> None:
            try:
                counts[number] = self._connection(end)
            except (OSError, RuntimeError) as error:
                failures.append(str(error))

        threads = [threading.Thread(target=run, args=(n,)) for n in range(self.connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sender.send(failures[0] if failures else sum(counts) / self.seconds)  # type: ignore[attr-defined]

    def _connection(self, end: float) -> int:
        count = 0
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as opened:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while time.monotonic() < end:
                opened.sendall(self.request)
                answer = self._read(opened)
                if answer[9:12] != self.status:
                    raise RuntimeError(f"unexpected answer: {answer[:400]!r}")
                count += 1
        return count

    @staticmethod
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


def post(path: str, body: bytes) -> bytes:
    """The bytes of a POST of JSON."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
