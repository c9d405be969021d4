"""Other clients write to a topic in Kafka transactions: committed, aborted, and left open."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaProducer

from settle.audit.run import audit
from settle_outbox.consume import partition_reader
from support.broker import KAFKA, chosen_broker
from support.delivery import ORDERS, Delivery, order_created, read_health
from support.doctor import Doctor
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

pytestmark = pytest.mark.skipif(
    chosen_broker().kind != KAFKA, reason="the embedded broker has no transactions"
)

EVENTS = f"{ORDERS}: outbox, topic and inbox agree"
PRICE = 60


@pytest.fixture
def user(delivery: Delivery) -> UUID:
    """Create the topic of orders, and return a user with a balance of 100."""
    delivery.create_topic_with_senders_times(ORDERS)
    return delivery.open_account(100)


@pytest.fixture
def doctor(tmp_path: Path, delivery: Delivery) -> Doctor:
    return Doctor(tmp_path, {"payments": delivery.payments_url}, delivery.bootstrap)


@contextmanager
def transaction(
    delivery: Delivery, user: UUID, *, source: str = "/test", age_s: float = 0
) -> Iterator[KafkaProducer]:
    """Send an order in a Kafka transaction. The caller decides how the transaction ends."""
    producer = KafkaProducer(bootstrap_servers=delivery.bootstrap, transactional_id="another")
    try:
        producer.init_transactions()
        producer.begin_transaction()
        record = order_created(user, PRICE, source=source)
        producer.send(
            ORDERS,
            value=record.value,
            key=record.key,
            headers=record.headers,
            timestamp_ms=int((time.time() - age_s) * 1000),
        ).get(10)
        yield producer
    finally:
        producer.close(timeout=0)


def test_an_order_that_its_producer_aborted_is_not_charged(
    delivery: Delivery, user: UUID, doctor: Doctor
) -> None:
    with transaction(delivery, user) as producer:
        producer.abort_transaction()
    with transaction(delivery, user) as producer:
        producer.commit_transaction()

    with delivery.consumer("payments"):
        wait_until(
            lambda: len(delivery.charges()) == 1,
            timeout_s=40,
            what="the committed order to be charged",
        )
        wait_until(
            lambda: doctor.verdict("payments lag") == ("ok", "none"),
            timeout_s=20,
            what="the lag to be zero, although transaction markers are unread",
        )

    assert delivery.balance(user) == 100 - PRICE
    assert delivery.received("payments") == 1
    assert doctor.verdict(f"transactions {ORDERS}") == ("ok", "none is open")


def test_a_topic_that_ends_in_aborted_records_is_no_lag(
    delivery: Delivery, user: UUID, doctor: Doctor
) -> None:
    with transaction(delivery, user) as producer:
        producer.abort_transaction()

    assert doctor.verdict("payments lag") == ("ok", "none")


def test_the_audit_counts_no_aborted_record(delivery: Delivery, user: UUID) -> None:
    """The aborted record claims the source /orders, but orders never published it."""
    with transaction(delivery, user, source="/orders") as producer:
        producer.abort_transaction()

    report = audit(delivery.settings("payments"), delivery.settings("orders"), second_look_s=0)

    assert report.clean, report
    assert report.check(EVENTS).notes == {}


def test_a_hanging_transaction_is_reported_and_events_behind_it_arrive_after_its_abort(
    delivery: Delivery,
    user: UUID,
    doctor: Doctor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partition_reader, "STALLED_S", 1.0)
    health = partial(read_health, tmp_path, "inbox-consumer-payments")

    with transaction(delivery, user, age_s=120) as producer:
        delivery.place(user, 1)
        with delivery.relay("orders"):
            delivery.wait_sent("orders")

        open_transaction = doctor.verdict(f"transactions {ORDERS}")
        lag = doctor.seen["payments lag"]
        report = audit(delivery.settings("payments"), delivery.settings("orders"), second_look_s=0)
        with delivery.consumer("payments", health_dir=str(tmp_path)):
            wait_until(
                lambda: f"cannot read {ORDERS}-" in health(),
                timeout_s=40,
                what="the health file to name the partition",
            )
            producer.abort_transaction()
            wait_until(
                lambda: len(delivery.charges()) == 1,
                timeout_s=40,
                what="the order behind the transaction",
            )

    assert open_transaction[0] == "warn"
    assert "1 open" in open_transaction[1]
    assert "from offset 0 on" in open_transaction[1]
    assert lag.verdict == "ok", lag
    assert report.clean, report
    # One offset is of the transaction's record, one of the order behind it. Only the order is an
    # event of orders.
    assert report.check(EVENTS).notes["offsets behind an open transaction"] == 2
    assert report.check(EVENTS).notes["unread"] == 1
    assert delivery.balance(user) == 99
