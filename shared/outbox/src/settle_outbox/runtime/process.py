"""What a relay and a consumer have in common: stopping and backing off."""

from __future__ import annotations

import math
import os
import random
import re
import select
import signal
import time
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.exc import DBAPIError

from settle_outbox.errors import SettleError
from settle_outbox.storage.sqlstate import is_unreachable, sqlstate_of

if TYPE_CHECKING:
    from types import FrameType

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
# Reasons of one outage that are logged; an error text that differs each time must not fill the log.
REASONS_MAX = 20
# Maximum time in which a transaction of a relay or consumer may hold its connection. Without it, a
# frozen server would block the process forever, even after a failover. A batch takes far less. Work
# that grows with the tables has no deadline.
TRANSACTION_S = 120.0

log = structlog.get_logger(__name__)


class Stop:
    """Whether the process was asked to stop, by SIGTERM or SIGINT; it wakes whoever waits."""

    def __init__(self) -> None:
        self.requested = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def listen(self) -> None:
        """Take SIGTERM and SIGINT as the request. Only the main thread can."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def request(self) -> None:
        """RunQuery for the stop: what is under way is finished first."""
        if not self.requested:
            self.requested = True
            os.write(self._write, b"x")

    def raise_if_requested(self) -> None:
        """End long work that can be done again later.

        Raises:
            StoppedError: the process was asked to stop.
        """
        if self.requested:
            raise StoppedError

    def wait(self, seconds: float, *others: Any) -> list[Any]:
        """Wait for the request, for one of the others to be readable, or for the time to pass.

        Args:
            seconds: at most.
            others: whatever has a ``fileno()``.

        Returns:
            Those of the others that are readable.
        """
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(self._read, select.POLLIN)
        for other in others:
            poll.register(other, select.POLLIN)
        ready = {number for number, _ in poll.poll(math.ceil(max(0.0, seconds) * 1000))}
        return [other for other in others if other.fileno() in ready]

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.request()


class StoppedError(SettleError):
    """Work was given up in the middle, since the process was asked to stop."""


class FatalError(SettleError):
    """An error that ends a relay or consumer: only an operator can resolve it."""


class Backoff:
    """Wait between the attempts at something that fails, and log the outage.

    Logs ``<name>_down`` at the first failure, ``<name>_still_down`` when the reason changes, and
    ``<name>_up`` at the next success. A database that answers, but refuses, is ``_refused`` in
    place of ``_down``.

    Args:
        name: what fails, such as ``relay.broker``.
        traceback: whether to log where the error was raised; for errors that nobody expected.
    """

    def __init__(self, name: str, *, traceback: bool = False) -> None:
        self._name = name
        self._traceback = traceback
        self._since: float | None = None
        self._tries = 0
        self._reasons: set[str] = set()

    def failed(self, error: BaseException) -> float:
        """Note a failure.

        Returns:
            Seconds to wait before the next attempt: doubled each time, bounded, and randomized so
            that many processes do not return at once.
        """
        if self._since is None:
            self._since = time.monotonic()
            self._log(f"{self._name}_{_state(error)}", error)
        elif len(self._reasons) < REASONS_MAX and _reason(error) not in self._reasons:
            self._log(f"{self._name}_still_{_state(error)}", error)
        self._reasons.add(_reason(error))
        delay_s: float = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self._tries, 10))
        self._tries += 1
        return delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - not for secrets

    def succeeded(self) -> None:
        """Note a success."""
        if self._since is not None:
            log.info(
                f"{self._name}_up",
                after_s=round(time.monotonic() - self._since, 3),
                tries=self._tries,
            )
            self._since = None
        self._tries = 0
        self._reasons.clear()

    def _log(self, event: str, error: BaseException) -> None:
        log.warning(
            event,
            error=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            sqlstate=sqlstate_of(error),
            exc_info=error if self._traceback else None,
        )


def _state(error: BaseException) -> str:
    return "refused" if isinstance(error, DBAPIError) and not is_unreachable(error) else "down"


def _reason(error: BaseException) -> str:
    """Return what two errors with one cause have in common: ports and ids differ."""
    text = re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "#", str(error).partition("\n")[0])
    return f"{type(error).__name__} {sqlstate_of(error)} {text}"
