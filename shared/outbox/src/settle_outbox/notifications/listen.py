"""Wait for a notification or the next poll, whichever comes first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg2
import structlog

from settle_outbox.errors import first_line
from settle_outbox.notifications.notify import CHANNEL
from settle_outbox.storage.database import connect_autocommit

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from settle_outbox.runtime.process import Stop

log = structlog.get_logger(__name__)

RECONNECT_INTERVAL_S = 5.0


class Listener:
    """Listens for notifications on a separate connection. While that is lost, its user still polls.

    Args:
        database_url: of the database that sends the notifications.
        stop: ends every wait.
        channel: the channel to listen on.
        name: of the connection in `pg_stat_activity`.
        lost_event: the log event when the connection is lost.
        back_event: the log event when it listens again.
    """

    def __init__(
        self,
        database_url: str,
        stop: Stop,
        *,
        channel: str = CHANNEL,
        name: str = "outbox-listener",
        lost_event: str = "relay.listener_lost",
        back_event: str = "relay.listener_back",
    ) -> None:
        self._database_url = database_url
        self._stop = stop
        self._channel = channel
        self._name = name
        self._lost_event = lost_event
        self._back_event = back_event
        self._connection: connection | None = None
        self._lost = False
        self._retry_at = 0.0

    def ensure(self) -> bool:
        """Start to listen, if that is not done yet. Call it before reading the database.

        If it were called after the reading, a change between the two could be missed.

        Returns:
            Whether it started to listen.
        """
        if self._connection is not None or time.monotonic() < self._retry_at:
            return False
        try:
            self._connection = connect_autocommit(self._database_url, application_name=self._name)
            with self._connection.cursor() as cursor:
                cursor.execute(f"LISTEN {self._channel}")
        except psycopg2.Error as error:
            self._lose(error)
            return False
        if self._lost:
            log.info(self._back_event)
            self._lost = False
        return True

    def wait(self, seconds: float) -> list[str]:
        """Wait until a notification comes, the stop is requested, or the time is over.

        Returns:
            The payloads of the notifications.
        """
        if self._connection is None:
            self._stop.wait(seconds)
            return []
        if not self._stop.wait(seconds, self._connection):
            return []
        try:
            self._connection.poll()
        except psycopg2.Error as error:
            self._lose(error)
            return []
        payloads = [notification.payload for notification in self._connection.notifies]
        self._connection.notifies.clear()
        return payloads

    def close(self) -> None:
        """Stop listening."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _lose(self, error: psycopg2.Error) -> None:
        if not self._lost:
            log.warning(self._lost_event, error=first_line(error), instead="polling")
            self._lost = True
        self._connection = None
        self._retry_at = time.monotonic() + RECONNECT_INTERVAL_S
