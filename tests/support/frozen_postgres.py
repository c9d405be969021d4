"""A PostgreSQL server that is frozen for a time: it is reachable, but does not answer."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.system import family, send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import PostgresServer


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """Freeze every process of a server. Its sockets stay open, and the kernel receives data."""
    assert server.pid is not None
    send([server.pid], signal.SIGSTOP)  # the postmaster first, so that it starts no other process
    send(family(server.pid), signal.SIGSTOP)
    try:
        yield
    finally:
        send(family(server.pid), signal.SIGCONT)
