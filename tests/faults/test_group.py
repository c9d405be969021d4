"""A consumer that ends while it joins must not keep the others out of the group for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.outbox import consumer
from shared.outbox.clients import make_consumer
from support.delivery import Record
from support.waiting import wait_until

if TYPE_CHECKING:
    import pytest

    from support.delivery import Delivery


def test_a_consumer_that_ends_while_joining_does_not_block_its_group(
    embedded_delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded broker waits for such a member without end, whoever comes after it."""
    delivery = embedded_delivery
    monkeypatch.setattr(consumer, "JOIN_STUCK_S", 5.0)
    delivery.produce("orders.events", Record(b"{}", headers=[]))
    joining = make_consumer(delivery.settings("payments"), "payments")
    joining.subscribe(["orders.events"])
    joining.poll(timeout_ms=700)
    assert not joining.assignment()
    joining.close(autocommit=False, timeout_ms=2000)

    def taken() -> bool:
        return delivery.query("payments", "SELECT count(*) FROM dead_letters")[0][0] == 1

    with delivery.consumer("payments"):
        wait_until(taken, timeout_s=30, what="the record to be taken by the next consumer")
