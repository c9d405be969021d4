"""Relays that die, or freeze, at exact places: nothing is lost, and each key's order is kept."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from support.delivery import ORDERS, Delivery, first_appearances, header
from support.waiting import wait_until

KEYS = 3
COUNT = 60
LEASE_S = 10


def add_events(delivery: Delivery, start: int, count: int) -> None:
    for n in range(start, start + count):
        delivery.add(f"key{n % KEYS}", n)


def check(delivery: Delivery, count: int) -> Counter[str]:
    """All are there, in order; returns how often each came."""
    records = delivery.records(ORDERS)
    assert first_appearances(records) == {
        f"key{key}": list(range(key, count, KEYS)) for key in range(KEYS)
    }
    return Counter(header(record, "ce_id") for record in records)


@pytest.mark.parametrize(
    ("failpoint", "sent_twice"),
    [("relay.locked", 0), ("relay.sent", 20), ("relay.marked", 0)],
)
def test_a_relay_killed_anywhere_leaves_it_to_the_next(
    delivery: Delivery, failpoint: str, sent_twice: int
) -> None:
    # One shard's worth a batch: the second batch is where it dies.
    add_events(delivery, 0, COUNT)
    before = delivery.pending("orders")
    with delivery.process(
        "outbox-relay", "run", "orders", FAILPOINTS=f"{failpoint}=kill@1", RELAY_BATCH="20"
    ) as relay:
        assert relay.wait() == -signal.SIGKILL
    # Only where the marking was committed is there less to do.
    assert (delivery.pending("orders") < before) is (failpoint == "relay.marked")
    with delivery.process("outbox-relay", "run", "orders") as relay:
        delivery.wait_sent("orders", timeout_s=30)
    times = check(delivery, COUNT)
    twice = sum(1 for count in times.values() if count == 2)
    assert (twice > 0) is (sent_twice > 0)
    assert twice <= 20


@pytest.mark.parametrize("failpoint", ["relay.locked", "relay.sent"])
def test_a_relay_frozen_past_its_lease_loses_it_and_recovers(
    delivery: Delivery, failpoint: str
) -> None:
    with delivery.process(
        "outbox-relay", "run", "orders", FAILPOINTS=f"{failpoint}=stop@2"
    ) as frozen:
        # One event goes well, so that it is connected: frozen with a request of its own under way,
        # it would find that overdue when it wakes, and its producer stopped before it can send.
        add_events(delivery, 0, 1)
        frozen.wait_logged("relay.sent")
        add_events(delivery, 1, COUNT - 1)
        wait_until(lambda: frozen.stopped, what="the relay to freeze")
        with delivery.process("outbox-relay", "run", "orders") as other:
            add_events(delivery, COUNT, COUNT)
            delivery.wait_sent("orders", timeout_s=LEASE_S + 15)
            sent_while_frozen = check(delivery, 2 * COUNT)

            frozen.signal(signal.SIGCONT)
            # It finds its transaction gone, and goes on as a relay like any other.
            frozen.wait_logged("relay.database_down")
            frozen.wait_logged("relay.database_up")
            other.signal(signal.SIGTERM)
            assert other.wait() == 0
        add_events(delivery, 2 * COUNT, COUNT)
        delivery.wait_sent("orders")
        assert len(frozen.logged("relay.sent")) > 1
        times = check(delivery, 3 * COUNT)
    # What it held when it froze was sent by both: before it froze, or after it woke.
    twice = {event_id for event_id, count in times.items() if count == 2}
    assert twice
    assert twice <= set(sent_while_frozen)
    assert (sent_while_frozen.total() > len(sent_while_frozen)) is (failpoint == "relay.sent")
