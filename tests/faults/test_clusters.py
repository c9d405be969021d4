"""An outbox has one current Kafka cluster. A relay ends if it is connected to an earlier one."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine

from settle_outbox.publish.lost_topics import ClusterLeftError, Destination, record_topics
from support.broker import KAFKA, chosen_broker
from support.delivery import ORDERS, Delivery, first_appearances
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from support.broker import Broker

HOUR = timedelta(hours=1)


@pytest.fixture
def engine(orders_url: str) -> Iterator[Engine]:
    made = create_engine(orders_url)
    yield made
    made.dispose()


def record_cluster(engine: Engine, cluster_id: str | None, topic_id: UUID) -> dict[str, int]:
    """Record the cluster and the topics, as a relay does when it connects.

    Returns:
        By topic, how many events became pending again.
    """
    destination = Destination(cluster_id, {ORDERS: topic_id}, {ORDERS: "orders"})
    with engine.begin() as connection:
        return record_topics(connection, destination, HOUR).queued


def test_a_new_cluster_is_recorded_and_gets_the_events(engine: Engine, orders_url: str) -> None:
    Delivery("", orders_url, "").add("a", 1, 2)

    assert record_cluster(engine, "first", uuid4()) == {}
    # Both events are still pending, so no event becomes pending again.
    assert record_cluster(engine, "second", uuid4()) == {ORDERS: 0}


def test_an_earlier_cluster_is_refused_and_nothing_is_changed(
    engine: Engine, orders_url: str
) -> None:
    delivery = Delivery("", orders_url, "")
    one, two = uuid4(), uuid4()
    record_cluster(engine, "first", one)
    record_cluster(engine, "second", two)
    before = delivery.query("orders", "SELECT * FROM outbox_topics")

    with pytest.raises(ClusterLeftError) as refused:
        record_cluster(engine, "first", one)

    assert "cluster first" in str(refused.value)
    assert "cluster second" in str(refused.value)
    assert "DELETE FROM outbox_clusters WHERE cluster_id = 'first'" in str(refused.value)
    assert delivery.query("orders", "SELECT * FROM outbox_topics") == before
    assert record_cluster(engine, "second", two) == {}


def test_moving_back_on_purpose_is_allowed_by_the_statement_that_the_error_names(
    engine: Engine, orders_url: str
) -> None:
    one, two = uuid4(), uuid4()
    record_cluster(engine, "first", one)
    record_cluster(engine, "second", two)

    Delivery("", orders_url, "").query(
        "orders", "DELETE FROM outbox_clusters WHERE cluster_id = 'first'"
    )

    assert record_cluster(engine, "first", one) == {ORDERS: 0}
    with pytest.raises(ClusterLeftError):
        record_cluster(engine, "second", two)


def test_the_newest_cluster_is_the_current_one_after_the_clock_went_back(
    engine: Engine, orders_url: str
) -> None:
    record_cluster(engine, "first", uuid4())
    Delivery("", orders_url, "").query(
        "orders", "UPDATE outbox_clusters SET noted_at = now() + interval '1 day'"
    )
    two = uuid4()

    record_cluster(engine, "second", two)

    assert record_cluster(engine, "second", two) == {}


def test_using_the_embedded_broker_for_a_time_is_not_a_move(engine: Engine) -> None:
    """All embedded brokers have the same cluster id, so a relay does not record it."""
    one = uuid4()
    record_cluster(engine, "first", one)

    assert record_cluster(engine, None, uuid4()) == {ORDERS: 0}
    assert record_cluster(engine, "first", one) == {ORDERS: 0}


@pytest.mark.skipif(
    chosen_broker().kind != KAFKA, reason="the test needs two clusters of Apache Kafka"
)
def test_of_two_relays_on_two_clusters_the_first_one_ends(
    delivery: Delivery, own_broker: Broker
) -> None:
    moved = Delivery(delivery.payments_url, delivery.orders_url, own_broker.bootstrap)
    delivery.add("a", *range(50))
    with delivery.process("outbox-relay", "run", "orders") as first:
        delivery.wait_sent("orders")
        with moved.process("outbox-relay", "run", "orders") as second:
            second.wait_logged("relay.topic_lost")
            delivery.add("a", *range(50, 60))

            assert first.wait(timeout_s=20) == 1
            again = delivery.run("outbox-relay", "run", "orders")
            delivery.wait_sent("orders")

            # The first relay may have sent events to the old cluster until it ended. The new
            # cluster must still have all events, in order.
            wait_until(lambda: len(moved.records(ORDERS)) >= 60, what="all events")
            assert first_appearances(moved.records(ORDERS)) == {"a": list(range(60))}
            assert len(second.logged("relay.topic_lost")) == 1
            assert second.running
    assert "DELETE FROM outbox_clusters" in first.lines[-1]
    assert not first.logged("relay.topic_lost")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (1, first.lines[-1].strip())
    assert "Traceback" not in "".join(first.lines)
