"""A PostgreSQL that is frozen for a while: it is there, and says nothing."""

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
    """Stop every process of a server; its sockets stay open, and the kernel takes what is sent."""
    assert server.pid is not None
    send([server.pid], signal.SIGSTOP)  # first, so that it starts no others
    send(family(server.pid), signal.SIGSTOP)
    try:
        yield
    finally:
        send(family(server.pid), signal.SIGCONT)
