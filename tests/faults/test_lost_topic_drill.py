"""A topic is deleted under load, with events that its consumer has not read.

Each drill follows docs/how-to/broker-came-back-empty.md, with the commands of that page. At the
end, the audit finds nothing, or only what no repair can change.
"""

from __future__ import annotations

import shlex
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from settle.audit.report import VIOLATIONS_MAX
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import close_quietly, find_topics
from support.audit_data import run_audit, violations_in
from support.delivery import ORDERS, PAYMENTS, header
from support.traffic import SERVICES, Traffic
from support.waiting import wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from support.delivery import Delivery

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "broker-came-back-empty.md"
READERS = {ORDERS: "payments", PAYMENTS: "orders"}


@contextmanager
def all_but_a_consumer(delivery: Delivery, stopped: str, **settings: Any) -> Iterator[None]:
    """Run the relays of both services, and the consumer of the service that is not `stopped`."""
    with ExitStack() as stack:
        for service in SERVICES:
            stack.enter_context(delivery.relay(service, **settings))
            if service != stopped:
                stack.enter_context(delivery.consumer(service))
        yield


def wait_unread(delivery: Delivery, topic: str, count: int) -> None:
    """Wait until at least `count` records of a topic wait for their consumer."""
    wait_until(
        lambda: len(delivery.records(topic)) >= delivery.received(READERS[topic]) + count,
        timeout_s=60,
        what=f"{count} unread records in {topic}",
    )


def delete(delivery: Delivery, topic: str) -> None:
    """Delete a topic, and wait until its relay has created the topic again."""
    admin = make_admin(delivery.settings("orders"), "test")
    try:
        old = find_topics(admin, [topic])[topic]
        admin.delete_topics([topic])
        wait_until(
            lambda: find_topics(admin, [topic]).get(topic) not in {None, old},
            what=f"{topic} to be created again",
        )
    finally:
        close_quietly(admin)


def run(delivery: Delivery, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the page."""
    assert command in PAGE.read_text("utf-8")
    return delivery.run(*shlex.split(command))


@pytest.mark.parametrize("topic", [ORDERS, PAYMENTS])
def test_unread_events_of_a_deleted_topic_come_again(delivery: Delivery, topic: str) -> None:
    with (
        all_but_a_consumer(delivery, READERS[topic]),
        Traffic(delivery) as traffic,
    ):
        with delivery.consumer(READERS[topic]):
            traffic.wait_more(20)
        wait_unread(delivery, topic, 20)

        delete(delivery, topic)

        with delivery.consumer(READERS[topic]):
            traffic.wait_more(20)
            traffic.end()
            traffic.wait_settled()
    traffic.check()
    assert run(delivery, "settle audit").returncode == 0


@pytest.mark.parametrize("topic", [ORDERS, PAYMENTS])
def test_unread_events_that_are_older_than_the_window_are_replayed_by_hand(
    delivery: Delivery, topic: str
) -> None:
    publisher = topic.partition(".")[0]
    with (
        all_but_a_consumer(delivery, READERS[topic], replay_window_s=1),
        Traffic(delivery) as traffic,
    ):
        with delivery.consumer(READERS[topic]):
            traffic.wait_more(20)
        wait_unread(delivery, topic, 20)
        delete(delivery, topic)
        with delivery.consumer(READERS[topic]):
            traffic.wait_more(20)
            traffic.end()
            hanging = wait_until(lambda: hanging_orders(delivery), what="the audit")
            kept = {header(record, "ce_id"): record.key for record in delivery.records(topic)}
            assert 0 < len(hanging) == min(delivery.statuses()["created"], VIOLATIONS_MAX)

            assert run(delivery, f"outbox-relay replay {publisher} --since 1d").returncode == 0
            traffic.wait_settled()
            delivery.wait_sent(publisher)

    outbox = delivery.query(publisher, "SELECT id::text, aggregateid FROM outbox")
    may_be_late = {id_ for id_, key in outbox if id_ not in kept and key.encode() in kept.values()}
    violations = violations_in(run_audit(delivery))
    # Each order is decided and charged once. An order whose event was lost may be decided after
    # newer orders of its user. No repair can change that.
    assert {each[:2] for each in violations} == (
        {(f"{ORDERS}: first appearances in order", "too late")} if topic == ORDERS else set()
    )
    assert {event for _, _, event in violations} <= may_be_late
    assert run(delivery, "settle audit").returncode == (1 if violations else 0)
    assert len(delivery.charges()) == len(set(delivery.charges()))


def hanging_orders(delivery: Delivery) -> set[str]:
    """Return the hanging orders. Fail if the audit finds anything but them and lost events."""
    violations = violations_in(run_audit(delivery))
    assert {kind for _, kind, _ in violations} == {"hanging", "lost"}
    return {order for _, kind, order in violations if kind == "hanging"}
