"""Fixtures for a broker behind a proxy that can make requests fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.broker import make_broker
from support.delivery import Delivery
from support.kafka_proxy import Proxied
from support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared_proxied() -> Iterator[Proxied]:
    """Start a broker behind a proxy.

    The broker may have records of earlier tests, so tests use `proxied`, which empties the broker.
    """
    port = free_port()
    with make_broker(advertised_port=port) as broker:
        yield Proxied(broker, port)


@pytest.fixture
def proxied(shared_proxied: Proxied) -> Proxied:
    """Return an empty broker that is reachable while a test runs its proxy (`failing`)."""
    with shared_proxied.failing(lambda _: None):
        shared_proxied.broker.empty()
    return shared_proxied


@pytest.fixture
def proxied_delivery(payments_url: str, orders_url: str, proxied: Proxied) -> Delivery:
    """Return a delivery with both databases and the broker of `proxied`."""
    return Delivery(payments_url, orders_url, f"127.0.0.1:{proxied.port}")
