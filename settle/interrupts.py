"""Interrupts that are not lost."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """Raise an interrupt at the end at the latest, where Python has dropped it on the way.

    It drops what is raised while it finalizes a file, a socket's or an answer's say (the destructor
    of `io.IOBase` calls `close` and passes over its errors). Only for the main thread.

    Raises:
        KeyboardInterrupt: the interrupt key was pressed, now or before.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield  # interrupts are ignored, as by what a shell runs in the background
        return
    heard = False

    def hear(_number: int, _frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt
