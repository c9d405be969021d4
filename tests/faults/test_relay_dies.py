"""A relay that dies or freezes at a given place loses nothing and keeps each key's order."""

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


def check_records(delivery: Delivery, count: int) -> Counter[str]:
    """Check that all events are in the topic, in order.

    Returns:
        By event id, how many times the event is in the topic.
    """
    records = delivery.records(ORDERS)
    assert first_appearances(records) == {
        f"key{key}": list(range(key, count, KEYS)) for key in range(KEYS)
    }
    return Counter(header(record, "ce_id") for record in records)


@pytest.mark.parametrize(
    ("failpoint", "sends_twice"),
    [("relay.locked", False), ("relay.sent", True), ("relay.marked", False)],
)
def test_a_relay_killed_anywhere_loses_nothing(
    delivery: Delivery, failpoint: str, *, sends_twice: bool
) -> None:
    # The relay dies in its first batch, which has at most RELAY_BATCH events.
    add_events(delivery, 0, COUNT)
    before = delivery.pending("orders")
    with delivery.process(
        "outbox-relay", "run", "orders", FAILPOINTS=f"{failpoint}=kill@1", RELAY_BATCH="20"
    ) as relay:
        assert relay.wait() == -signal.SIGKILL
    # Fewer events are pending only if the relay died after its commit, which marks them as sent.
    assert (delivery.pending("orders") < before) is (failpoint == "relay.marked")
    with delivery.process("outbox-relay", "run", "orders") as relay:
        delivery.wait_sent("orders", timeout_s=30)
    times = check_records(delivery, COUNT)
    twice = sum(1 for count in times.values() if count == 2)
    assert (twice > 0) is sends_twice
    assert twice <= 20


@pytest.mark.parametrize("failpoint", ["relay.locked", "relay.sent"])
def test_a_relay_frozen_past_its_lease_loses_it_and_recovers(
    delivery: Delivery, failpoint: str
) -> None:
    with delivery.process(
        "outbox-relay", "run", "orders", FAILPOINTS=f"{failpoint}=stop@2"
    ) as frozen:
        # First, the relay sends one event, so that it is connected when it freezes. If it froze
        # during its first requests, they would be overdue when it continues, and its producer
        # would stop.
        add_events(delivery, 0, 1)
        frozen.wait_logged("relay.sent")
        add_events(delivery, 1, COUNT - 1)
        wait_until(lambda: frozen.stopped, what="the relay to freeze")
        with delivery.process("outbox-relay", "run", "orders") as other:
            add_events(delivery, COUNT, COUNT)
            delivery.wait_sent("orders", timeout_s=LEASE_S + 15)
            sent_while_frozen = check_records(delivery, 2 * COUNT)

            frozen.signal(signal.SIGCONT)
            # The server has ended this relay's transaction. The relay connects again and continues.
            frozen.wait_logged("relay.database_down")
            frozen.wait_logged("relay.database_up")
            other.signal(signal.SIGTERM)
            assert other.wait() == 0
        add_events(delivery, 2 * COUNT, COUNT)
        delivery.wait_sent("orders")
        assert len(frozen.logged("relay.sent")) > 1
        times = check_records(delivery, 3 * COUNT)
    # Both relays sent the events that the frozen relay held.
    twice = {event_id for event_id, count in times.items() if count == 2}
    assert twice
    assert twice <= set(sent_while_frozen)
    assert (sent_while_frozen.total() > len(sent_while_frozen)) is (failpoint == "relay.sent")
