"""A broker behind a proxy, which fails some of what is sent to it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from support.broker import Broker, open_broker
from support.delivery import Delivery
from support.ports import free_port
from support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Proxied:
    """A broker that clients reach through a proxy alone."""

    broker: Broker
    port: int

    @contextmanager
    def failing(self, fails: Callable[[int], str | None]) -> Iterator[Proxy]:
        """Reachable, for as long as it is entered.

        Args:
            fails: asked for each produce request, by its number from 1: how it fails, or None.
        """
        with Proxy(self.port, self.broker.port, fails).serving() as proxy:
            yield proxy


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
