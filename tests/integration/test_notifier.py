"""The notifier thread continues after its connection ends, and after an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from structlog.testing import capture_logs

import settle_outbox as outbox
from settle_outbox import Event, notify_after_commit
from settle_outbox.notifications import notify
from settle_outbox.notifications.listen import Listener
from settle_outbox.runtime.process import Stop
from support.waiting import wait_until

if TYPE_CHECKING:
    import pytest

    from support.postgres import PostgresServer


def test_a_notification_is_sent_after_the_connection_ended(
    orders_url: str, postgres: PostgresServer
) -> None:
    """The next notification uses another connection."""
    engine = create_engine(orders_url)
    sessions = sessionmaker(engine)
    notify_after_commit(sessions, orders_url)
    listener = Listener(orders_url, Stop())

    def notified() -> bool:
        with sessions.begin() as session:
            outbox.add(session, Event("orders", "a", "order.created", {}))
        return bool(listener.wait(1))

    def pids() -> list[Any]:
        return postgres.execute(
            "SELECT pid FROM pg_stat_activity"
            f" WHERE application_name = 'outbox-notifier' AND datname = '{engine.url.database}'"
        )

    listener.ensure()
    wait_until(notified, timeout_s=30, what="a notification")
    first_pids = pids()
    for _ in range(2):  # the connection is used again
        wait_until(notified, timeout_s=30, what="another notification")
        assert pids() == first_pids
    ((pid,),) = first_pids
    assert postgres.execute(f"SELECT pg_terminate_backend({pid}, 5000)") == [(True,)]
    wait_until(notified, timeout_s=30, what="a notification on a new connection")
    assert pids() != first_pids
    listener.close()
    engine.dispose()


def test_the_notifier_continues_after_an_error(
    orders_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notifier logs the error with its traceback, and sends the next notification."""
    engine = create_engine(orders_url)
    sessions = sessionmaker(engine)
    notify_after_commit(sessions, orders_url)
    listener = Listener(orders_url, Stop())
    listener.ensure()
    notifications_of = notify._notifications  # noqa: SLF001
    failures: list[object] = []

    def fail_once(wanted: Any) -> Any:
        if not failures:
            failures.append(wanted)
            raise RuntimeError("unforeseen")
        return notifications_of(wanted)

    def add() -> None:
        with sessions.begin() as session:
            outbox.add(session, Event("orders", "a", "order.created", {}))

    monkeypatch.setattr(notify, "_notifications", fail_once)
    with capture_logs() as lines:
        add()
        wait_until(lambda: failures, what="the error")
        add()
        assert listener.wait(10) == [""]

    (line,) = lines
    assert (line["event"], line["exc_info"]) == ("outbox.notifier_failed", True)
    listener.close()
    engine.dispose()
