"""The loop of a thread that works for as long as its process lives."""

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
    name: str, step: Callable[[], object], *, is_over: Callable[[], bool] = lambda: False
) -> None:
    """Repeat a step, whatever it raises.

    Nobody would notice that a daemon thread ended: the process lives on, and its health checks
    succeed. So an error is logged with its traceback, and after a pause the step is tried again.

    Args:
        name: of the thread in the log; an error is logged as ``<name>_failed``.
        step: does one piece of work, or waits for some.
        is_over: whether to return; asked before each step.
    """
    pause_s = FIRST_PAUSE_S
    while not is_over():
        try:
            step()
            pause_s = FIRST_PAUSE_S
        except Exception:
            with suppress(Exception):  # what failed may be the log
                log.exception(f"{name}_failed", again_in_s=pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
