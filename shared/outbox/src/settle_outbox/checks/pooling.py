"""Check whether there is a connection pooler before the database, and that NOTIFY arrives."""

from __future__ import annotations

import math
import select
import time
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import uuid4

from settle_outbox.checks.check import ok, warn
from settle_outbox.checks.database import APPLICATION_NAME
from settle_outbox.storage.database import connect_autocommit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from settle_outbox.checks.check import Finding
    from settle_outbox.checks.database import Database

NOTIFY_TIMEOUT_S = 3.0
# Not the relay's channel: the check must wake no relay.
CHANNEL = "outbox_doctor"
DIRECTLY = "connect relays and consumers to PostgreSQL directly, or through a session pool"


def check_connections(database: Database) -> Iterator[Finding]:
    """Check for a transaction pooler, and that a notification arrives."""
    with (
        closing(connect_autocommit(database.url, application_name=APPLICATION_NAME)) as one,
        closing(connect_autocommit(database.url, application_name=APPLICATION_NAME)) as other,
    ):
        mode = _pool_mode(one, other)
        yield _judge_pool(f"{database.service} pooler", mode)
        notify = f"{database.service} notify"
        if mode == "transaction":
            # NOTIFY is not tried: LISTEN would stay in a session that another client gets next.
            found = "does not arrive through this pooler; relays poll instead"
            yield warn(notify, found, DIRECTLY)
        else:
            yield check_notify(notify, one, other)


def _pool_mode(one: connection, other: connection) -> str | None:
    """Return the mode of the pooler in between; None without a pooler.

    A transaction pooler gives an idle client's server connection to another client. With a session
    pooler, the process id that the client got when it connected is not the server's.
    """
    first = _server_pid(one)
    with other.cursor() as cursor:
        cursor.execute("BEGIN")
        meanwhile = _server_pid(other)
        second = _server_pid(one)
        cursor.execute("ROLLBACK")
    if meanwhile == first or second != first:
        return "transaction"
    return "session" if one.info.backend_pid != first else None


def _server_pid(opened: connection) -> int:
    with opened.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone() or (0,)
        return int(pid)


def _judge_pool(name: str, mode: str | None) -> Finding:
    if mode == "transaction":
        return warn(name, "a pooler shares each session between clients", DIRECTLY)
    if mode == "session":
        return ok(name, "a pooler in session mode")
    return ok(name, "none in between")


def check_notify(name: str, one: connection, other: connection) -> Finding:
    """Check that a notification of one connection arrives at the other."""
    payload = str(uuid4())
    began = time.monotonic()
    with one.cursor() as listening, other.cursor() as notifying:
        listening.execute(f"LISTEN {CHANNEL}")
        notifying.execute(f"NOTIFY {CHANNEL}, '{payload}'")
        arrived = _arrives(one, payload)
        took_ms = (time.monotonic() - began) * 1000
        listening.execute(f"UNLISTEN {CHANNEL}")
    if arrived:
        return ok(name, f"arrives after {took_ms:.0f} ms")
    found = f"has not arrived after {NOTIFY_TIMEOUT_S:.0f} s; relays poll instead"
    return warn(name, found, DIRECTLY)


def _arrives(listening: connection, payload: str) -> bool:
    deadline = time.monotonic() + NOTIFY_TIMEOUT_S
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    while (left_s := deadline - time.monotonic()) > 0:
        if any(each.payload == payload for each in listening.notifies):
            return True
        poll.poll(math.ceil(left_s * 1000))
        listening.poll()
    return False
