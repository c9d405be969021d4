"""Ports of 127.0.0.1 for servers of the tests' own."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from pathlib import Path

from sqlalchemy import make_url

LEAST = 10_000
# Linux gives an outgoing connection a port of this range, also one that was just found to be free
# and is to be listened on in a moment (ip(7), ip_local_port_range).
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_given: set[int] = set()


def free_port() -> int:
    """Find a port that is free, was not given before, and that no outgoing connection will take.

    Test processes that run side by side (pytest-xdist) each have ports of their own.
    """
    most = int(_OUTGOING.read_text().split()[0])
    step = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = LEAST + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(first, most, step)
    for port in random.SystemRandom().sample(ports, len(ports)):
        if port in _given:
            continue
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise OSError(f"There is no free port from {LEAST} to {most}.")


def with_port(url: str, port: int) -> str:
    """The same address of a database, but on another port: that of a proxy before it."""
    return make_url(url).set(port=port).render_as_string(hide_password=False)
