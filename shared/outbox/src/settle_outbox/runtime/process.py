"""Stopping a process, and waiting between attempts while something fails."""

from __future__ import annotations

import math
import os
import random
import re
import select
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from sqlalchemy.exc import DBAPIError

from settle_outbox.errors import SettleError, describe_error, first_line
from settle_outbox.storage.sqlstate import is_login_refused, is_unreachable, sqlstate_of

if TYPE_CHECKING:
    from types import FrameType

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
# Maximum number of reasons that are logged for one outage. An error text that differs each time
# must not fill the log.
REASONS_MAX = 20
# Maximum time in which a transaction of a relay or consumer may hold its connection. Without it, a
# frozen server would block the process forever, even after a failover. A batch takes far less time.
# Work that grows with the tables has no deadline.
TRANSACTION_S = 120.0

log = structlog.get_logger(__name__)


class Stop:
    """A request to stop the process, for example by SIGTERM. It ends all waits."""

    def __init__(self) -> None:
        self.requested = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def listen(self) -> None:
        """Request the stop on SIGTERM and SIGINT. Only the main thread may call this."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def request(self) -> None:
        """Request the stop. The process finishes its current work first."""
        if not self.requested:
            self.requested = True
            os.write(self._write, b"x")

    def raise_if_requested(self) -> None:
        """Interrupt long work that can be repeated later.

        Raises:
            StoppedError: the stop was requested.
        """
        if self.requested:
            raise StoppedError

    def wait(self, seconds: float, *files: Any) -> list[Any]:
        """Wait until the stop is requested, a file is readable, or the time is over.

        Args:
            seconds: maximum time.
            files: objects with a ``fileno()``.

        Returns:
            The files that are readable.
        """
        poll = select.poll()  # select() accepts no descriptor above 1023
        poll.register(self._read, select.POLLIN)
        for file in files:
            poll.register(file, select.POLLIN)
        ready = {number for number, _ in poll.poll(math.ceil(max(0.0, seconds) * 1000))}
        return [file for file in files if file.fileno() in ready]

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.request()


class StoppedError(SettleError):
    """Work was interrupted because the stop was requested."""


class FatalError(SettleError):
    """An error that ends a relay or consumer, because only an operator can correct it."""


class OutageEvents(NamedTuple):
    """The log events of an outage.

    Args:
        down: the first failure.
        still_down: a later failure for another reason.
        up: the first success after the failures.
        refused: used in place of `down` if a database responds, but refuses the login or statement.
        still_refused: used in place of `still_down` in the same case.
    """

    down: str
    still_down: str
    up: str
    refused: str = ""
    still_refused: str = ""


class Backoff:
    """Computes the wait between attempts at something that fails, and logs the outage.

    Args:
        events: the log events.
        traceback: whether to log the traceback of the error, because it is unexpected.
    """

    def __init__(self, events: OutageEvents, *, traceback: bool = False) -> None:
        self._events = events
        self._traceback = traceback
        self._since: float | None = None
        self._failures = 0
        self._reasons: set[str] = set()

    def failed(self, error: BaseException) -> float:
        """Record a failure.

        Returns:
            The wait before the next attempt, in seconds. It doubles each time up to a limit, and
            has a random part, so that many processes do not try again at the same time.
        """
        is_refusal = bool(self._events.refused) and _is_refusal(error)
        if self._since is None:
            self._since = time.monotonic()
            self._log(self._events.refused if is_refusal else self._events.down, error)
        elif len(self._reasons) < REASONS_MAX and _cause(error) not in self._reasons:
            self._log(self._events.still_refused if is_refusal else self._events.still_down, error)
        self._reasons.add(_cause(error))
        delay_s: float = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self._failures, 10))
        self._failures += 1
        return delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - not for secrets

    def succeeded(self) -> None:
        """Record a success."""
        if self._since is not None:
            log.info(
                self._events.up,
                after_s=round(time.monotonic() - self._since, 3),
                tries=self._failures,
            )
            self._since = None
        self._failures = 0
        self._reasons.clear()

    def _log(self, event: str, error: BaseException) -> None:
        log.warning(
            event,
            error=describe_error(error),
            reason="login" if is_login_refused(error) else None,
            sqlstate=sqlstate_of(error),
            exc_info=error if self._traceback else None,
        )


def _is_refusal(error: BaseException) -> bool:
    """Return whether a database server responded, but refused the login or the statement."""
    return isinstance(error, DBAPIError) and (is_login_refused(error) or not is_unreachable(error))


def _cause(error: BaseException) -> str:
    """Return a text that errors with the same cause share. Numbers, such as ports, become #."""
    text = re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "#", first_line(error))
    return f"{type(error).__name__} {sqlstate_of(error)} {text}"
