"""The thread that notifies outlives its connection, whenever that ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import sessionmaker

from shared import outbox
from shared.outbox import Event, notify_after_commit
from shared.outbox.listener import Listener
from shared.outbox.process import Stop
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.postgres import PostgresServer

# Of the connection, before it ends: what is done to it only when it is used again counts as well.
USES = 3


def test_a_connection_that_ends_right_after_a_notification(
    orders_url: str, postgres: PostgresServer
) -> None:
    """The next one goes over another connection."""
    engine = create_engine(orders_url)
    sessions = sessionmaker(engine)
    notify_after_commit(sessions, orders_url)
    listener = Listener(orders_url, Stop())
    told: list[int] = []

    def end(connection: Any, _: object, statement: str, *__: object) -> None:
        if "pg_notify" in statement:
            pid = connection.connection.dbapi_connection.get_backend_pid()
            told.append(pid)
            if len(told) == USES:
                ended = postgres.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
                assert ended == [(True,)]

    def notified() -> bool:
        with sessions.begin() as session:
            outbox.add(session, Event("orders", "a", "order.created", 1))
        return bool(listener.wait(1))

    event.listen(Engine, "after_cursor_execute", end)
    try:
        listener.ensure()
        wait_until(lambda: notified() and len(told) >= USES, timeout_s=30, what="the last one")
    finally:
        event.remove(Engine, "after_cursor_execute", end)
    wait_until(notified, timeout_s=30, what="the next one")
    assert set(told[:USES]) == {told[0]}
    listener.close()
    engine.dispose()
