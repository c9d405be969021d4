"""Wake threads that wait for a change, when a notification announces the change."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.notifications.listen import Listener
from settle_outbox.runtime.process import Backoff, OutageEvents, Stop
from settle_outbox.runtime.threads import repeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

# Time between two polls. If a notification was lost, its waiters wake at most this much later.
POLL_S = 1.0
# How long the connection is kept when nobody waits, for the next waiter.
LINGER_S = 10.0

_DATABASE_EVENTS = OutageEvents(
    "watcher.database_down",
    "watcher.database_still_down",
    "watcher.database_up",
    refused="watcher.database_refused",
    still_refused="watcher.database_still_refused",
)


class Waiters(Protocol):
    """The threads that wait. They register before they read the state.

    Attributes:
        has_waiters: set while there are waiters, and after all waits were ended.
        ended: whether all waits were ended for good, because the process ends.
    """

    has_waiters: threading.Event
    ended: bool

    def keys(self) -> Sequence[UUID]:
        """Return the ids that are waited for."""

    def wake(self, keys: Iterable[UUID], /) -> None:
        """Let the waiters for these ids read the state again."""


class NotificationWatcher(threading.Thread):
    """The thread of a process that wakes its waiters.

    It listens to the notifications that `announce` sends. It also polls, because a notification can
    be lost. While nobody waits it does neither, and has no connection.

    Args:
        database_url: where the notifications come from.
        channel: the channel of `announce`.
        waiters: the threads to wake.
        poll: gets ids, and returns those whose change has happened. A database error is logged,
            and the next poll tries again.
        name: of the thread, and of its connection in ``pg_stat_activity``.
    """

    def __init__(
        self,
        database_url: str,
        channel: str,
        waiters: Waiters,
        poll: Callable[[Sequence[UUID]], Iterable[UUID]],
        *,
        name: str,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._waiters = waiters
        self._poll = poll
        self._database = Backoff(_DATABASE_EVENTS)
        # Nothing requests this stop. It is not needed, because each wait ends after `POLL_S`.
        self._listener = Listener(
            database_url,
            Stop(),
            channel=channel,
            name=name,
            lost_event="watcher.listener_lost",
            back_event="watcher.listener_back",
        )

    def run(self) -> None:
        """Watch until all waits are ended."""
        repeat(
            self._watch_next,
            failed_event="watcher.failed",
            is_over=lambda: self._waiters.ended,
        )

    def _watch_next(self) -> None:
        self._waiters.has_waiters.wait()
        try:
            self._watch()
        finally:
            self._listener.close()

    def _watch(self) -> None:
        """Watch until nobody has waited for `LINGER_S`."""
        wanted_at, polled_at = time.monotonic(), -math.inf
        while not self._waiters.ended and time.monotonic() - wanted_at < LINGER_S:
            is_new = self._listener.ensure()
            keys = self._waiters.keys()
            if keys:
                wanted_at = time.monotonic()
            # A new listener has missed the notifications before it.
            if keys and (is_new or time.monotonic() - polled_at >= POLL_S):
                self._wake_changed(keys)
                polled_at = time.monotonic()
            self._waiters.wake(_ids(self._listener.wait(POLL_S)))

    def _wake_changed(self, keys: Sequence[UUID]) -> None:
        try:
            changed = self._poll(keys)
        except SQLAlchemyError as error:
            self._database.failed(error)
            return
        self._database.succeeded()
        self._waiters.wake(changed)


def _ids(payloads: Sequence[str]) -> Iterator[UUID]:
    """Return the ids in some payloads. Anyone can notify, so a payload may hold something else."""
    for payload in payloads:
        for text in payload.split(","):
            with suppress(ValueError):
                yield UUID(text)
