"""Interrupts (Ctrl-C) that Python does not lose."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """Raise an interrupt at the end of the block, if Python dropped it.

    Python drops exceptions that are raised while it finalizes a file, such as a socket's: the
    destructor of `io.IOBase` calls `close` and drops its errors. Call it in the main thread only.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield  # SIGINT is ignored, as in a background job of a shell, or has another handler
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
