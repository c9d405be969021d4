"""Each order is charged exactly once when a consumer or the database dies at a given place."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from support.waiting import wait_until

if TYPE_CHECKING:
    from support.delivery import Delivery
    from support.postgres import PostgresServer


@pytest.mark.parametrize(
    ("failpoint", "applied", "delivered_again"),
    [
        # Nothing is committed, so the next consumer applies the events.
        ("consumer.recorded", 0, 10),
        # The offsets are not committed, so the next consumer drops the duplicates.
        ("consumer.applied", 10, 10),
        # Everything is committed.
        ("consumer.committed", 10, 0),
    ],
)
def test_a_consumer_killed_anywhere_charges_once(
    delivery: Delivery, failpoint: str, applied: int, delivered_again: int
) -> None:
    user = delivery.open_account(100)
    delivery.place(user, 1, count=10)
    with delivery.relay("orders"):
        delivery.wait_sent("orders")
    with delivery.process(
        "inbox-consumer", "run", "payments", FAILPOINTS=f"{failpoint}=kill"
    ) as consumer:
        assert consumer.wait(timeout_s=20) == -signal.SIGKILL
    assert len(delivery.charges()) == applied
    assert delivery.committed("payments") == 10 - delivered_again

    delivery.place(user, 1)
    with delivery.relay("orders"):
        delivery.wait_sent("orders")
    with delivery.process("inbox-consumer", "run", "payments") as consumer:
        wait_until(lambda: delivery.received("payments") == 11, timeout_s=40, what="the last event")
        wait_until(lambda: delivery.committed("payments") == 11, timeout_s=30, what="its offset")
        received = consumer.logged("consumer.received")
    # If the consumer had to delete its group on the embedded broker, all records are read again.
    assert sum(line["records"] for line in received) >= delivered_again + 1
    assert sum(line["new"] for line in received) == 11 - applied
    assert delivery.balance(user) == 89
    assert len(set(delivery.charges())) == len(delivery.charges()) == 11
    assert delivery.query("payments", "SELECT count(*) FROM outbox") == [(11,)]


def test_a_frozen_consumer_loses_its_transaction_and_the_next_one_continues(
    delivery: Delivery,
) -> None:
    """The next consumer waits for the inbox rows until the server ends the frozen transaction."""
    user = delivery.open_account(100)
    delivery.place(user, 1, count=10)
    with delivery.relay("orders"):
        delivery.wait_sent("orders")
    with delivery.process(
        "inbox-consumer", "run", "payments", FAILPOINTS="consumer.recorded=stop"
    ) as frozen:
        wait_until(lambda: frozen.stopped, timeout_s=40, what="the consumer to freeze")
        with delivery.process("inbox-consumer", "run", "payments") as other:
            wait_until(lambda: len(delivery.charges()) == 10, timeout_s=60, what="the charges")
            frozen.signal(signal.SIGCONT)
            # The server has ended the transaction of this consumer.
            frozen.wait_logged("consumer.database_down")
            other.signal(signal.SIGTERM)
            assert other.wait() == 0
        # The consumer that was frozen connects again and continues normally.
        delivery.place(user, 1)
        with delivery.relay("orders"):
            wait_until(lambda: len(delivery.charges()) == 11, timeout_s=60, what="the last charge")
        frozen.wait_logged("consumer.database_up")
    assert delivery.balance(user) == 89
    assert delivery.dead_letters("payments") == []


def test_a_database_killed_under_load_is_waited_for(
    own_postgres: PostgresServer, own_postgres_delivery: Delivery
) -> None:
    delivery = own_postgres_delivery
    user = delivery.open_account(1000)
    commands = [
        (program, "run", service)
        for program in ("outbox-relay", "inbox-consumer")
        for service in ("orders", "payments")
    ]
    with ExitStack() as running:
        processes = {
            command: running.enter_context(
                delivery.process(*command, RELAY_BATCH="5", CONSUMER_BATCH="5")
            )
            for command in commands
        }
        delivery.place(user, 1)
        wait_until(lambda: delivery.statuses() == {"success": 1}, timeout_s=40, what="one order")
        for _ in range(20):
            delivery.place(user, 1, count=10)
        wait_until(lambda: len(delivery.charges()) > 20, timeout_s=20, what="some charges")
        own_postgres.kill()
        relays = [processes["outbox-relay", "run", service] for service in ("orders", "payments")]
        for relay in relays:
            relay.wait_logged("relay.database_down")
        own_postgres.start()
        for relay in relays:
            relay.wait_logged("relay.database_up")
        wait_until(lambda: delivery.statuses() == {"success": 201}, timeout_s=60, what="all orders")
        for (program, _, _), process in processes.items():
            name = program.rpartition("-")[2]
            down, up = (process.logged(f"{name}.database_{state}") for state in ("down", "up"))
            # A process logs the outage once, or not at all: an idle consumer does not notice it.
            assert len(down) == len(up) <= 1
            process.signal(signal.SIGTERM)
        assert [process.wait() for process in processes.values()] == [0, 0, 0, 0]
    assert delivery.balance(user) == 799
    assert len(delivery.charges()) == 201
    assert delivery.dead_letters("payments") == delivery.dead_letters("orders") == []
