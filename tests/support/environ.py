"""Environment variables for the code under test."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Show additional environment variables to the Python code of this process.

    The environment of the process itself, which C code reads, does not change. libpq reads
    that environment when it connects, and a change at that moment, by another thread, has crashed a
    process.
    """
    with patch.object(os, "environ", {**os.environ, **variables}):
        yield
