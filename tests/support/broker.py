"""A broker of a test's own."""

from __future__ import annotations

import socket
import subprocess
from typing import Self

from settle.embedded.broker import command
from support.ports import free_port
from support.waiting import wait_until

STOP_TIMEOUT_S = 10


class Broker:
    """The embedded broker on a free port of 127.0.0.1. It forgets everything when it ends."""

    def __init__(self, advertised_port: int | None = None) -> None:
        """Take a port.

        Args:
            advertised_port: what it tells clients; that of a proxy before it.
        """
        self.port = free_port()
        self._advertised_port = advertised_port or self.port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def _advertised_url(self) -> str:
        return f"tcp://127.0.0.1:{self._advertised_port}"

    def start(self) -> None:
        """Start the broker, on the port it had before, and wait until it serves."""
        self._process = subprocess.Popen(
            # Of an option given twice, it would take neither.
            [*command(self.port)[:-1], f"--advertised-listener-url={self._advertised_url}"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._serves, timeout_s=20, what="the broker to serve")

    def _serves(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"The broker ended at its start: {self._process.args!r}")
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End the broker as an operator would."""
        self._end(kill=False)

    def kill(self) -> None:
        """Kill the broker with no warning."""
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        if self._process is None:
            return
        self._process.kill() if kill else self._process.terminate()
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None
