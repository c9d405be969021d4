"""The engine without servers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import structlog

from settle_outbox.consume import batch_transaction, consumer
from settle_outbox.publish import relay
from support.engine import KilledError, World

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A cluster and a database in memory, and nothing in the log."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return World(monkeypatch)


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the next process that comes to a failpoint end there, as by SIGKILL."""
    armed: list[str] = []

    def failpoint(name: str) -> None:
        if name in armed:
            armed.remove(name)
            raise KilledError(name)

    for module in (batch_transaction, consumer, relay):
        monkeypatch.setattr(module, "failpoint", failpoint)
    return armed.append
