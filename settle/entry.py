"""The entry point of the command `settle`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Report a missing package, or an interrupt while modules are loaded."""
    try:
        from settle_outbox_commands import load  # noqa: PLC0415  # it may not be installed

        run = load("settle.cli")
    except ModuleNotFoundError as error:
        sys.exit(f"Error: The package {error.name} is not installed: run make install.")
    run()
