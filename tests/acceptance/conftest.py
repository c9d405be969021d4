"""The stack that the tests of a module share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Start a stack, and wait until every process is ready."""
    made = Stack()
    try:
        made.up()
        yield made
    finally:
        made.discard()
