"""A batch that cannot be read stops only its partition, or becomes a dead letter."""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import kafka.codec
import pytest
from kafka import KafkaProducer

from settle.audit.run import audit
from support.broker import KAFKA, KafkaBroker, chosen_broker
from support.delivery import ORDERS, PARTITIONS, Delivery, order_created, read_health
from support.doctor import Doctor
from support.ports import free_port
from support.segments import (
    ATTRIBUTES_AT,
    CODECS,
    COUNT_AT,
    LENGTH_AT,
    MAGIC_AT,
    RECORDS_AT,
    flip,
    put,
    rewrite,
    with_checksum,
)
from support.tcp_proxy import Wire, kafka_client
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from uuid import UUID

pytestmark = [
    pytest.mark.skipif(chosen_broker().kind != KAFKA, reason="the embedded broker keeps no files"),
    pytest.mark.timeout(240),
]

PRICE = 5


def claim_codec(codec: str) -> Callable[[bytes], bytes]:
    """Return a function that marks an uncompressed batch as compressed."""
    return lambda batch: with_checksum(put(batch, ATTRIBUTES_AT, ">h", CODECS[codec]))


CORRUPT: dict[str, Callable[[bytes], bytes]] = {
    "checksum": lambda batch: flip(batch, RECORDS_AT + 20),
    "gzip": claim_codec("gzip"),
    "snappy": claim_codec("snappy"),
    "lz4": claim_codec("lz4"),
    "zstd": claim_codec("zstd"),
    "missing record": lambda batch: with_checksum(put(batch, COUNT_AT, ">i", 2)),
    "negative length": lambda batch: with_checksum(put(batch, RECORDS_AT, ">B", 0x7F)),
    "format": lambda batch: put(batch, MAGIC_AT, ">b", 9),
}


@pytest.fixture(scope="module")
def node() -> Iterator[KafkaBroker]:
    """Start a node of Apache Kafka that only these tests use, because they stop and start it."""
    with KafkaBroker() as broker:
        yield broker


@pytest.fixture
def delivery(payments_url: str, orders_url: str, node: KafkaBroker) -> Delivery:
    """Empty the node, and return a delivery with both databases and the node."""
    node.empty()
    return Delivery(payments_url, orders_url, node.bootstrap)


def put_orders(delivery: Delivery, user: UUID, *counts: int, partition: int) -> None:
    """Write batches of orders to a partition. `counts` are the numbers of orders in each batch."""
    for count in counts:
        delivery.produce(
            ORDERS,
            *(replace(order_created(user, PRICE), partition=partition) for _ in range(count)),
        )


def corrupt(node: KafkaBroker, change: Callable[[bytes], bytes], *, index: int) -> bytes:
    """Change a batch of partition 0 on the node's disk. `index` counts the batches from 0.

    Returns:
        The changed batch.
    """
    node.stop()
    changed = rewrite(node.folder, ORDERS, 0, index, change)
    node.start()
    return changed


@pytest.mark.parametrize("kind", CORRUPT)
def test_a_corrupt_batch_is_kept_whole_and_everything_else_is_applied(
    node: KafkaBroker, delivery: Delivery, kind: str
) -> None:
    user = delivery.open_account(1000)
    put_orders(delivery, user, 2, 1, 2, partition=0)
    put_orders(delivery, user, 3, partition=1)
    batch = corrupt(node, CORRUPT[kind], index=1)

    with delivery.process("inbox-consumer", "run", "payments") as consumer:
        wait_until(lambda: delivery.committed("payments") == 8, timeout_s=60, what="all to be read")
        held = consumer.logged("consumer.partition_held")
        down = consumer.logged("consumer.broker_down")

    assert len(delivery.charges()) == 7
    (letter,) = delivery.dead_letters("payments")
    assert (letter.reason, letter.topic, letter.partition, letter.offset) == (
        "unreadable_batch",
        ORDERS,
        0,
        2,
    )
    assert bytes(letter.value) == batch
    assert (letter.key, letter.headers) == (None, [])
    assert "offsets 2 to 2" in letter.detail
    assert [(line["partition"], line["offset"]) for line in held] == [(0, 2)]
    assert down == []


@pytest.mark.parametrize("failpoint", ["consumer.applied", "consumer.committed"])
def test_a_consumer_killed_at_a_corrupt_batch_keeps_it_once(
    node: KafkaBroker, delivery: Delivery, failpoint: str
) -> None:
    user = delivery.open_account(1000)
    put_orders(delivery, user, 3, 1, partition=0)
    corrupt(node, CORRUPT["checksum"], index=0)

    with delivery.process(
        "inbox-consumer", "run", "payments", FAILPOINTS=f"{failpoint}=kill"
    ) as consumer:
        assert consumer.wait(timeout_s=40) == -signal.SIGKILL
    kept = len(delivery.dead_letters("payments"))
    with delivery.process("inbox-consumer", "run", "payments"):
        wait_until(lambda: delivery.committed("payments") == 4, timeout_s=60, what="all to be read")

    assert kept == 1
    assert len(delivery.dead_letters("payments")) == 1
    assert len(delivery.charges()) == 1


def test_a_damaged_connection_is_replaced_and_nothing_is_given_up(
    payments_url: str, orders_url: str
) -> None:
    """The bytes on the broker are correct. Only the present connection damages them."""
    port = free_port()
    with KafkaBroker(port) as node, Wire(kafka_client, port, node.port) as wire:
        delivery = Delivery(payments_url, orders_url, f"127.0.0.1:{port}")
        user = delivery.open_account(1000)
        put_orders(delivery, user, 1, partition=0)
        with delivery.process("inbox-consumer", "run", "payments") as consumer:
            wait_until(lambda: len(delivery.charges()) == 1, timeout_s=60, what="the first order")
            wire.garble(b"order.created", b"order.garbled", "inbox-consumer-payments")
            put_orders(delivery, user, 2, partition=0)
            wait_until(lambda: len(delivery.charges()) == 3, timeout_s=60, what="all orders")
            held = consumer.logged("consumer.partition_held")

    assert delivery.dead_letters("payments") == []
    assert len(held) == 1


def put_compressed(delivery: Delivery, user: UUID, codec: str, partition: int) -> None:
    """Write an order to a partition, as another client that compresses its batches would."""
    delivery.produce(ORDERS)  # without records: only creates the topic
    producer = KafkaProducer(bootstrap_servers=delivery.bootstrap, compression_type=codec)
    record = order_created(user, PRICE)
    producer.send(
        ORDERS, value=record.value, key=record.key, headers=record.headers, partition=partition
    ).get(10)
    producer.close()


def test_every_codec_of_kafka_is_read(delivery: Delivery) -> None:
    user = delivery.open_account(1000)
    codecs = [codec for codec in CODECS if codec != "none"]
    for partition, codec in enumerate(codecs):
        put_compressed(delivery, user, codec, partition)

    with delivery.consumer("payments"):
        wait_until(lambda: len(delivery.charges()) == 4, timeout_s=40, what="all four charges")

    assert delivery.dead_letters("payments") == []


def test_a_missing_codec_stops_its_partition_until_it_is_installed(
    delivery: Delivery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = delivery.open_account(1000)
    put_compressed(delivery, user, "snappy", 0)
    put_orders(delivery, user, 1, partition=0)
    for partition in range(1, PARTITIONS):
        put_orders(delivery, user, 1, partition=partition)
    health = partial(read_health, tmp_path, "inbox-consumer-payments")

    with monkeypatch.context() as without_snappy:
        without_snappy.setattr(kafka.codec, "snappy", None)
        with delivery.consumer("payments", health_dir=str(tmp_path)):
            wait_until(
                lambda: len(delivery.charges()) == PARTITIONS - 1,
                timeout_s=60,
                what="the other partitions",
            )
            wait_until(
                lambda: (
                    '"waiting"' in health()
                    and f"{ORDERS}-0 at 0" in health()
                    and "snappy" in health()
                ),
                timeout_s=20,
                what="the health file to name the partition",
            )
            put_orders(delivery, user, 1, partition=1)
            wait_until(
                lambda: len(delivery.charges()) == PARTITIONS, timeout_s=20, what="one more charge"
            )
            without_snappy.undo()
            wait_until(
                lambda: len(delivery.charges()) == PARTITIONS + 2,
                timeout_s=30,
                what="the orders of the held partition",
            )
            wait_until(lambda: '"ready"' in health(), timeout_s=20)

    assert delivery.dead_letters("payments") == []


def test_a_log_that_the_broker_itself_cannot_read_stops_its_partition_alone(
    node: KafkaBroker, delivery: Delivery, tmp_path: Path
) -> None:
    """If a batch has a wrong length, the broker finds no batch behind it."""
    user = delivery.open_account(1000)
    put_orders(delivery, user, 1, 1, 1, partition=0)
    put_orders(delivery, user, 1, partition=1)
    # The file is changed while the node runs, because a node does not start on such a file.
    rewrite(node.folder, ORDERS, 0, 1, lambda batch: put(batch, LENGTH_AT, ">i", 5))
    health = partial(read_health, tmp_path, "inbox-consumer-payments")

    with delivery.process(
        "inbox-consumer", "run", "payments", HEALTH_DIR=str(tmp_path)
    ) as consumer:
        wait_until(lambda: len(delivery.charges()) == 2, timeout_s=60, what="the other partition")
        wait_until(lambda: f"{ORDERS}-0 at 1" in health(), timeout_s=20, what="the health file")
        put_orders(delivery, user, 1, partition=1)
        wait_until(lambda: len(delivery.charges()) == 3, timeout_s=20, what="one more charge")
        assert consumer.logged("consumer.broker_down") == []

    assert delivery.dead_letters("payments") == []


def test_audit_and_doctor_continue_after_unreadable_batches(
    node: KafkaBroker, delivery: Delivery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = delivery.open_account(1000)
    put_orders(delivery, user, 1, 1, partition=0)
    put_orders(delivery, user, 1, partition=1)
    put_compressed(delivery, user, "snappy", 1)
    put_orders(delivery, user, 1, partition=1)
    corrupt(node, CORRUPT["checksum"], index=0)
    monkeypatch.setattr(kafka.codec, "snappy", None)
    doctor = Doctor(tmp_path, {"payments": delivery.payments_url}, delivery.bootstrap)

    verdict, found = doctor.verdict("payments lag")
    report = audit(delivery.settings("payments"), delivery.settings("orders"), second_look_s=0)

    assert verdict == "fail"
    assert found.startswith("5 records")
    assert f"{ORDERS}-0 cannot be read at 0: CorruptRecordError" in found
    events = report.check(f"{ORDERS}: outbox, topic and inbox agree")
    assert report.clean, report
    assert events.notes["foreign in the topic"] == 3
    assert events.notes["batches that could not be read"] == 2
    named = " ".join(events.notes)
    assert "partition 0: The batch with offsets 0 to 0 cannot be read: CorruptRecordError" in named
    assert "partition 1: The batch with offsets 1 to 1 cannot be read: UnsupportedCodec" in named
