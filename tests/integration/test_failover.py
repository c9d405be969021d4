"""A database fails over while its old server is frozen. Every process connects to the new server.

Nothing ends the connections to the old server, which acknowledges packets and never answers.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import make_url

import services.wiring
from settle_outbox.consume.handler import sessions as handler_sessions
from settle_outbox.notifications import notify
from settle_outbox.publish import relay
from support.delivery import Delivery
from support.ports import free_port, with_port
from support.tcp_proxy import Wire, postgres_client
from support.waiting import wait_until
from support.web import open_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.broker import Broker
    from support.postgres import PostgresServer

pytestmark = pytest.mark.slow

SERVICES = ("orders", "payments")
DEADLINE_S = 1.0
# Service and application name of each connection that must move, except those of the API's pool.
PARTS = {
    *((service, "outbox-notifier") for service in SERVICES),
    *((service, "outbox-listener") for service in SERVICES),
    *((service, f"outbox-relay {service}") for service in SERVICES),
    *((service, f"inbox-consumer {service}") for service in SERVICES),
}


@pytest.fixture
def wire(postgres: PostgresServer) -> Iterator[Wire]:
    with Wire(postgres_client, free_port(), postgres.port) as wire:
        yield wire


def test_every_process_connects_to_the_new_server(
    wire: Wire,
    postgres: PostgresServer,
    orders_url: str,
    payments_url: str,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (relay, handler_sessions, services.wiring):
        monkeypatch.setattr(module, "TRANSACTION_S", DEADLINE_S)
    monkeypatch.setattr(notify, "DEADLINE_S", DEADLINE_S)
    urls = {"orders": orders_url, "payments": payments_url}
    over_wire = {service: with_port(url, wire.port) for service, url in urls.items()}
    direct = Delivery(payments_url, orders_url, broker.bootstrap)
    delivery = Delivery(over_wire["payments"], over_wire["orders"], broker.bootstrap)
    user_id = direct.open_account(1_000_000)

    def backends() -> dict[tuple[str, str], set[int]]:
        """Return the backend process ids of each part's connections."""
        found: dict[tuple[str, str], set[int]] = {}
        for service, url in urls.items():
            rows: list[Any] = postgres.execute(
                "SELECT application_name, pid FROM pg_stat_activity"
                f" WHERE datname = '{make_url(url).database}'"
            )
            for name, pid in rows:
                found.setdefault((service, name), set()).add(pid)
        return found

    with ExitStack() as stack:
        orders = stack.enter_context(open_app("orders", over_wire["orders"])).test_client()
        for service in SERVICES:
            stack.enter_context(delivery.relay(service))
            stack.enter_context(delivery.consumer(service))
        # Without a reset, threads that wait for the old server would not end. "" means all clients.
        stack.callback(wire.reset, "")

        def place() -> UUID | None:
            """Place an order. Return None while the API is not connected to the new server."""
            response = orders.post("/orders", json={"user_id": str(user_id), "amount": 1})
            if response.status_code == 503:
                return None
            assert response.status_code == 202, response.text
            return UUID(response.headers["Location"].removeprefix("/order/"))

        def settled() -> bool:
            return set(direct.statuses()) == {"success"}

        assert place()
        wait_until(settled, timeout_s=60, what="the first order to settle")
        wait_until(lambda: set(backends()) >= PARTS, what="each part to be connected")
        before = {pid for pids in backends().values() for pid in pids}
        wire.fail_over()

        def parts_on_new_server() -> set[tuple[str, str]]:
            place()
            now = backends()
            missing = {part for part in PARTS if not now.get(part, set()) - before}
            assert not missing, missing
            return PARTS

        wait_until(
            parts_on_new_server, timeout_s=60, what="each part to be connected to the new server"
        )
        wait_until(settled, timeout_s=60, what="the orders to settle")
    (count,) = direct.statuses().values()
    assert direct.balance(user_id) == 1_000_000 - count
    assert len(direct.charges()) == count
