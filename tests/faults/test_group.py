"""A consumer joins its group even if a member ends while it joins, or an answer is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from kafka.protocol.consumer import JoinGroupRequest
from structlog.testing import capture_logs

from settle_outbox.consume import consumer
from settle_outbox.kafka.clients import make_consumer
from support.broker import KAFKA, chosen_broker
from support.delivery import ORDERS, Record, order_created
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.delivery import Delivery
    from support.kafka_proxy import Proxied


def test_a_consumer_that_ends_while_joining_does_not_block_its_group(
    embedded_delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded broker waits for such a member forever, which blocks all later members.

    So the next consumer deletes the group.
    """
    delivery = embedded_delivery
    monkeypatch.setattr(consumer, "EMBEDDED_JOIN_TIMEOUT_S", 5.0)
    delivery.produce("orders.events", Record(b"{}", headers=[]))
    joining = make_consumer(delivery.settings("payments"), "payments")
    joining.subscribe(["orders.events"])
    joining.poll(timeout_ms=700)
    assert not joining.assignment()
    joining.close(autocommit=False, timeout_ms=2000)

    def is_dead_letter() -> bool:
        return delivery.query("payments", "SELECT count(*) FROM dead_letters")[0][0] == 1

    with delivery.consumer("payments"):
        wait_until(
            is_dead_letter,
            timeout_s=30,
            what="the next consumer to read the record",
        )


@pytest.mark.skipif(
    chosen_broker().kind != KAFKA, reason="a consumer deletes the group on the embedded broker"
)
# A join takes two answers of the broker. The ids name the answer that is lost.
@pytest.mark.parametrize("answers_before", [0, 1], ids=["the member id", "the assignment"])
def test_a_lost_answer_to_a_join_ends_in_another_join_and_keeps_the_offsets(
    proxied: Proxied,
    proxied_delivery: Delivery,
    monkeypatch: pytest.MonkeyPatch,
    answers_before: int,
) -> None:
    delivery = proxied_delivery
    # This must have no effect on Apache Kafka, where JOIN_TIMEOUT_S counts.
    monkeypatch.setattr(consumer, "EMBEDDED_JOIN_TIMEOUT_S", 0.5)
    monkeypatch.setattr(consumer, "JOIN_TIMEOUT_S", 8.0)
    with proxied.failing(lambda _: None) as proxy:
        delivery.produce(ORDERS, *[order_created(uuid4(), 1) for _ in range(20)])
        with delivery.consumer("payments"):
            wait_until(lambda: delivery.committed("payments") == 20, what="the offsets")
        delivery.produce(ORDERS, order_created(uuid4(), 1))

        proxy.lose_answer(JoinGroupRequest.API_KEY, after=answers_before)
        with delivery.consumer("payments"), capture_logs() as logs:
            wait_until(
                lambda: delivery.received("payments") == 21, timeout_s=40, what="the new record"
            )
            wait_until(lambda: delivery.committed("payments") == 21, what="its offset")
        assert proxy.has_lost(JoinGroupRequest.API_KEY)

    assert [each["event"] for each in logs].count("consumer.join_stuck") == 1
    read = sum(each["records"] for each in logs if each["event"] == "consumer.received")
    assert read == 1, "records were read again: the offsets were lost"
