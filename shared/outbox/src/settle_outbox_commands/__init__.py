"""Start a command. An interrupt while its modules are loaded is reported in a sentence.

This package is outside `settle_outbox`, because importing `settle_outbox` takes most of the start's
time, in which an interrupt can come.
"""

from __future__ import annotations

import importlib
import os
import signal
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable


def relay() -> None:
    """Run outbox-relay."""
    load("settle_outbox.cli.relay")()


def consumer() -> None:
    """Run inbox-consumer."""
    load("settle_outbox.cli.inbox")()


def doctor() -> None:
    """Run outbox-doctor."""
    load("settle_outbox.cli.doctor")()


def load(module: str) -> Callable[[], None]:
    """Return the function `main` of a command's module.

    Raises:
        ModuleNotFoundError: the module, or one that it imports, is not installed.
    """
    # A shell may have set the signal to be ignored.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        # `_end` ends the process at once, because nothing runs yet that must be stopped. A
        # KeyboardInterrupt does not fit: Python may drop it while a module is loaded.
        signal.signal(signal.SIGINT, _end)
    main = importlib.import_module(module).main
    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cast("Callable[[], None]", main)


def _end(*_: object) -> None:
    try:
        os.write(2, b"Error: Interrupted.\n")  # standard error, which may be closed
    finally:
        os._exit(130)  # 128 + SIGINT, as shells report it
