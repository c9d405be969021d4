"""Waiting for the next event: a notification, or the next poll, whichever comes first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg2
import structlog

from settle_outbox.notifications.notify import CHANNEL
from settle_outbox.storage.database import connect_autocommit

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from settle_outbox.runtime.process import Stop

log = structlog.get_logger(__name__)

RECONNECT_EVERY_S = 5.0


class Listener:
    """Listens on a connection of its own. When that is lost, polling goes on alone.

    Args:
        database_url: where the notifications come from.
        stop: ends every wait.
        channel: which notifications.
        name: whose listener it is, in `pg_stat_activity`.
        told_as: what the events of its log lines begin with.
    """

    def __init__(
        self,
        database_url: str,
        stop: Stop,
        *,
        channel: str = CHANNEL,
        name: str = "outbox-listener",
        told_as: str = "relay",
    ) -> None:
        self._database_url = database_url
        self._stop = stop
        self._channel = channel
        self._name = name
        self._told_as = told_as
        self._connection: connection | None = None
        self._lost = False
        self._retry_at = 0.0

    def ensure(self) -> bool:
        """Listen, if possible. Call it before looking for events, or one may slip between.

        Returns:
            Whether it listens from now on, and did not before.
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
            log.info(f"{self._told_as}.listener_back")
            self._lost = False
        return True

    def wait(self, seconds: float) -> list[str]:
        """Wait for a notification, the stop, or the time to pass.

        Returns:
            The payloads of the notifications that came.
        """
        others = [] if self._connection is None else [self._connection]
        if not self._stop.wait(seconds, *others) or self._connection is None:
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
            log.warning(
                f"{self._told_as}.listener_lost", error=str(error).strip(), instead="polling"
            )
            self._lost = True
        self._connection = None
        self._retry_at = time.monotonic() + RECONNECT_EVERY_S
