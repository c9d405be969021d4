"""Waking those who wait for an order to become final, in a process of the API."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from services.orders.models import CREATED, Order
from services.orders.settlements import SETTLED_CHANNEL
from settle_outbox.notifications.listen import Listener
from settle_outbox.runtime.process import Backoff, Stop
from settle_outbox.runtime.threads import repeat
from shared.web.app import THREADS
from shared.web.sessions import session_factory
from shared.web.waiting.waiters import Waiters, register_waiters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flask import Flask
    from sqlalchemy.orm import Session, sessionmaker

# How late a waiter is told at worst, when a notification was lost or there is no listener.
POLL_S = 1.0
# For how long the listener stays when nobody waits any more, for the next one.
LINGER_S = 10.0


class Watch(threading.Thread):
    """The thread of a process that looks out for those who wait in it.

    It listens for the notifications of the settled, and now and then asks for all that are waited
    for by one query. While nobody waits it does neither, and has no connection.

    Args:
        waiters: whom to wake, by their orders' ids.
        sessions: of the database.
        database_url: of the same, to listen to.
    """

    def __init__(
        self, waiters: Waiters, sessions: sessionmaker[Session], database_url: str
    ) -> None:
        super().__init__(name="orders-watch", daemon=True)
        self._waiters = waiters
        self._sessions = sessions
        self._listener = Listener(
            database_url,
            Stop(),  # that nobody asks for: no wait is longer than a poll's
            channel=SETTLED_CHANNEL,
            name="orders-watch",
            told_as="orders",
        )
        self._database = Backoff("orders.watch_database")

    def run(self) -> None:
        """Watch until the process is about to end."""
        repeat("orders.watch", self._watch_next, is_over=lambda: self._waiters.released)

    def _watch_next(self) -> None:
        self._waiters.present.wait()
        try:
            self._watch()
        finally:
            self._listener.close()

    def _watch(self) -> None:
        """Watch until nobody has waited for a while."""
        wanted_at, polled_at = time.monotonic(), -math.inf
        while not self._waiters.released and time.monotonic() - wanted_at < LINGER_S:
            is_new = self._listener.ensure()
            waited_for = self._waiters.keys()
            if waited_for:
                wanted_at = time.monotonic()
            # What was settled before the listener was there, nobody has told.
            if waited_for and (is_new or time.monotonic() - polled_at >= POLL_S):
                self._waiters.wake(self._final(waited_for))
                polled_at = time.monotonic()
            self._waiters.wake(_ids(self._listener.wait(POLL_S)))

    def _final(self, waited_for: Sequence[UUID]) -> Sequence[UUID]:
        """Those that are final by now; none when the database cannot be asked."""
        query = select(Order.id).where(Order.id.in_(waited_for), Order.status != CREATED)
        try:
            with self._sessions.begin() as session:
                found = session.scalars(query).all()
        except SQLAlchemyError as error:
            self._database.failed(error)
            return ()
        self._database.succeeded()
        return found


def start_watch(app: Flask, database_url: str) -> None:
    """Let requests of an app wait for orders, and start the thread that wakes them.

    Half of a process's threads may wait, because a thread that waits serves nobody.
    """
    waiters = register_waiters(app, most=THREADS // 2)
    watch = Watch(waiters, session_factory(app), database_url)
    app.extensions["orders-watch"] = watch
    watch.start()


def _ids(payloads: Sequence[str]) -> Iterator[UUID]:
    """The ids of notifications; anybody may send some, and not all need be ids."""
    for payload in payloads:
        for text in payload.split(","):
            with suppress(ValueError):
                yield UUID(text)
