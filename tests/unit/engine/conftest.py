"""Fixtures for the engine without servers."""

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
    """Create a cluster and a database in memory, and drop all log lines."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return World(monkeypatch)


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes the next process end at a failpoint, as SIGKILL would."""
    armed: list[str] = []

    def failpoint(name: str) -> None:
        if name in armed:
            armed.remove(name)
            raise KilledError(name)

    for module in (batch_transaction, consumer, relay):
        monkeypatch.setattr(module, "failpoint", failpoint)
    return armed.append
