"""The entry point of the command `settle`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line. Report a missing package, or an interrupt while modules are loaded."""
    # While modules are loaded, Python may drop a KeyboardInterrupt. So an interrupt exits at once:
    # nothing runs yet that must be stopped.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:  # a shell ignores it for a background job
        signal.signal(signal.SIGINT, _interrupted)
    try:
        from settle.cli import main as run  # noqa: PLC0415 - it may fail, and takes a while
    except ModuleNotFoundError as error:
        sys.exit(f"Error: The package {error.name} is not installed: run make install.")
    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _interrupted(*_: object) -> None:
    os.write(sys.stderr.fileno(), b"Error: Interrupted.\n")
    os._exit(130)  # 128 + SIGINT, as shells report it
