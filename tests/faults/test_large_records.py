"""Records and batches that would take too much memory become dead letters. Others are applied."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType

from settle_outbox.kafka.clients import make_admin
from support.broker import KAFKA, chosen_broker
from support.delivery import ORDERS, Delivery, headers, order_created
from support.peak_memory import PEAK_MAX_MB, PRINT_STATUS, peak_in, peak_mb
from support.waiting import wait_until

if TYPE_CHECKING:
    from uuid import UUID

pytestmark = [
    pytest.mark.skipif(
        chosen_broker().kind != KAFKA, reason="the embedded broker decompresses each batch"
    ),
    pytest.mark.timeout(240),
]

PRICE = 5


def measure_peak(delivery: Delivery, module: str, *arguments: str) -> float:
    """Run a command line to its end, and return its peak memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", f"{PRINT_STATUS}\nfrom {module} import main\nmain()", *arguments],
        env={**os.environ, **delivery.environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ORDERS in done.stdout, done.stderr
    return peak_in(done.stderr)


class Sender:
    """Another program. It writes records to partition 0 of the topic of orders."""

    def __init__(self, delivery: Delivery, user: UUID) -> None:
        self._delivery, self._user = delivery, user
        self.good = 0

    def send_good(self) -> None:
        """Write an order that can be applied."""
        self._delivery.produce(ORDERS, replace(order_created(self._user, PRICE), partition=0))
        self.good += 1

    def send_batch(self, *values: bytes, codec: str | None = None) -> None:
        """Write one batch with a record for each value."""
        producer = KafkaProducer(
            bootstrap_servers=self._delivery.bootstrap,
            compression_type=codec,
            batch_size=1 << 28,
            max_request_size=1 << 28,
            linger_ms=10_000,
        )
        sent = [
            producer.send(
                ORDERS,
                value=value,
                key=b"key",
                headers=headers("order.created"),
                partition=0,
            )
            for value in values
        ]
        producer.flush()
        producer.close()
        assert all(future.succeeded() for future in sent)


@pytest.fixture
def sender(delivery: Delivery) -> Sender:
    return Sender(delivery, delivery.open_account(1000))


def test_a_batch_that_expands_to_more_than_the_memory_is_a_dead_letter(
    delivery: Delivery, sender: Sender
) -> None:
    order = order_created(delivery.open_account(1000), PRICE).value
    assert order is not None
    sender.send_good()
    sender.send_batch(b"x" * 100_000_000, codec="zstd")
    sender.send_good()
    sender.send_batch(order, b"x" * 60_000_000, codec="gzip")
    for _ in range(2):
        sender.send_batch(*[b"x" * 1_000_000] * 30, codec="zstd")
    objects = b'{"x":[' + b",".join([b'{"":0}'] * 140_000) + b"]}"
    sender.send_batch(*[objects] * 5, codec="zstd")
    sender.send_good()

    with delivery.process("inbox-consumer", "run", "payments") as consumer:
        wait_until(
            lambda: len(delivery.charges()) == sender.good + 1,
            timeout_s=90,
            what="the good orders",
        )
        peak = peak_mb(consumer.pid)

    delivery.query(
        "payments",
        "INSERT INTO dead_letters"
        ' (fingerprint, topic, partition, "offset", headers, reason, detail)'
        " SELECT convert_to(n::text, 'UTF8'), 'orders.events', 1, n,"
        " json_build_array(json_build_array('x', repeat('x', 1000000))), 'not_json', 'no JSON'"
        " FROM generate_series(1, 60) AS n",
    )
    audited = measure_peak(delivery, "settle.entry", "audit")
    letters = delivery.query(
        "payments",
        'SELECT reason, "offset", detail, octet_length(value) AS size FROM dead_letters'
        ' WHERE partition = 0 ORDER BY "offset"',
    )
    assert max(peak, audited) < PEAK_MAX_MB
    assert {(each.reason, each.size) for each in letters} == {
        ("too_large", None),
        ("not_json", 1_000_000),
        ("invalid_data", len(objects)),
    }
    bomb, record = [each for each in letters if each.reason == "too_large"][:2]
    assert (bomb.offset, record.offset) == (1, 4)
    assert "SHA-256" in bomb.detail
    assert "SHA-256" in record.detail


def raise_limit(delivery: Delivery, limit: int) -> None:
    """Set the largest batch, in bytes, that the topic of orders accepts."""
    delivery.produce(ORDERS)  # without records: only creates the topic
    admin = make_admin(delivery.settings("orders"), "test")
    admin.alter_configs(
        [ConfigResource(ConfigResourceType.TOPIC, ORDERS, {"max.message.bytes": str(limit)})]
    )
    admin.close()


def test_a_batch_too_large_to_be_received_is_a_dead_letter(
    delivery: Delivery, sender: Sender
) -> None:
    raise_limit(delivery, 100_000_000)
    sender.send_good()
    sender.send_batch(b"x" * 80_000_000)
    sender.send_good()
    sender.send_batch(b"x" * 3_000_000)
    sender.send_batch(*[b"x" * 900_000] * 4)
    sender.send_good()

    with delivery.process("inbox-consumer", "run", "payments") as consumer:
        wait_until(
            lambda: len(delivery.charges()) == sender.good, timeout_s=90, what="the good orders"
        )
        peak = peak_mb(consumer.pid)
        down = consumer.logged("consumer.broker_down")

    letters = delivery.dead_letters("payments")
    assert peak < PEAK_MAX_MB
    assert down == []
    assert [(each.reason, each.offset) for each in letters] == [
        ("too_large", 1),
        ("too_large", 3),
        *(("not_json", offset) for offset in range(4, 8)),
    ]
    assert [each.value for each in letters[:2]] == [None, None]
    assert "more than 4194304 bytes" in letters[0].detail
    assert "SHA-256" in letters[0].detail
