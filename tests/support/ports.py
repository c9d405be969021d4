"""Free ports of 127.0.0.1, for servers that tests start."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from pathlib import Path

from sqlalchemy import make_url

LOWEST = 10_000
# Linux uses this range for outgoing connections (ip(7), ip_local_port_range). Such a connection
# could take a free port of this range before a server listens on it.
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_given: set[int] = set()


def free_port() -> int:
    """Return a port that is free, was not returned before, and is not for outgoing connections.

    Parallel test processes (pytest-xdist) choose from different ports.
    """
    end = int(_OUTGOING.read_text().split()[0])
    step = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = LOWEST + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(first, end, step)
    for port in random.SystemRandom().sample(ports, len(ports)):
        if port in _given:
            continue
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise OSError(f"There is no free port from {LOWEST} to {end - 1}.")


def with_port(url: str, port: int) -> str:
    """Return a database URL with another port, for example a proxy's."""
    return make_url(url).set(port=port).render_as_string(hide_password=False)
