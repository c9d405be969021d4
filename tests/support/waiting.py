"""Waiting for a condition, in place of sleeping."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 0.02
T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, timeout_s: float = 30.0, what: str = "") -> T:
    """Call `condition` until what it returns is true, and return that.

    Args:
        condition: called every 20 ms; an assertion that fails in it counts as not yet.
        timeout_s: how long it may take.
        what: what is waited for, for the message.

    Raises:
        AssertionError: it did not come true in time; names what was seen last.
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
