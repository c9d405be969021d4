"""The stack that a module's tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack that is up, with every process ready."""
    made = Stack()
    try:
        made.up()
        yield made
    finally:
        made.discard()
