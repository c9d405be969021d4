"""The service that publishes a topic creates it. The services that consume it wait for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from threading import Barrier
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from settle_outbox.kafka.clients import make_admin, make_consumer
from settle_outbox.kafka.topics import close_quietly, count_partitions, ensure_topics, find_topics
from settle_outbox.service import Subscription, load_service
from support.broker import KAFKA, chosen_broker
from support.delivery import ORDERS, PARTITIONS, PAYMENTS, Delivery, order_created
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    from kafka import KafkaAdminClient, KafkaConsumer

CALLERS, ROUNDS = 4, 10
DAY_MS = 24 * 60 * 60 * 1000
needs_kafka = pytest.mark.skipif(
    chosen_broker().kind != KAFKA, reason="the embedded broker does not show a topic's settings"
)


@pytest.fixture
def admin(delivery: Delivery) -> Iterator[KafkaAdminClient]:
    client = make_admin(delivery.settings("orders"), "test")
    yield client
    close_quietly(client)


def test_concurrent_callers_of_ensure_topics_get_the_same_topic_id(delivery: Delivery) -> None:
    """A relay that got another id would later take the topic for one that was replaced."""
    settings = delivery.settings("orders")
    all_ready = Barrier(CALLERS)
    with ThreadPoolExecutor(CALLERS) as pool, ExitStack() as stack:
        admins = [make_admin(settings, "test") for _ in range(CALLERS)]
        for admin in admins:
            stack.callback(close_quietly, admin)

        def ensure(admin: KafkaAdminClient, topic: str) -> dict[str, UUID | None]:
            all_ready.wait(30)
            return ensure_topics(admin, [topic], settings)

        for number in range(ROUNDS):
            topic = f"ensured-{number}"
            results = list(pool.map(ensure, admins, [topic] * CALLERS))
            now = ensure_topics(admins[0], [topic], settings)
            assert now.keys() == {topic}
            assert results == [now] * CALLERS


def test_a_service_creates_only_the_topics_it_publishes(
    delivery: Delivery, admin: KafkaAdminClient
) -> None:
    done = delivery.run("outbox-relay", "topics", "orders", TOPIC_PARTITIONS="3")
    with delivery.relay("orders", topic_partitions=5):
        delivery.add("a", 1)
        delivery.wait_sent("orders")

    assert done.stdout == f"Topics of orders: {ORDERS}\n"
    assert count_partitions(admin, [ORDERS, PAYMENTS]) == {ORDERS: 3}


def test_a_consumer_waits_for_its_topic_and_then_reads_it(
    delivery: Delivery, admin: KafkaAdminClient, tmp_path: Path
) -> None:
    health = {"HEALTH_DIR": str(tmp_path), "TOPIC_PARTITIONS": "9"}
    with delivery.process("inbox-consumer", "run", "payments", **health) as consumer:
        consumer.wait_logged("consumer.topics_missing")
        wait_until(
            lambda: (
                "waiting"
                in delivery.run("inbox-consumer", "healthcheck", "payments", **health).stdout
            ),
            what="the consumer to report that it waits",
        )
        health_output = delivery.run("inbox-consumer", "healthcheck", "payments", **health).stdout
        assert find_topics(admin, [ORDERS]) == {}

        delivery.produce(ORDERS, order_created(uuid4(), 1))

        wait_until(lambda: delivery.received("payments") == 1, timeout_s=30, what="the record")
        assert "topic orders.events does not exist yet" in health_output
        assert len(consumer.logged("consumer.topics_missing")) == 1
        for event in ("consumer.broker_down", "consumer.loop_down", "consumer.topic_lost"):
            assert not consumer.logged(event)
    assert count_partitions(admin, [ORDERS]) == {ORDERS: PARTITIONS}


def test_a_consumer_reads_existing_topics_and_new_ones_later(
    delivery: Delivery,
) -> None:
    payments = load_service("payments")
    (subscription,) = payments.subscriptions
    other = Subscription("other.events", "order.created", subscription.schema, subscription.handle)
    service = replace(payments, subscriptions=(subscription, other))
    delivery.produce(ORDERS, order_created(uuid4(), 1))

    with delivery.consumer(service):
        wait_until(
            lambda: delivery.received("payments") == 1, timeout_s=30, what="the event of one topic"
        )
        delivery.produce("other.events", order_created(uuid4(), 1))
        wait_until(
            lambda: delivery.received("payments") == 2,
            timeout_s=30,
            what="the event of the other topic",
        )


@needs_kafka
def test_a_join_outlasts_the_poll_that_began_it(delivery: Delivery) -> None:
    """The first member of a group learns of the partitions after it joined, so it joins again."""
    delivery.produce(ORDERS, order_created(uuid4(), 1))
    for poll_ms in range(5, 15):
        consumer = make_consumer(delivery.settings("payments"), f"group-{poll_ms}")

        def has_all(consumer: KafkaConsumer = consumer, poll_ms: int = poll_ms) -> bool:
            consumer.poll(timeout_ms=poll_ms)
            return len(consumer.assignment()) == PARTITIONS

        with closing(consumer):
            consumer.subscribe([ORDERS])
            wait_until(has_all, timeout_s=10, what="all partitions")


@needs_kafka
def test_a_replication_of_minus_1_takes_the_default_of_the_broker(
    delivery: Delivery, admin: KafkaAdminClient
) -> None:
    """The broker's default is 1. A replication of 2 is refused, because there is one node."""
    done = delivery.run("outbox-relay", "topics", "orders", TOPIC_REPLICATION="-1")
    refused = delivery.run("outbox-relay", "topics", "payments", TOPIC_REPLICATION="2")

    assert done.stdout == f"Topics of orders: {ORDERS}\n"
    assert count_partitions(admin, [ORDERS, PAYMENTS]) == {ORDERS: PARTITIONS}
    assert "replication" in refused.stderr.lower()


@needs_kafka
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"retention.ms": str(7 * DAY_MS)}, None),
        ({"retention.ms": str(23 * DAY_MS - 1)}, None),
        ({"retention.ms": str(23 * DAY_MS)}, "INBOX_RETENTION_S - REPLAY_WINDOW_S"),
        ({"retention.ms": "-1"}, "events are kept forever"),
        ({"cleanup.policy": "compact"}, "cleanup.policy contains compact"),
        ({"cleanup.policy": "compact,delete"}, "cleanup.policy contains compact"),
    ],
)
def test_a_consumer_warns_of_a_topic_that_keeps_events_longer_than_its_inbox(
    delivery: Delivery, admin: KafkaAdminClient, setting: dict[str, str], expected: str | None
) -> None:
    """The inbox keeps 30 days, and a replay reaches back 7 days, so 23 days are too long."""
    ensure_topics(admin, [ORDERS], delivery.settings("orders"))
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, ORDERS, configs=setting)])

    with delivery.process("inbox-consumer", "run", "payments") as consumer:
        delivery.produce(ORDERS, order_created(uuid4(), 1))
        wait_until(lambda: delivery.received("payments") == 1, timeout_s=30, what="the record")
        warned = consumer.logged("consumer.retention_too_long")

    assert [each["topic"] for each in warned] == ([ORDERS] if expected else [])
    assert all(expected in each["reason"] for each in warned if expected)
