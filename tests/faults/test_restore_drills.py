"""Restore a database to an earlier moment, with the steps of docs/how-to/restore.md.

Each drill ends with exactly the findings that a person must decide on.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import make_url

from support.audit_data import run_audit, violations_in
from support.delivery import ORDERS, PAYMENTS
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.delivery import Delivery
    from support.postgres import PostgresServer

SERVICES = ("orders", "payments")
AGREE = "{}: outbox, topic and inbox agree"
EFFECTS = "{}: each applied exactly once"


@contextmanager
def running(delivery: Delivery) -> Iterator[None]:
    """Run the relays and consumers of both services."""
    with ExitStack() as stack:
        for service in SERVICES:
            stack.enter_context(delivery.relay(service))
            stack.enter_context(delivery.consumer(service))
        yield


@pytest.fixture
def back_up(postgres: PostgresServer) -> Iterator[Callable[[str], str]]:
    """Return a function that copies a database and returns the URL of the copy."""
    copies: list[str] = []

    def copy(url: str) -> str:
        source = make_url(url).database
        name = f"{source}_{uuid4().hex[:8]}"
        # The copy needs a database without connections, and notifiers keep theirs open.
        postgres.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE datname = '{source}'"
        )
        copies.append(name)
        return postgres.create_database(name, template=str(source))

    yield copy
    for name in copies:
        postgres.drop_database(name)


def settle(delivery: Delivery, expected: dict[str, int]) -> None:
    with running(delivery):
        wait_until(lambda: delivery.statuses() == expected, timeout_s=60, what="the orders")


def replay(delivery: Delivery, service: str) -> None:
    done = delivery.run("outbox-relay", "replay", service, "--since", "1h")
    assert done.returncode == 0, done.stderr


def test_orders_restored(delivery: Delivery, back_up: Callable[[str], str]) -> None:
    user = delivery.open_account(100)
    delivery.place(user, 1)
    settle(delivery, {"success": 1})
    delivery.place(user, 2)
    backup = back_up(delivery.orders_url)
    (lost,) = delivery.place(user, 4)
    settle(delivery, {"success": 3})

    restored = replace(delivery, orders_url=backup)
    replay(restored, "payments")
    with running(restored):
        wait_until(lambda: restored.statuses() == {"success": 2}, timeout_s=60, what="the orders")
        wait_until(
            lambda: len(restored.dead_letters("orders")) == 1,
            timeout_s=60,
            what="the dead letter of the lost order",
        )
    ((event,),) = delivery.query(
        "orders",
        "SELECT id FROM outbox WHERE convert_from(payload, 'UTF8')::json ->> 'order_id' = :id",
        id=str(lost),
    )

    violations = violations_in(run_audit(restored))

    assert [each.reason for each in restored.dead_letters("orders")] == ["unknown_order"]
    assert restored.balance(user) == 93
    # The user has paid for an order that is lost. Everything else agrees.
    assert violations == {
        ("one charge per success, none per failure", "charge without order", str(lost)),
        (AGREE.format(ORDERS), "unknown in the topic", str(event)),
        (AGREE.format(ORDERS), "unknown in the inbox", str(event)),
    }


def test_payments_restored(delivery: Delivery, back_up: Callable[[str], str]) -> None:
    user = delivery.open_account(100)
    delivery.place(user, 1)
    settle(delivery, {"success": 1})
    (charged_again,) = delivery.place(user, 2)
    backup = back_up(delivery.payments_url)
    settle(delivery, {"success": 2})

    restored = replace(delivery, payments_url=backup)
    replay(restored, "orders")
    with running(restored):
        wait_until(lambda: restored.balance(user) == 97, timeout_s=60, what="the charge")
        wait_until(
            lambda: restored.inbox("orders").get("anomaly") == 1, timeout_s=60, what="the anomaly"
        )
    ((event,),) = delivery.query("orders", "SELECT id FROM inbox ORDER BY id DESC LIMIT 1 OFFSET 1")

    violations = violations_in(run_audit(restored))

    assert restored.statuses() == {"success": 2}
    # The order's first result is in the topic and in the orders database, but payments lost it.
    # So payments charged the order again. The second result has no effect.
    assert violations == {
        (EFFECTS.format(PAYMENTS), "effect without event", str(charged_again)),
        (AGREE.format(PAYMENTS), "unknown in the topic", str(event)),
        (AGREE.format(PAYMENTS), "unknown in the inbox", str(event)),
    }
