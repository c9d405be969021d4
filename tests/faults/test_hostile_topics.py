"""Invalid, repeated and forged records of other programs, among the events of real orders."""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaConsumer
from kafka.admin import ConfigResource, ConfigResourceType
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from services.orders import orders
from settle_outbox.kafka.clients import make_admin
from support.broker import KAFKA, chosen_broker
from support.delivery import (
    ORDERS,
    PARTITIONS,
    PAYMENTS,
    Delivery,
    Record,
    header,
    headers,
    patient_producer,
)
from support.poison import invalid_headers, invalid_values
from support.traffic import PRICE, Traffic, relays_and_consumers
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID


# For each service: the topic that it consumes, and an event type of this topic.
CONSUMED = {"payments": (ORDERS, "order.created"), "orders": (PAYMENTS, "payment.succeeded")}


def poison(type_: str) -> list[tuple[str, Record]]:
    """Return invalid records of every kind, spread over the partitions.

    Each record comes with the reason that its dead letter must have.
    """
    data = {"order_id": str(uuid7()), "user_id": str(uuid7()), "amount": 5}
    values = {**invalid_values(data), "1 MB": ("not_json", b"x" * 1_000_000)}
    bad = [(reason, Record(value, headers(type_))) for reason, value in values.values()]
    bad += [
        (reason, Record(json.dumps(data).encode(), wrong))
        for reason, wrong in invalid_headers(type_).values()
    ]
    return [
        (reason, replace(record, key=str(uuid7()).encode(), partition=number % PARTITIONS))
        for number, (reason, record) in enumerate(bad)
    ]


def test_poison_of_every_kind_on_both_topics(delivery: Delivery) -> None:
    bad = {service: poison(type_) for service, (_, type_) in CONSUMED.items()}
    with relays_and_consumers(delivery), Traffic(delivery) as traffic:
        traffic.wait_more(10)
        for service, (topic, _) in CONSUMED.items():
            unknown = Record(b"not even JSON", headers("order.eaten"))
            delivery.produce(topic, *[record for _, record in bad[service]], unknown)
        for service, records in bad.items():
            wait_until(
                lambda: len(delivery.dead_letters(service)) >= len(records),  # noqa: B023
                timeout_s=30,
                what=f"the dead letters of {service}",
            )
        traffic.wait_more(50)
        traffic.end()
        traffic.wait_settled()
        traffic.check()
    for service, records in bad.items():
        letters = delivery.dead_letters(service)
        assert Counter(each.reason for each in letters) == Counter(reason for reason, _ in records)
        assert delivery.inbox(service) == {"applied": traffic.count}
        assert delivery.skipped(service) == {"order.eaten": 1}


class Repeater:
    """Write a copy of each event of a topic to another partition of the topic.

    Args:
        delivery: The delivery that has the topic.
        topic: The topic's name.
        shift: The distance to the other partition; 0 writes the copy to the same partition.
    """

    def __init__(self, delivery: Delivery, topic: str, shift: int) -> None:
        self._delivery, self._topic, self._shift = delivery, topic, shift
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"repeater {shift}")
        self.repeated: set[str] = set()

    @contextmanager
    def running(self) -> Iterator[Repeater]:
        """Copy events in a thread until the context ends."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    def _run(self) -> None:
        producer = patient_producer(self._delivery.bootstrap)
        reader = KafkaConsumer(
            self._topic,
            bootstrap_servers=self._delivery.bootstrap,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            metadata_max_age_ms=500,  # the topic may not exist yet
        )
        try:
            while not self._stop.is_set():
                for records in reader.poll(timeout_ms=100).values():
                    for record in records:
                        event_id = header(record, "ce_id")
                        if event_id in self.repeated:
                            continue  # this record is a copy
                        producer.send(
                            self._topic,
                            value=record.value,
                            key=record.key,
                            headers=record.headers,
                            partition=(record.partition + self._shift) % PARTITIONS,
                        ).get(10)
                        self.repeated.add(event_id)
        finally:
            reader.close()
            producer.close()


@pytest.mark.timeout(180)
def test_three_copies_of_every_event_in_several_partitions_change_nothing(
    delivery: Delivery,
) -> None:
    with ExitStack() as running, Traffic(delivery, pause_s=0.3) as traffic:
        running.enter_context(relays_and_consumers(delivery, consumers=2))
        traffic.wait_more(1)
        repeaters = [
            running.enter_context(Repeater(delivery, topic, shift).running())
            for topic in (ORDERS, PAYMENTS)
            for shift in (0, 1, 3)
        ]
        traffic.wait_more(150)
        traffic.end()
        traffic.wait_settled()
        for each in repeaters:
            wait_until(
                lambda: len(each.repeated) == traffic.count,  # noqa: B023
                timeout_s=60,
                what="each event to be copied",
            )
        for service in CONSUMED:
            wait_until(
                lambda: delivery.committed(service) == 4 * traffic.count,  # noqa: B023
                timeout_s=60,
                what="all records to be read",
            )
        # A copy in another partition may be read before the original.
        traffic.check(in_order=False)
    for service, (topic, _) in CONSUMED.items():
        assert len(delivery.records(topic)) == 4 * traffic.count
        assert delivery.inbox(service) == {"applied": traffic.count}


def test_results_that_are_early_or_unknown_or_contradict_an_earlier_one(
    delivery: Delivery,
) -> None:
    def result(order: UUID, type_: str) -> Record:
        data = {"order_id": str(order), "user_id": str(user), "amount": PRICE}
        value = json.dumps(data | {"reason": "insufficient_funds"}).encode()
        return Record(value, headers(type_), key=str(order).encode())

    user = delivery.open_account(PRICE)
    engine = create_engine(delivery.orders_url)
    with relays_and_consumers(delivery), Traffic(delivery) as traffic, Session(engine) as session:
        paid, unpaid = delivery.place(user, PRICE)[0], delivery.place(user, PRICE)[0]
        wait_until(
            lambda: traffic.settled([paid, unpaid]), timeout_s=30, what="both orders to settle"
        )
        early = orders.place_order(session, user_id=user, amount=PRICE, description="")
        delivery.produce(
            PAYMENTS,
            result(early, "payment.succeeded"),
            result(uuid7(), "payment.succeeded"),
            result(paid, "payment.failed"),
            result(unpaid, "payment.succeeded"),
            result(paid, "payment.succeeded"),
        )
        wait_until(
            lambda: (
                delivery.inbox("orders").keys() >= {"anomaly", "parked"}
                and sum(delivery.inbox("orders")[each] for each in ("anomaly", "parked")) == 5
            ),
            timeout_s=30,
            what="all five results to be received",
        )
        session.commit()
        wait_until(lambda: traffic.settled([early]), timeout_s=30, what="the early order to settle")
        traffic.wait_more(20)
        traffic.end()
        traffic.wait_settled()
        traffic.check()
    engine.dispose()
    # Payments decided each status. No forged result changed one.
    assert dict(
        delivery.query("orders", "SELECT id, status FROM orders WHERE user_id = :user", user=user)
    ) == {paid: "success", unpaid: "failed", early: "failed"}
    letters = delivery.dead_letters("orders")
    assert [each.reason for each in letters] == ["unknown_order", "unknown_order"]
    assert delivery.inbox("orders")["anomaly"] == 3


@pytest.mark.skipif(
    chosen_broker().kind != KAFKA, reason="a topic of the embedded broker has no size limit"
)
def test_a_batch_with_one_event_that_the_broker_rejects(delivery: Delivery) -> None:
    """Even batches of valid events exceed the limit. They are sent in parts, and in order."""
    delivery.produce(ORDERS)  # without records: only creates the topic
    admin = make_admin(delivery.settings("orders"), "test")
    limit = {"max.message.bytes": "100000"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, ORDERS, limit)])
    admin.close()
    traffic = Traffic(delivery)
    user = traffic.users[-1]
    traffic.place_many(user, 300)
    data = {"order_id": str(uuid7()), "user_id": str(user), "amount": 1, "more": "x" * 150_000}
    delivery.add(str(user), data)
    traffic.place_many(user, 300)
    with relays_and_consumers(delivery), traffic:
        traffic.wait_more(650)
        traffic.end()
        traffic.wait_settled()
        delivery.wait_sent("orders")
        traffic.check()
    ((refused, reason),) = delivery.query(
        "orders",
        "SELECT o.payload, r.reason FROM outbox_refused r JOIN outbox o ON o.id = r.id",
    )
    assert json.loads(bytes(refused)) == data
    assert "MessageSizeTooLargeError" in reason
