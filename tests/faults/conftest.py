"""A broker behind a proxy, which fails some of what is sent to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.broker import open_broker
from support.delivery import Delivery
from support.kafka_proxy import Proxied
from support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared_proxied() -> Iterator[Proxied]:
    """A broker behind a proxy, and what the tests before left in it: take `proxied`."""
    port = free_port()
    with open_broker(advertised_port=port) as broker:
        yield Proxied(broker, port)


@pytest.fixture
def proxied(shared_proxied: Proxied) -> Proxied:
    """A broker behind a proxy that holds nothing."""
    with shared_proxied.failing(lambda _: None):
        shared_proxied.broker.reset()
    return shared_proxied


@pytest.fixture
def proxied_delivery(payments_url: str, orders_url: str, proxied: Proxied) -> Delivery:
    """Both databases, and `proxied`."""
    return Delivery(payments_url, orders_url, f"127.0.0.1:{proxied.port}")
