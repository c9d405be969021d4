"""A record that kills the consumer's process becomes a dead letter. Later records are applied."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from support import deadly_consumer
from support.delivery import ORDERS, Record, headers
from support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from support.delivery import Delivery, Process

PROGRAM = ("python", deadly_consumer.__file__)
# Processes die once in normal mode, once with a group of records in hand, and three times with only
# this record in hand.
DEATHS = 5


def consumer(
    delivery: Delivery, fatal: str = "", **environ: str
) -> AbstractContextManager[Process]:
    return delivery.process(*PROGRAM, FATAL=fatal, **environ)


def numbers(*wanted: int, partition: int = 0) -> list[Record]:
    return [
        Record(json.dumps({"number": number}).encode(), headers("number"), partition=partition)
        for number in wanted
    ]


def wait_for_death(process: Process) -> None:
    assert process.wait(timeout_s=60) == deadly_consumer.EXIT_CODE, process.lines


def terminate(process: Process) -> None:
    process.signal(signal.SIGTERM)
    assert process.wait() == 0, process.lines


def dead_letters(delivery: Delivery) -> list[tuple[str, int, int, str]]:
    return [
        (letter.reason, letter.partition, letter.offset, letter.state)
        for letter in delivery.dead_letters("orders")
    ]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("place", [{}, {"IN_SCHEMA": "1"}], ids=["in the handler", "in the schema"])
def test_a_record_that_kills_the_process_becomes_a_dead_letter(
    delivery: Delivery, place: dict[str, str]
) -> None:
    delivery.produce(ORDERS, *numbers(1, 2, 3))
    for _ in range(DEATHS):
        with consumer(delivery, "2", **place) as process:
            wait_for_death(process)

    with consumer(delivery, "2", **place) as process:
        wait_until(lambda: delivery.committed("orders") == 3, timeout_s=60, what="all offsets")
        terminate(process)

    assert dead_letters(delivery) == [("process_died", 0, 1, "open")]
    assert delivery.inbox("orders") == {"applied": 2, "parked": 1}
    assert delivery.query("orders", "SELECT FROM inbox_owners") == []


@pytest.mark.timeout(240)
def test_a_record_that_kills_each_process_of_a_group_becomes_a_dead_letter(
    delivery: Delivery,
) -> None:
    """The partition moves to the other process, which dies, too. Another partition goes on."""
    delivery.produce(ORDERS, *numbers(1, 2, 3), *numbers(11, 12, 13, partition=5))
    died: list[Process] = []
    with ExitStack() as running:
        processes = [running.enter_context(consumer(delivery, "2")) for _ in range(2)]

        def all_applied() -> bool:
            for process in list(processes):
                if not process.running:
                    wait_for_death(process)
                    died.append(process)
                    processes.remove(process)
                    processes.append(running.enter_context(consumer(delivery, "2")))
            return delivery.received("orders") == 6

        wait_until(all_applied, timeout_s=200, what="all events")
        wait_until(lambda: delivery.committed("orders") == 6, timeout_s=30, what="the offsets")
        for process in processes:
            terminate(process)

    assert len(died) == DEATHS
    assert dead_letters(delivery) == [("process_died", 0, 1, "open")]
    assert delivery.inbox("orders") == {"applied": 5, "parked": 1}
    assert delivery.query("orders", "SELECT FROM inbox_owners") == []


@pytest.mark.timeout(240)
def test_a_retry_that_kills_the_process_again_is_tried_once(delivery: Delivery) -> None:
    delivery.produce(ORDERS, *numbers(1))
    for _ in range(DEATHS - 1):  # a group of one record already counts as only this record
        with consumer(delivery, "1") as process:
            wait_for_death(process)
    with consumer(delivery, "1") as process:
        wait_until(lambda: delivery.committed("orders") == 1, timeout_s=60, what="the dead letter")
        ask_for_retry(delivery)
        wait_for_death(process)

    with consumer(delivery, "1") as process:
        delivery.produce(ORDERS, *numbers(2))
        wait_until(lambda: delivery.committed("orders") == 2, timeout_s=60, what="the next event")
        delivery.query(
            "orders", "UPDATE dead_letter_requests SET started_at = now() - interval '1 h'"
        )
        process.wait_logged("consumer.repair_abandoned")
        terminate(process)
    failed = [(letter.reason, letter.state) for letter in delivery.dead_letters("orders")]
    with consumer(delivery) as process:
        ask_for_retry(delivery)
        process.wait_logged("consumer.repaired", timeout_s=60)
        terminate(process)

    assert failed == [("process_died", "open")]
    assert [answer for (answer,) in delivery.query("orders", ANSWERS)] == ["failed", "done"]
    assert dead_letters(delivery) == [("process_died", 0, 0, "retried")]
    assert delivery.inbox("orders") == {"applied": 2}


ANSWERS = "SELECT answer FROM dead_letter_requests ORDER BY id"


def ask_for_retry(delivery: Delivery) -> None:
    delivery.query(
        "orders",
        "INSERT INTO dead_letter_requests (dead_letter_id, action)"
        " SELECT id, 'retry' FROM dead_letters",
    )
