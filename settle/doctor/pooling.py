"""Whether a pooler stands before the database, and whether notifications arrive."""

from __future__ import annotations

import math
import select
import time
from typing import TYPE_CHECKING
from uuid import uuid4

from settle.doctor.check import ok, warn
from settle.doctor.database import APPLICATION_NAME
from settle_outbox.storage.database import connect_autocommit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from settle.doctor.check import Check
    from settle.doctor.database import Database

NOTIFY_TIMEOUT_S = 3.0
# Not the relays' own: nobody is to be woken.
CHANNEL = "settle_doctor"
DIRECTLY = "have relays and consumers connect to PostgreSQL directly, or by a session pool"


def check_connections(database: Database) -> Iterator[Check]:
    """Whether sessions are our own, and notifications arrive: two connections by the same URL."""
    one = connect_autocommit(database.url, application_name=APPLICATION_NAME)
    try:
        other = connect_autocommit(database.url, application_name=APPLICATION_NAME)
        try:
            pooled = _pool_between(one, other)
            yield _judge_pool(f"{database.service} pooler", pooled)
            notify = f"{database.service} notify"
            if pooled == "transaction":
                # Not tried: the LISTEN would stay with whoever is given that session next.
                found = "does not arrive through such a pooler: relays deliver by polling"
                yield warn(notify, found, DIRECTLY)
            else:
                yield check_notify(notify, one, other)
        finally:
            other.close()
    finally:
        one.close()


def _pool_between(one: connection, other: connection) -> str | None:
    """What shares server connections among clients, by when it gives them back: None, or how.

    A transaction pooler gives the server connection of one that is idle to another; a session
    pooler tells another process id at the start than the server itself does.
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


def _judge_pool(name: str, pooled: str | None) -> Check:
    if pooled == "transaction":
        return warn(name, "a pooler gives sessions to others between transactions", DIRECTLY)
    if pooled == "session":
        return ok(name, "a pooler in session mode")
    return ok(name, "none in between")


def check_notify(name: str, one: connection, other: connection) -> Check:
    """Whether what one connection is to hear arrives when the other says it."""
    said = str(uuid4())
    began = time.monotonic()
    with one.cursor() as listening, other.cursor() as notifying:
        listening.execute(f"LISTEN {CHANNEL}")
        notifying.execute(f"NOTIFY {CHANNEL}, '{said}'")
        arrived = _arrives(one, said)
        took_ms = (time.monotonic() - began) * 1000
        listening.execute(f"UNLISTEN {CHANNEL}")
    if arrived:
        return ok(name, f"arrives, after {took_ms:.0f} ms")
    found = f"has not arrived after {NOTIFY_TIMEOUT_S:.0f} s: relays deliver by polling"
    return warn(name, found, DIRECTLY)


def _arrives(listening: connection, said: str) -> bool:
    deadline = time.monotonic() + NOTIFY_TIMEOUT_S
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    while (left_s := deadline - time.monotonic()) > 0:
        if any(each.payload == said for each in listening.notifies):
            return True
        poll.poll(math.ceil(left_s * 1000))
        listening.poll()
    return False
