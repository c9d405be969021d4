"""When some produce requests fail and others succeed, events of a key still arrive in order.

Events may be repeated; the order of their first appearances counts. The fence of
`settle_outbox.publish.sender` ensures this order: after the first failed batch, or the end of a
connection, the producer takes no further batch. The relay sends the rest by a new producer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kafka import KafkaProducer

from settle_outbox.publish import sender
from support.delivery import ORDERS, Delivery
from support.kafka_proxy import CUT_AFTER, CUT_BEFORE, OUT_OF_ORDER, UNKNOWN_ERROR
from support.writers import Writers

if TYPE_CHECKING:
    from settle_outbox.settings import Settings
    from support.kafka_proxy import Proxied

# Each case has the numbers of the produce requests that fail, and how they fail. The first request
# has the number 1. The proxy answers such a request with an error, or cuts the connection before or
# after the broker has the request.
FAILURES = {
    "one error": {3: UNKNOWN_ERROR},
    "some errors": dict.fromkeys((2, 5, 9, 10, 16, 25, 26, 27), UNKNOWN_ERROR),
    "one out-of-order error": {3: OUT_OF_ORDER},
    "some out-of-order errors": dict.fromkeys((2, 5, 9, 16, 25), OUT_OF_ORDER),
    "cut before the request": dict.fromkeys((3, 12), CUT_BEFORE),
    "cut after the request": dict.fromkeys((3, 12), CUT_AFTER),
    "mixed": {3: CUT_AFTER, 8: UNKNOWN_ERROR, 14: CUT_BEFORE, 20: OUT_OF_ORDER},
}


@pytest.mark.parametrize("failures", FAILURES)
def test_failed_requests_leave_neither_gap_nor_disorder(
    proxied_delivery: Delivery, proxied: Proxied, failures: str
) -> None:
    """After an out-of-order error, kafka-python's producer would take a new epoch and continue.

    The fence must stop the producer before it sends the next batches.
    """
    relay_through_failures(proxied_delivery, proxied, FAILURES[failures])


@pytest.mark.parametrize("failures", ["one error", "some errors"])
def test_the_fence_stops_a_producer_that_would_continue_after_a_failure(
    proxied_delivery: Delivery, proxied: Proxied, failures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `UNKNOWN_ERROR`, an idempotent producer sends nothing more, even without the fence.

    The producer of this test is not idempotent, so only the fence stops it.
    """
    monkeypatch.setattr(sender, "make_producer", make_producer_that_would_continue)
    relay_through_failures(proxied_delivery, proxied, FAILURES[failures])


def make_producer_that_would_continue(settings: Settings, client_id: str) -> KafkaProducer:
    return KafkaProducer(
        bootstrap_servers=list(settings.kafka_bootstrap_servers),
        client_id=client_id,
        acks="all",
        enable_idempotence=False,
        # The fence cannot take back a batch that is in flight when an earlier one of its partition
        # fails. So a partition may have one batch in flight at most. With idempotence, kafka-python
        # ensures this. Without it, this option must be 1.
        max_in_flight_requests_per_connection=1,
        linger_ms=5,
        batch_size=128 * 1024,
    )


def relay_through_failures(delivery: Delivery, proxied: Proxied, fails: dict[int, str]) -> None:
    # A partition gets several batches, so a later one could arrive although an earlier one failed.
    writers = Writers(delivery.orders_url, keys=4, threads=1, each=300, padding=20_000)
    writers.run()
    with proxied.failing(fails.get) as proxy:
        with delivery.relay("orders"):
            delivery.wait_sent("orders", timeout_s=60)
        assert proxy.failed, "no request failed"
        records = delivery.records(ORDERS)
    writers.check(records)
