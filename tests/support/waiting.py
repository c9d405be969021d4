"""Wait for a condition instead of sleeping."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 0.02
T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, timeout_s: float = 30.0, what: str = "") -> T:
    """Call `condition` until its result is true, and return the result.

    Args:
        condition: Called every 20 ms. A failed assertion in it counts as false.
        timeout_s: The time limit.
        what: The awaited condition, for the message.

    Raises:
        AssertionError: The condition was not true in time. The message has the last result.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        seen: object
        try:
            found = condition()
            if found:
                return found
            seen = found
        except AssertionError as error:
            seen = error
        if time.monotonic() > deadline:
            wanted = what or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"Waited {timeout_s} s for {wanted}; seen last: {seen!r}")
        time.sleep(POLL_S)
