"""`settle trace` and `settle orders stuck` show the history of an order and why it waits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from settle.cli import main
from settle.trace import command as trace_command
from support.delivery import ORDERS, Record, headers
from support.environ import environment
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from support.delivery import Delivery


@pytest.fixture
def settle(delivery: Delivery) -> Callable[..., Result]:
    """Return a function that runs `settle`."""

    def run(*arguments: str, **environ: str) -> Result:
        with environment(delivery.environ | {"LOG_LEVEL": "ERROR"} | environ):
            return CliRunner().invoke(main, arguments)

    return run


@pytest.fixture
def traced(settle: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    """Return a function that returns the trace of an id."""

    def run(id_: object, **environ: str) -> dict[str, Any]:
        done = settle("trace", str(id_), "--json", **environ)
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def names(trace: dict[str, Any]) -> list[str]:
    return [step["name"] for step in trace["steps"]]


def settle_order(delivery: Delivery, *, dead_letter_first: bool = False) -> UUID:
    """Place an order, settle it, and return its id.

    Args:
        delivery: the databases and the broker.
        dead_letter_first: record `order.created` as a dead letter before payments applies it.
    """
    (order_id,) = delivery.place(delivery.open_account(100), 7)
    if dead_letter_first:
        with delivery.relay("orders"):
            delivery.wait_sent("orders")
        ((event_id,),) = delivery.query("orders", "SELECT id FROM outbox")
        delivery.query("payments", DEAD_LETTER, event=event_id)
    deliver(delivery, outcome="applied")
    return order_id


def deliver(delivery: Delivery, *, outcome: str) -> None:
    """Run both services until orders has received an event with this outcome."""
    with (
        delivery.relay("orders"),
        delivery.consumer("payments"),
        delivery.relay("payments"),
        delivery.consumer("orders"),
    ):
        wait_until(
            lambda: delivery.inbox("orders") == {outcome: 1}, timeout_s=60, what="the payment"
        )


DEAD_LETTER = """
    INSERT INTO dead_letters
        (fingerprint, event_id, topic, partition, "offset", headers, reason, detail)
    VALUES ('x', :event, 'orders.events', 0, 0, '[]', 'handler_failed', 'RuntimeError: no')
"""
FLOW = [
    "accepted",
    "event_added",
    "sent",
    "received",
    "charged",
    "event_added",
    "sent",
    "received",
    "success",
]


def test_a_paid_order_is_found_by_each_of_its_ids(
    delivery: Delivery, traced: Callable[..., dict[str, Any]], settle: Callable[..., Result]
) -> None:
    order_id = settle_order(delivery)
    delivery.query("orders", "UPDATE outbox SET requestid = 'r-1'")

    trace = traced(order_id)
    by_event = [
        traced(step["detail"]["event_id"])
        for step in trace["steps"]
        if step["name"] == "event_added"
    ]
    by_request = traced("r-1")
    shown = settle("trace", str(order_id)).stdout

    assert names(trace) == FLOW
    assert trace["wait"]["reason"] == "final"
    assert all(step["at"] for step in trace["steps"])
    assert [each["order_id"] for each in (*by_event, by_request)] == [str(order_id)] * 3
    assert "offset 0" in shown
    assert "The order is final: success." in shown


def test_the_steps_of_a_retried_dead_letter_are_in_the_order_of_time(
    delivery: Delivery, traced: Callable[..., dict[str, Any]], settle: Callable[..., Result]
) -> None:
    order_id = settle_order(delivery, dead_letter_first=True)
    delivery.query(
        "payments",
        """
        INSERT INTO dead_letter_requests (dead_letter_id, action, answered_at, answer)
        VALUES (1, 'retry', now(), 'refused')
        """,
    )

    trace = traced(order_id)
    shown = settle("trace", str(order_id)).stdout

    assert names(trace) == [*FLOW[:3], "dead_letter", *FLOW[3:], "retry"]
    assert " -0." not in shown


def test_an_anomaly_of_a_charged_order_is_shown_once_with_what_to_do(
    delivery: Delivery, traced: Callable[..., dict[str, Any]]
) -> None:
    (order_id,) = delivery.place(delivery.open_account(100), 7)
    delivery.query("orders", "UPDATE orders SET status = 'failed', failure_reason = 'test'")
    deliver(delivery, outcome="anomaly")

    trace = traced(order_id)

    assert sorted(names(trace)) == sorted([*FLOW[:-1], "failed"])
    assert trace["steps"][-1]["detail"]["outcome"] == "anomaly"
    assert trace["wait"] == {
        "reason": "final",
        "sentence": "The order is failed, but it was charged.",
        "command": "settle audit",
    }


def test_a_trace_needs_no_broker(delivery: Delivery, traced: Callable[..., dict[str, Any]]) -> None:
    order_id = settle_order(delivery)

    trace = traced(order_id, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")

    assert names(trace) == FLOW
    assert [step["at"] is None for step in trace["steps"] if step["name"] == "sent"] == [True, True]


def test_a_trace_says_that_kafka_does_not_answer(
    delivery: Delivery, traced: Callable[..., dict[str, Any]]
) -> None:
    (order_id,) = delivery.place(delivery.open_account(100), 7)
    with delivery.relay("orders"), delivery.consumer("payments"):
        wait_until(lambda: delivery.received("payments") == 1, timeout_s=60, what="the charge")

    wait = traced(order_id, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")["wait"]

    assert wait["reason"] == "unsent"
    assert wait["sentence"] == ("Its event waits for the relay of payments. Kafka does not answer.")


def test_a_trace_names_the_relay_and_then_the_consumer_that_an_order_waits_for(
    delivery: Delivery, traced: Callable[..., dict[str, Any]]
) -> None:
    (order_id,) = delivery.place(delivery.open_account(100), 7)

    unsent = traced(order_id)
    with delivery.relay("orders"):
        delivery.wait_sent("orders")
    sent = traced(order_id)

    assert unsent["wait"]["reason"] == "unsent"
    assert unsent["wait"]["command"] == "outbox-relay healthcheck orders"
    assert sent["wait"]["reason"] == "not_received"
    assert sent["wait"]["command"] == "inbox-consumer healthcheck payments"


@pytest.mark.parametrize(
    ("database", "statement", "reason", "command"),
    [
        (
            "orders",
            "INSERT INTO outbox_refused (seq, id, reason) SELECT seq, id, 'too large' FROM outbox",
            "refused",
            "outbox-relay refused show orders {event}",
        ),
        (
            "payments",
            DEAD_LETTER,
            "dead_letter",
            "inbox-consumer dead-letters show payments 1",
        ),
        (
            "payments",
            """
            INSERT INTO inbox_attempts (event_id, attempts, reason, detail)
            VALUES (:event, 2, 'retries_exhausted', 'Retry: the bank is away')
            """,
            "retrying",
            "",
        ),
        (
            "payments",
            """
            INSERT INTO inbox_brakes (topic, type, error, failures, detail, stopped_at)
            VALUES ('orders.events', 'order.created', 'RuntimeError', 20, 'no', now())
            """,
            "stopped",
            "settle doctor payments",
        ),
        (
            "orders",
            "DELETE FROM outbox",
            "event_gone",
            "settle audit",
        ),
    ],
    ids=lambda value: value if str(value).isidentifier() else "",
)
def test_a_stuck_order_is_shown_with_its_reason_and_the_next_command(
    delivery: Delivery,
    settle: Callable[..., Result],
    database: str,
    statement: str,
    reason: str,
    command: str,
) -> None:
    (order_id,) = delivery.place(uuid4(), 7)
    ((event,),) = delivery.query("orders", "SELECT id FROM outbox")
    delivery.query("orders", "DELETE FROM outbox_pending")
    delivery.query(database, statement, **({"event": event} if ":event" in statement else {}))

    young = settle("orders", "stuck")
    stuck = settle("orders", "stuck", "--older-than", "0", "--json")
    shown = settle("orders", "stuck", "--older-than", "0").stdout

    assert (young.exit_code, young.stdout) == (
        0,
        "No order has been open for more than 60 s.\n",
    )
    assert stuck.exit_code == 1
    found = json.loads(stuck.stdout)
    assert (found["order_id"], found["wait"]["reason"]) == (str(order_id), reason)
    assert found["wait"]["command"] == command.format(event=event)
    assert str(order_id) in shown
    assert not command or f"Next: {command.format(event=event)}" in shown


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no_value"),
        (b"\xff", "not_utf8"),
        (b"{", "not_json"),
        (b'{"amount": "7"}', "invalid_data"),
    ],
)
def test_a_record_that_is_no_valid_event_is_found_by_its_header(
    delivery: Delivery, traced: Callable[..., dict[str, Any]], value: bytes | None, reason: str
) -> None:
    (order_id,) = delivery.place(uuid4(), 7)
    ((event_id,),) = delivery.query("orders", "SELECT id FROM outbox")
    delivery.query("orders", "DELETE FROM outbox_pending")
    # The dead letter stores the headers as JSON. PostgreSQL cannot read a NUL in JSON.
    sent_headers = [*headers("order.created", event_id), ("other", b"\0")]
    delivery.produce(ORDERS, Record(value, sent_headers))
    with delivery.consumer("payments"):
        wait_until(
            lambda: delivery.dead_letters("payments") != [], timeout_s=60, what="the dead letter"
        )

    trace = traced(order_id)

    assert names(trace) == ["accepted", "event_added", "dead_letter"]
    assert trace["steps"][-1]["detail"]["reason"] == reason
    assert trace["wait"]["reason"] == "dead_letter"
    assert trace["wait"]["command"] == "inbox-consumer dead-letters show payments 1"


def test_the_next_command_loads_the_environment_of_the_local_system(
    delivery: Delivery,
    settle: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    settings = {service: delivery.settings(service) for service in ("orders", "payments")}
    monkeypatch.setattr(trace_command, "find_settings", lambda: settings)
    (order_id,) = delivery.place(uuid4(), 7)

    shown = settle(
        "trace", str(order_id), KAFKA_BOOTSTRAP_SERVERS="", SETTLE_HOME=str(tmp_path / "a b")
    ).stdout

    assert f"Next: ( . '{tmp_path}/a b/env'; outbox-relay healthcheck orders )" in shown


@pytest.mark.parametrize("id_", ["01980000-0000-7000-8000-000000000000", "no-such-request", "%"])
def test_an_unknown_id_is_reported(settle: Callable[..., Result], id_: str) -> None:
    done = settle("trace", id_)

    assert done.exit_code == 1
    assert f"No order is found by {id_}." in done.stderr
