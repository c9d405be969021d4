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
    """Show further environment variables to this process's Python code.

    The environment of the process itself stays as it is. To change it is not safe in C while
    another thread reads it, as libpq does when it connects: such a process was seen to crash.
    """
    with patch.object(os, "environ", {**os.environ, **variables}):
        yield
