"""The loop of a daemon thread.

settle_outbox has these daemon threads, beside those of kafka-python:

- ``database-deadlines`` (`storage.deadlines`) for each SQLAlchemy engine that has a deadline: cuts
  transactions that take too long.
- ``outbox-notifier`` (`notifications.notify`) in APIs and consumers: sends NOTIFY after commits.
- `notifications.watcher` in APIs whose HTTP requests wait for a change: wakes these requests.
- ``active-clock`` (`runtime.active_clock`) in consumers: measures the time of handlers, and writes
  heartbeats while a handler runs.
- one for each check that runs in the background (`checks.background`).
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE_S = 0.1
PAUSE_MAX_S = 5.0

log = structlog.get_logger(__name__)


def repeat(
    step: Callable[[], object],
    *,
    failed_event: str,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Repeat a step, even after an error.

    If an error ended the thread, nobody would notice: the process lives on, and its health checks
    succeed. So the error is logged with its traceback, and the step is repeated after a pause.

    Args:
        step: does one piece of work, or waits for some.
        failed_event: the log event of an error.
        is_over: returns True to end the loop; called before each step.
    """
    pause_s = FIRST_PAUSE_S
    while not is_over():
        try:
            step()
            pause_s = FIRST_PAUSE_S
        except Exception:
            with suppress(Exception):  # the log itself may be what failed
                log.exception(failed_event, again_in_s=pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
