"""Where the command `settle` begins."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; say so when a package it needs has come with a pull."""
    try:
        from settle.cli import main as run  # noqa: PLC0415 - its failure is what is looked for
    except ModuleNotFoundError as error:
        sys.exit(f"Error: The package {error.name} is not installed: run make install.")
    run()
