"""A topic that was deleted and created again is read from its start."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaConnectionError

from settle_outbox.consume import consumed_topics
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.offsets import find_stale
from settle_outbox.kafka.topics import close_quietly, ensure_topics, find_topics
from support.broker import KAFKA, EmbeddedBroker, KafkaBroker, chosen_broker
from support.delivery import ORDERS, PARTITIONS, Delivery, Record, order_created, read_health
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    from support.broker import Broker

CONSUMER = "inbox-consumer-payments"
BROKERS = {"embedded": EmbeddedBroker, "kafka": KafkaBroker}
needs_kafka = pytest.mark.skipif(
    chosen_broker().kind != KAFKA,
    reason="the embedded broker does not store the metadata of a commit",
)


@pytest.fixture(params=sorted({"embedded", chosen_broker().kind}))
def each_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with BROKERS[request.param]() as broker:
        yield broker


def spread_orders(count: int) -> list[Record]:
    """Return events of new orders, spread evenly over the partitions."""
    return [
        Record(order.value, order.headers, order.key, partition=number % PARTITIONS)
        for number in range(count)
        for order in [order_created(uuid4(), 1)]
    ]


def topic_id(delivery: Delivery) -> UUID | None:
    admin = make_admin(delivery.settings("orders"), "test")
    try:
        return find_topics(admin, [ORDERS]).get(ORDERS)
    finally:
        close_quietly(admin)


def recreate_topic(delivery: Delivery) -> None:
    settings = delivery.settings("orders")
    admin = make_admin(settings, "test")
    try:
        before = find_topics(admin, [ORDERS])
        admin.delete_topics([ORDERS])
        wait_until(lambda: not find_topics(admin, [ORDERS]), what="the topic to be gone")
        assert ensure_topics(admin, [ORDERS], settings) != before
    finally:
        close_quietly(admin)


def wait_received(delivery: Delivery, count: int) -> None:
    wait_until(
        lambda: delivery.received("payments") == count,
        timeout_s=60,
        what=f"{count} records to be received",
    )


def test_running_members_read_the_new_topic_from_its_start(
    each_broker: Broker, payments_url: str, orders_url: str, tmp_path: Path
) -> None:
    """The members are frozen while the topic is replaced.

    The new topic has more records than the old one, so their positions exist in it, too.
    """
    delivery = Delivery(payments_url, orders_url, each_broker.bootstrap)
    delivery.produce(ORDERS, *spread_orders(120))
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    with (
        delivery.process("inbox-consumer", "run", "payments", HEALTH_DIR=str(folders[0])) as one,
        delivery.process("inbox-consumer", "run", "payments", HEALTH_DIR=str(folders[1])) as other,
    ):
        members = (one, other)
        # A consumer that joins after the topic is replaced does not know the old one.
        wait_until(
            lambda: all('"ready"' in read_health(folder, CONSUMER) for folder in folders),
            timeout_s=60,
            what="both consumers to join",
        )
        wait_received(delivery, 120)
        for member in members:
            member.signal(signal.SIGSTOP)
        wait_until(
            lambda: all(member.stopped for member in members), what="both consumers to freeze"
        )

        recreate_topic(delivery)
        delivery.produce(ORDERS, *spread_orders(180))
        for member in members:
            member.signal(signal.SIGCONT)

        wait_received(delivery, 300)
        for member in members:
            member.wait_logged("consumer.topic_lost")
            assert member.running
            assert not member.logged("consumer.loop_down")


@needs_kafka
def test_a_consumer_that_was_away_reads_the_new_topic_from_its_start(delivery: Delivery) -> None:
    delivery.produce(ORDERS, *spread_orders(120))
    with delivery.consumer("payments"):
        wait_until(lambda: delivery.committed("payments") == 120, what="the offsets")

    recreate_topic(delivery)
    delivery.produce(ORDERS, *spread_orders(180))

    with delivery.consumer("payments"):
        wait_received(delivery, 300)


@needs_kafka
def test_offsets_of_the_old_topic_are_not_used_when_a_frozen_consumer_commits_them(
    delivery: Delivery,
) -> None:
    """Such a consumer was frozen while the topic was replaced. Here, `commit` stands for it."""
    delivery.produce(ORDERS, *spread_orders(6))
    with delivery.consumer("payments"):
        wait_until(lambda: delivery.committed("payments") == 6, what="the offsets")
    old_id = topic_id(delivery)
    recreate_topic(delivery)
    delivery.produce(ORDERS, *spread_orders(60))

    commit(delivery, offset=9, metadata=str(old_id))

    with delivery.consumer("payments"):
        wait_received(delivery, 66)


@needs_kafka
def test_offsets_of_an_earlier_release_count_as_right(delivery: Delivery) -> None:
    """An earlier release stored no topic id with an offset."""
    delivery.produce(ORDERS, *spread_orders(60))

    commit(delivery, offset=9, metadata="")

    # Each of the 6 partitions has 10 records, and the consumer reads the last one.
    with delivery.consumer("payments"):
        wait_received(delivery, 6)


def commit(delivery: Delivery, *, offset: int, metadata: str) -> None:
    """Commit an offset for every partition, as a member of the group would."""
    client = KafkaConsumer(
        bootstrap_servers=delivery.bootstrap, group_id="payments", enable_auto_commit=False
    )
    partitions = [TopicPartition(ORDERS, number) for number in range(PARTITIONS)]
    client.assign(partitions)
    client.commit({each: OffsetAndMetadata(offset, metadata, -1) for each in partitions})
    client.close()


@needs_kafka
def test_offsets_that_cannot_be_checked_are_not_used(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [KafkaConnectionError("no answer"), ValueError("unforeseen")]

    def fail_twice(*arguments: object) -> list[TopicPartition]:
        if failures:
            raise failures.pop()
        return find_stale(*arguments)  # type: ignore[arg-type]

    delivery.produce(ORDERS, *spread_orders(120))
    with delivery.consumer("payments"):
        wait_until(lambda: delivery.committed("payments") == 120, what="the offsets")
    recreate_topic(delivery)
    delivery.produce(ORDERS, *spread_orders(180))
    monkeypatch.setattr(consumed_topics, "find_stale", fail_twice)

    with delivery.consumer("payments"):
        wait_received(delivery, 300)

    assert not failures
