"""A consumer whose handler fails keeps polling, keeps its offsets, and reports why it waits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

import settle_outbox as outbox
from settle_outbox import Event, Retry, Service, Subscription
from settle_outbox.consume import failures as engine_failures
from support.delivery import ORDERS, Delivery, Record, headers, read_health
from support.number_service import NUMBER, NumberSchema
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sqlalchemy.orm import Session

    from settle_outbox import Handler, ReceivedEvent


STOPPED = "SELECT topic FROM inbox_brakes WHERE stopped_at IS NOT NULL"


def service_of(handle: Handler) -> Service:
    return Service("orders", ("orders",), (Subscription(ORDERS, NUMBER, NumberSchema(), handle),))


def numbers(count: int, *, first: int = 0) -> list[Record]:
    """Return records with consecutive numbers, all for one partition."""
    return [
        Record(json.dumps({"number": number}).encode(), headers(NUMBER))
        for number in range(first, first + count)
    ]


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Callable[[str], list[str]]:
    """Return a function that returns the lines of a log event until now."""
    seen: list[str] = []

    def of(event: str) -> list[str]:
        seen.extend(capfd.readouterr().out.splitlines())
        return [line for line in seen if f"event={event}" in line]

    return of


def health(folder: Path) -> dict[str, Any]:
    written = read_health(folder, "inbox-consumer-orders")
    assert written
    found: dict[str, Any] = json.loads(written)
    return found


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the consumer try a stopped subscription again after 0.2 s."""
    monkeypatch.setattr(engine_failures, "_PROBE_FIRST_S", 0.2)


def test_a_stopped_subscription_keeps_its_offsets_and_continues_after_the_fix(
    delivery: Delivery, tmp_path: Path, quick_probes: None
) -> None:
    defect = {"there": True}

    def handle(_: Session, events: Sequence[ReceivedEvent]) -> None:
        if defect["there"]:
            raise RuntimeError(f"cannot do {events[0].data['number']}")

    delivery.produce(ORDERS, *numbers(50))
    with delivery.consumer(service_of(handle), brake_failures=5, health_dir=str(tmp_path)):
        wait_until(lambda: health(tmp_path)["state"] == "stopped", timeout_s=30)
        assert "number is stopped: builtins.RuntimeError" in health(tmp_path)["detail"]
        # The fifth failure stops the subscription, so the fifth event is no dead letter.
        assert delivery.committed("orders") == 4
        assert len(delivery.dead_letters("orders")) == 4

        defect["there"] = False
        wait_until(lambda: delivery.received("orders") == 50, timeout_s=30)
        wait_until(lambda: health(tmp_path)["state"] == "ready")
        wait_until(lambda: delivery.committed("orders") == 50)
    assert delivery.inbox("orders") == {"applied": 46, "parked": 4}


def test_an_operator_resumes_a_stopped_subscription(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the command, the consumer continues without waiting 300 s for its next probe."""
    monkeypatch.setattr(engine_failures, "_PROBE_FIRST_S", 300.0)
    defect = {"there": True}

    def handle(_: Session, __: Sequence[ReceivedEvent]) -> None:
        if defect["there"]:
            raise RuntimeError("cannot")

    delivery.produce(ORDERS, *numbers(9))
    with delivery.consumer(service_of(handle), brake_failures=3):
        wait_until(
            lambda: delivery.query(
                "orders", "SELECT FROM inbox_brakes WHERE stopped_at > '-infinity'"
            ),
            timeout_s=30,
        )
        defect["there"] = False
        done = delivery.run("inbox-consumer", "resume", "orders")
        wait_until(lambda: delivery.received("orders") == 9, timeout_s=30)
    again = delivery.run("inbox-consumer", "resume", "orders")
    unknown = delivery.run("inbox-consumer", "resume", "orders", "--type", "order.eaten")

    assert (done.returncode, done.stdout) == (0, "number of orders.events is resumed.\n")
    assert again.stdout == "No subscription of orders is stopped.\n"
    assert unknown.returncode == 1
    assert "payment.failed, payment.succeeded" in unknown.stderr
    assert delivery.inbox("orders") == {"applied": 7, "parked": 2}


def test_a_retry_pauses_only_its_own_partition(delivery: Delivery, tmp_path: Path) -> None:
    bank = {"is_closed": True}

    def handle(_: Session, events: Sequence[ReceivedEvent]) -> None:
        if bank["is_closed"] and any(event.data["number"] == 1 for event in events):
            raise Retry("the bank is closed", after_s=0.1)

    paused = [Record(each.value, each.headers, partition=0) for each in numbers(3)]
    others = [Record(each.value, each.headers, partition=5) for each in numbers(3, first=10)]
    delivery.produce(ORDERS, *paused, *others)
    with delivery.consumer(service_of(handle), retry_attempts=100, health_dir=str(tmp_path)):
        # Number 0 and the other partition. Number 1 waits, and number 2 waits behind it.
        wait_until(lambda: delivery.received("orders") == 4, timeout_s=30)
        wait_until(lambda: "waits for attempt" in health(tmp_path)["detail"])
        assert health(tmp_path)["state"] == "waiting"
        assert delivery.committed("orders") == 4
        bank["is_closed"] = False
        wait_until(lambda: delivery.received("orders") == 6, timeout_s=30)
        wait_until(lambda: delivery.committed("orders") == 6)
    assert delivery.inbox("orders") == {"applied": 6}


def test_an_unexpected_exception_does_not_end_the_consumer(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch, logged: Callable[[str], list[str]]
) -> None:
    failures = iter([KeyError("unforeseen"), AssertionError("unforeseen")])

    def fail(_: str) -> None:
        for error in failures:
            raise error

    monkeypatch.setattr("settle_outbox.consume.consumer.failpoint", fail)
    delivery.produce(ORDERS, *numbers(3))
    with delivery.consumer(service_of(lambda _session, _events: None)):
        wait_until(lambda: delivery.committed("orders") == 3, timeout_s=30)

    assert logged("consumer.loop_down")
    assert delivery.inbox("orders") == {"applied": 3}


def test_events_that_a_handler_adds_wake_the_relay(delivery: Delivery) -> None:
    def handle(session: Session, events: Sequence[ReceivedEvent]) -> None:
        for event in events:
            with session.begin_nested():
                outbox.add(session, Event("orders", "a", "told", {"n": event.data["number"]}))

    # The poll interval is longer than the waits below, so only a notification can wake the relay.
    with delivery.process("outbox-relay", "run", "orders", RELAY_POLL_S="60") as relay:
        delivery.add("a", 0)
        relay.wait_logged("relay.sent")  # the relay is listening now
        with delivery.consumer(service_of(handle)):
            delivery.produce(ORDERS, *numbers(1))
            wait_until(lambda: delivery.received("orders") >= 1, timeout_s=30)
            delivery.wait_sent("orders", timeout_s=30)


def test_a_missing_table_is_logged_and_waited_for(
    delivery: Delivery, logged: Callable[[str], list[str]]
) -> None:
    """The partitions wait until the table exists, and no event becomes a dead letter."""

    def handle(session: Session, _: Sequence[ReceivedEvent]) -> None:
        session.execute(text("TABLE not_migrated_yet"))

    delivery.produce(ORDERS, *numbers(3))
    with delivery.consumer(service_of(handle)):
        wait_until(lambda: logged("consumer.database_refused"), timeout_s=30)
        delivery.query("orders", "CREATE TABLE not_migrated_yet ()")
        wait_until(lambda: delivery.received("orders") == 3, timeout_s=30)

    (line,) = logged("consumer.database_refused")
    assert "sqlstate=42P01" in line
    assert "not_migrated_yet" in line
    assert delivery.dead_letters("orders") == []


def test_temporary_tables_of_a_handler_do_not_block_later_events(
    delivery: Delivery,
) -> None:
    def handle(session: Session, events: Sequence[ReceivedEvent]) -> None:
        if events[0].data["number"] == 0:
            # This table hides the engine's table `inbox` from this database session.
            session.execute(text("CREATE TEMP TABLE inbox (id uuid)"))

    with delivery.consumer(service_of(handle)):
        delivery.produce(ORDERS, *numbers(1))
        wait_until(lambda: delivery.received("orders") == 1, timeout_s=30)
        delivery.produce(ORDERS, *numbers(2, first=1))
        wait_until(lambda: delivery.received("orders") == 3, timeout_s=30)

    assert delivery.inbox("orders") == {"applied": 3}
