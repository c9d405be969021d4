"""Kafka clients of this project when no broker answers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from kafka.errors import KafkaError

from settle_outbox.kafka import clients
from settle_outbox.settings import read_settings
from support.environ import environment
from support.ports import free_port
from support.web import NO_DATABASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from settle_outbox.settings import Settings


@pytest.mark.parametrize("make", [clients.make_admin, clients.make_producer, clients.make_consumer])
def test_a_client_that_finds_no_broker_leaves_no_thread(
    make: Callable[[Settings, str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relays and consumers make a new client for each try, so leaked threads would add up."""
    variables = {
        "ORDERS_DATABASE_URL": NO_DATABASE,
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
    }
    with environment(variables):
        settings = read_settings("orders")
    monkeypatch.setattr(clients, "BOOTSTRAP_TIMEOUT_MS", 200)
    before = set(threading.enumerate())
    with pytest.raises(KafkaError):
        make(settings, "test")
    assert set(threading.enumerate()) == before
