"""Partitions are added only when no event can overtake an earlier one of its key."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import close_quietly, count_partitions, ensure_topics
from settle_outbox.publish import partition_count
from settle_outbox.publish.lost_topics import Destination, record_change, record_topics
from settle_outbox.publish.partition_count import PartitionsError, add_partitions
from settle_outbox.publish.pending import lock_shards, read_pending
from settle_outbox.service import load_service
from support.broker import KAFKA, chosen_broker
from support.delivery import ORDERS, PARTITIONS, Delivery, order_created
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka import KafkaAdminClient

_HOUR = timedelta(hours=1)
needs_kafka = pytest.mark.skipif(
    chosen_broker().kind != KAFKA, reason="the embedded broker cannot add partitions"
)


@pytest.fixture
def admin(delivery: Delivery) -> Iterator[KafkaAdminClient]:
    """Return an admin client of a broker that has an empty topic of orders."""
    settings = delivery.settings("orders")
    client = make_admin(settings, "test")
    ensure_topics(client, [ORDERS], settings)
    yield client
    close_quietly(client)


def add_partitions_up_to(delivery: Delivery, admin: KafkaAdminClient, count: int) -> None:
    engine = create_engine(delivery.orders_url)
    try:
        add_partitions(engine, admin, load_service("orders"), count)
    finally:
        engine.dispose()


@needs_kafka
def test_events_keep_their_order_while_partitions_are_added(
    delivery: Delivery, admin: KafkaAdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the events are unread, and half are pending, until a consumer starts."""
    monkeypatch.setattr(partition_count, "READ_TIMEOUT_S", 60.0)
    users = [delivery.open_account(10**9) for _ in range(24)]
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(delivery.process("outbox-relay", "run", "orders"))
        for user in users:
            delivery.place(user, 1, count=20)
        delivery.wait_sent("orders", timeout_s=60)

        adding = running.enter_context(ThreadPoolExecutor(1)).submit(
            add_partitions_up_to, delivery, admin, 12
        )
        wait_until(lambda: not free_shards(delivery), what="all shards to be locked")
        for user in users:
            delivery.place(user, 1, count=20)
        assert not adding.done()
        running.enter_context(delivery.consumer("payments"))
        adding.result(90)

        delivery.wait_sent("orders", timeout_s=60)
        wait_until(
            lambda: delivery.received("payments") == 24 * 40,
            timeout_s=90,
            what="all events to be received",
        )

    assert count_partitions(admin, [ORDERS]) == {ORDERS: 12}
    assert order_ids_by_user(delivery, "payments") == order_ids_by_user(delivery, "orders")
    # The relays connected before the change. They have noticed it, and use the new partitions.
    assert delivery.query("payments", "SELECT max(partition) FROM inbox")[0][0] >= PARTITIONS


def free_shards(delivery: Delivery) -> list[int]:
    """Return the shards whose rows no transaction has locked."""
    return [
        row.shard
        for row in delivery.query(
            "orders", "SELECT shard FROM outbox_shards FOR UPDATE SKIP LOCKED"
        )
    ]


@needs_kafka
def test_the_command_says_what_it_did_and_which_setting_follows(
    delivery: Delivery, admin: KafkaAdminClient
) -> None:
    done = delivery.run("outbox-relay", "topics", "orders", "--partitions", "12")

    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            "Topics of orders: orders.events",
            "Each topic has 12 partitions. Set TOPIC_PARTITIONS=12.",
        ],
    ), done.stderr
    assert count_partitions(admin, [ORDERS]) == {ORDERS: 12}


def order_ids_by_user(delivery: Delivery, service: str) -> dict[str, list[str]]:
    """Return the ids of each user's orders, in the order of the service's events."""
    rows = delivery.query(
        service,
        "SELECT data ->> 'user_id' AS user_id, array_agg(data ->> 'order_id' ORDER BY seq) AS ids"
        " FROM (SELECT seq, convert_from(payload, 'UTF8')::json AS data FROM outbox) AS event"
        " GROUP BY 1",
    )
    return {row.user_id: row.ids for row in rows}


@needs_kafka
def test_unread_records_prevent_the_change(
    delivery: Delivery, admin: KafkaAdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_count, "READ_TIMEOUT_S", 0.0)
    delivery.produce(ORDERS, *[order_created(uuid4(), 1) for _ in range(7)])

    with pytest.raises(PartitionsError, match="group payments has not read 7 records of orders"):
        add_partitions_up_to(delivery, admin, 12)
    assert count_partitions(admin, [ORDERS]) == {ORDERS: PARTITIONS}

    with delivery.consumer("payments"):
        wait_until(lambda: delivery.committed("payments") == 7, timeout_s=30, what="the offsets")
        add_partitions_up_to(delivery, admin, 12)
    assert count_partitions(admin, [ORDERS]) == {ORDERS: 12}


@needs_kafka
# A consumer of settle_outbox commits an offset with the id of its topic as metadata.
@pytest.mark.parametrize("metadata", ["", str(uuid4())], ids=["no topic id", "another topic id"])
def test_an_unknown_group_counts_after_its_first_commit(
    delivery: Delivery,
    admin: KafkaAdminClient,
    monkeypatch: pytest.MonkeyPatch,
    metadata: str,
) -> None:
    monkeypatch.setattr(partition_count, "READ_TIMEOUT_S", 0.0)
    delivery.produce(ORDERS, *[order_created(uuid4(), 1) for _ in range(7)])
    with delivery.consumer("payments"):
        wait_until(lambda: delivery.committed("payments") == 7, timeout_s=30, what="the offsets")
    reader = KafkaConsumer(
        bootstrap_servers=delivery.bootstrap, group_id="report", enable_auto_commit=False
    )
    partitions = [TopicPartition(ORDERS, number) for number in range(PARTITIONS)]
    reader.assign(partitions)
    reader.commit({each: OffsetAndMetadata(0, metadata, -1) for each in partitions})
    reader.close()

    with pytest.raises(PartitionsError, match="The group report has not read 7 records"):
        add_partitions_up_to(delivery, admin, 12)


@needs_kafka
def test_fewer_partitions_are_refused_by_the_command(
    delivery: Delivery, admin: KafkaAdminClient
) -> None:
    done = delivery.run("outbox-relay", "topics", "orders", "--partitions", "5")

    assert done.returncode == 1
    assert "orders.events has 6 partitions, and Kafka cannot reduce them to 5" in done.stderr
    assert "Traceback" not in done.stderr
    assert count_partitions(admin, [ORDERS]) == {ORDERS: PARTITIONS}


@needs_kafka
def test_the_present_count_changes_nothing(delivery: Delivery, admin: KafkaAdminClient) -> None:
    """Unread records matter only if the count changes."""
    delivery.produce(ORDERS, order_created(uuid4(), 1))

    add_partitions_up_to(delivery, admin, PARTITIONS)

    assert count_partitions(admin, [ORDERS]) == {ORDERS: PARTITIONS}


def test_the_embedded_broker_is_refused(embedded_delivery: Delivery) -> None:
    done = embedded_delivery.run("outbox-relay", "topics", "orders", "--partitions", "12")

    assert done.returncode == 1
    assert "The embedded broker cannot add partitions" in done.stderr


def test_a_relay_whose_producer_is_older_than_the_change_reads_no_events(orders_url: str) -> None:
    delivery = Delivery("", orders_url, "")
    delivery.add("a", 1)
    engine = create_engine(orders_url)
    destination = Destination(None, {ORDERS: uuid4()}, {ORDERS: "orders"})
    with engine.begin() as connection:
        before = record_topics(connection, destination, window=_HOUR).noted_at
    with engine.begin() as connection:
        record_change(connection, [ORDERS])
    with engine.begin() as connection:
        after = record_topics(connection, destination, window=_HOUR).noted_at

    with engine.begin() as connection:
        shards = lock_shards(connection, 16)
        assert len(shards) == 1
        assert read_pending(connection, shards, 10, before) == []
        assert len(read_pending(connection, shards, 10, after)) == 1
    engine.dispose()


def test_no_relay_connects_or_sends_while_partitions_are_added(
    orders_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = Delivery("", orders_url, "")
    delivery.add("a", 1)
    engine = create_engine(orders_url)
    destination = Destination(None, {ORDERS: uuid4()}, {ORDERS: "orders"})
    with engine.begin() as connection:
        record_topics(connection, destination, window=_HOUR)
    locked: list[object] = []

    def try_as_relay(*_: object) -> list[str]:
        with engine.begin() as relay:
            locked.append(lock_shards(relay, 16))
            relay.execute(text("SET LOCAL lock_timeout = 100"))
            with pytest.raises(OperationalError, match="lock timeout"):
                record_topics(relay, destination, window=_HOUR)
        return []

    monkeypatch.setattr(partition_count, "is_embedded", lambda _: False)
    monkeypatch.setattr(partition_count, "_topics_below", try_as_relay)

    add_partitions(engine, None, load_service("orders"), 12)

    assert locked == [[]]
    engine.dispose()
