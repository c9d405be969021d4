"""The consumer applies each event once. Records that it cannot apply become dead letters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from marshmallow import EXCLUDE, Schema, fields
from sqlalchemy import text
from sqlalchemy.exc import NoResultFound
from uuid_utils.compat import uuid7

from settle_outbox import Service, Subscription
from settle_outbox.uuid7 import time_of
from support.delivery import ORDERS, PARTITIONS, PAYMENTS, Delivery, Record, headers, order_created
from support.peak_memory import PEAK_MAX_MB, PRINT_STATUS, peak_in
from support.poison import RawName, invalid_headers, invalid_values
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from settle_outbox import ReceivedEvent, Verdict


@pytest.mark.parametrize(
    ("service", "topic", "type_"),
    [("payments", ORDERS, "order.created"), ("orders", PAYMENTS, "payment.succeeded")],
)
def test_every_kind_of_invalid_record_becomes_a_dead_letter(
    delivery: Delivery, service: str, topic: str, type_: str
) -> None:
    user = delivery.open_account(100)
    before, after = delivery.place(user, 5, count=2)

    def good(order_id: UUID) -> Record:
        data = {"order_id": str(order_id), "user_id": str(user), "amount": 5}
        return Record(json.dumps(data).encode(), headers(type_))

    data = {"order_id": str(uuid7()), "user_id": str(user), "amount": 5}
    bad = [
        (reason, Record(value, headers(type_))) for reason, value in invalid_values(data).values()
    ] + [
        (reason, Record(json.dumps(data).encode(), wrong))
        for reason, wrong in invalid_headers(type_).values()
    ]
    unknown = Record(b"not even JSON", headers("order.eaten"))
    odd = Record(good(after).value, [*headers(type_), (RawName("odd\udcff"), b"\xff")])
    # All records have one key, so they are in one partition, in this order.
    delivery.produce(topic, good(before), *[record for _, record in bad], unknown, odd)

    with delivery.consumer(service, consumer_batch=20):
        wait_until(lambda: delivery.received(service) == 2, timeout_s=30, what="the valid events")
        letters = delivery.dead_letters(service)
    assert delivery.inbox(service) == {"applied": 2}
    assert delivery.skipped(service) == {"order.eaten": 1}
    if service == "payments":
        assert delivery.balance(user) == 90
        assert set(delivery.charges()) == {before, after}
    else:
        assert delivery.statuses() == {"success": 2}
    assert [
        (each.reason, each.value and bytes(each.value), bytes(each.key)) for each in letters
    ] == [(reason, record.value, record.key) for reason, record in bad]
    assert [each.offset for each in letters] == list(range(1, len(bad) + 1))

    shown = delivery.run("inbox-consumer", "dead-letters", "list", service)
    assert shown.returncode == 0
    assert all(reason in shown.stdout for reason, _ in bad)
    listed = delivery.run("inbox-consumer", "dead-letters", "list", service, "--json")
    lines = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [line["reason"] for line in reversed(lines)] == [reason for reason, _ in bad]
    assert {"key", "value", "headers", "topic", "partition", "offset", "detail"} <= lines[0].keys()
    (tombstone,) = [line for line in lines if line["reason"] == "no_value"]
    assert tombstone["value"] is None
    (garbled,) = [line for line in lines if line["reason"] == "not_utf8"]
    # {"order_id": "\xff"} in Base64. Below, /w== is the byte \xff.
    assert garbled["value"] == {"base64": "eyJvcmRlcl9pZCI6ICL/In0="}
    assert any(["ce_id", {"base64": "/w=="}] in line["headers"] for line in lines)
    assert any(["ce_\\xff", {"base64": "/w=="}] in line["headers"] for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_control_characters_of_dead_letters_are_escaped_in_lists(
    delivery: Delivery, form: list[str]
) -> None:
    delivery.query(
        "payments",
        "INSERT INTO dead_letters"
        ' (fingerprint, topic, partition, "offset", value, headers, type, reason, detail)'
        " VALUES ('x', 'orders.events', 0, 1, '', '[]', E'\\u001b[2J', 'not_json',"
        " E'\\u009b \\u65e5')",
    )

    environ = {**delivery.environ, "PYTHONIOENCODING": "latin-1"}
    done = delivery.run("inbox-consumer", "dead-letters", "list", "payments", *form, **environ)

    assert (done.returncode, done.stderr) == (0, "")
    assert "[2J" in done.stdout
    assert "\\u65e5" in done.stdout
    assert all(each.isprintable() for each in done.stdout.splitlines())


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_large_dead_letters_are_listed_in_little_memory(
    delivery: Delivery, form: list[str]
) -> None:
    delivery.query(
        "payments",
        "INSERT INTO dead_letters"
        ' (fingerprint, topic, partition, "offset", value, headers, reason, detail)'
        " SELECT convert_to(n::text, 'UTF8'), 'orders.events', 0, n,"
        " convert_to(repeat('x', 1000000), 'UTF8'), '[]', 'not_json', 'no JSON'"
        " FROM generate_series(1, 60) AS n",
    )

    command = f"{PRINT_STATUS}\nfrom settle_outbox.cli.inbox import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", command, "dead-letters", "list", "payments", "--limit=100", *form],
        env={**os.environ, **delivery.environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.count("not_json") == 60
    assert peak_in(done.stderr) < PEAK_MAX_MB


def test_duplicates_are_applied_once(delivery: Delivery) -> None:
    """The duplicates of an event are in the same and in other partitions.

    A second event of the same order is no duplicate, but an anomaly.
    """
    user = delivery.open_account(100)
    order = uuid7()
    event = order_created(user, 7, order_id=order)
    second_event = order_created(user, 7, order_id=order)  # with another event id
    in_all_partitions = [
        Record(event.value, event.headers, event.key, partition=n) for n in range(PARTITIONS)
    ]
    other_order = order_created(user, 1)
    delivery.produce(ORDERS, event, event, event, *in_all_partitions, second_event, other_order)
    with delivery.consumer("payments", consumer_batch=4):
        # 3 + 6 records of the first event, and one of each other event.
        wait_until(lambda: delivery.committed("payments") == 11, timeout_s=20, what="all events")
    assert delivery.balance(user) == 92
    assert len(delivery.charges()) == 2
    assert delivery.inbox("payments") == {"applied": 2, "anomaly": 1}
    assert delivery.pending("payments") == 2
    assert delivery.dead_letters("payments") == []


def test_results_that_contradict_an_order_do_not_change_it(delivery: Delivery) -> None:
    user = uuid7()
    paid, failed, mismatched, other = delivery.place(user, 5, count=4)

    def result(order: UUID, type_: str, amount: int = 5) -> Record:
        data = {"order_id": str(order), "user_id": str(user), "amount": amount}
        return Record(json.dumps(data | {"reason": "insufficient_funds"}).encode(), headers(type_))

    unknown = uuid7()
    delivery.produce(
        PAYMENTS,
        result(paid, "payment.succeeded"),
        result(failed, "payment.failed"),
        result(paid, "payment.failed"),
        result(failed, "payment.succeeded"),
        result(paid, "payment.succeeded"),
        result(unknown, "payment.succeeded"),
        result(mismatched, "payment.succeeded", amount=6),
        result(other, "payment.succeeded"),
    )
    with delivery.consumer("orders"):
        wait_until(lambda: delivery.received("orders") == 8, timeout_s=20, what="all events")
    rows = delivery.query("orders", "SELECT id, status FROM orders")
    assert {row.id: row.status for row in rows} == {
        paid: "success",
        failed: "failed",
        mismatched: "created",
        other: "success",
    }
    assert delivery.inbox("orders") == {"applied": 3, "anomaly": 3, "parked": 2}
    details = delivery.query("orders", "SELECT detail FROM inbox WHERE outcome = 'anomaly'")
    assert sorted(detail.split(":")[0] for (detail,) in details) == [
        "already_final",
        "contradicts_final_status",
        "contradicts_final_status",
    ]
    letters = delivery.dead_letters("orders")
    assert [each.reason for each in letters] == ["unknown_order", "mismatch"]
    assert str(unknown) in letters[0].detail


class NumberSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    number = fields.Integer(required=True)


def failing_service(*, fails: Mapping[int, str]) -> Service:
    """Return a service whose handler fails for some numbers.

    Args:
        fails: By number, how the handler fails: `raises`, `finds nothing`, or a statement.
    """

    def handle(session: Session, events: Sequence[ReceivedEvent]) -> Mapping[UUID, Verdict]:
        for event in events:
            number = event.data["number"]
            session.execute(
                text("INSERT INTO effects (number) VALUES (:number)"), {"number": number}
            )
            failure = fails.get(number)
            if failure == "raises":
                raise RuntimeError(f"cannot do {number}: \0 \ud800")
            if failure == "finds nothing":
                raise NoResultFound(f"no row of {number}")
            if failure:
                session.execute(text(failure))
        return {}

    subscription = Subscription(ORDERS, "number", NumberSchema(), handle)
    return Service("orders", (), (subscription,))


FAILURES = {
    17: "raises",
    40: "finds nothing",
    41: "SELECT 1 / 0",
    42: "INSERT INTO effects (number) VALUES (1)",
    90: "DO $$ BEGIN RAISE EXCEPTION 'a rule of the database'; END $$",
}


def test_only_the_failing_events_of_a_batch_become_dead_letters(delivery: Delivery) -> None:
    delivery.query("orders", "CREATE TABLE effects (number integer PRIMARY KEY)")
    records = [Record(json.dumps({"number": n}).encode(), headers("number")) for n in range(100)]
    delivery.produce(ORDERS, *records)
    with delivery.consumer(failing_service(fails=FAILURES)):
        wait_until(lambda: delivery.received("orders") == 100, timeout_s=20, what="all events")
    numbers = delivery.query("orders", "SELECT number FROM effects")
    assert {number for (number,) in numbers} == set(range(100)) - FAILURES.keys()
    assert delivery.inbox("orders") == {"applied": 95, "parked": 5}
    letters = delivery.dead_letters("orders")
    assert [(each.offset, each.reason) for each in letters] == [
        (number, "handler_failed") for number in FAILURES
    ]
    assert letters[0].detail == "RuntimeError: cannot do 17: \\x00 \\ud800"
    assert [str(each.event_id) for each in letters] == [
        (dict(records[number].headers)["ce_id"] or b"").decode() for number in FAILURES
    ]


def test_an_event_older_than_the_inbox_becomes_a_dead_letter(delivery: Delivery) -> None:
    user = delivery.open_account(100)
    old, new, without_time = uuid7(), uuid7(), UUID("3f2b8c1e-7d7a-4c39-9d0e-6a0f5f4f9b11")
    assert time_of(without_time) is None  # the id is no UUIDv7, so it is never older than the inbox
    delivery.query(
        "payments", "INSERT INTO inbox_horizon VALUES (CAST(:before AS uuid))", before=str(new)
    )
    delivery.produce(
        ORDERS,
        *[order_created(user, 5, id=str(each)) for each in (old, new, without_time)],
    )
    with delivery.consumer("payments"):
        wait_until(
            lambda: delivery.received("payments") == 2, timeout_s=20, what="the other events"
        )
        wait_until(lambda: delivery.dead_letters("payments"), what="the dead letter")
    (letter,) = delivery.dead_letters("payments")
    assert (letter.reason, letter.event_id) == ("older_than_inbox", old)
    assert str(new) in letter.detail
    assert delivery.balance(user) == 90


def test_consumers_that_join_and_leave_charge_each_order_once(delivery: Delivery) -> None:
    users = [delivery.open_account(1000) for _ in range(10)]
    with delivery.relay("orders"), delivery.consumer("payments", consumer_batch=5):
        delivery.place(users[0], 1)
        wait_until(lambda: delivery.received("payments") == 1, timeout_s=20, what="the first event")
        for user in users:
            delivery.place(user, 1, count=10)
        with delivery.consumer("payments", consumer_batch=5):
            for user in users:
                delivery.place(user, 1, count=10)
            wait_until(
                lambda: delivery.received("payments") == 201, timeout_s=60, what="all events"
            )
        for user in users:
            delivery.place(user, 1)
        wait_until(
            lambda: delivery.received("payments") == 211, timeout_s=60, what="the last events"
        )
    charged = delivery.charges()
    assert len(charged) == len(set(charged)) == 211
    # Each user pays 10 + 10 + 1, and the first user also the first order.
    assert [delivery.balance(user) for user in users] == [978] + [979] * 9
    assert delivery.inbox("payments") == {"applied": 211}


def test_a_backlog_that_needs_several_large_responses_is_read(embedded_delivery: Delivery) -> None:
    """The embedded broker may send more bytes than a fetch requests."""
    count = 72
    embedded_delivery.produce(
        ORDERS,
        *[
            Record(
                b"x" * (1_040_000 if number % 2 else 100),
                headers("order.eaten"),
                partition=number % PARTITIONS,
            )
            for number in range(count)
        ],
    )

    with embedded_delivery.consumer("payments"):
        wait_until(
            lambda: embedded_delivery.skipped("payments") == {"order.eaten": count},
            timeout_s=30,
            what="all events",
        )

    assert embedded_delivery.inbox("payments") == {}
