"""The relay sends events in order and marks them correctly after each kind of failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from settle_outbox.publish import relay as relay_module
from support.engine import KilledError
from support.memory_database import unreachable
from support.memory_kafka import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.engine import World

ORDERS = "orders.events"
EVENTS = [b"1", b"2", b"3", b"4", b"5", b"6"]


def first_appearances(world: World) -> dict[str, list[bytes]]:
    """Return the events of each key in the order in which they first appear in the topic."""
    found: dict[str, list[bytes]] = {}
    for record in world.cluster.records(ORDERS):
        of_key = found.setdefault(record.key.decode(), [])
        if record.value not in of_key:
            of_key.append(record.value)
    return found


def fail_once(batch: int, failure: Failure) -> Callable[[int, list[bytes]], Failure | None]:
    """Make one batch of the producer fail. The first batch has the number 1."""
    return lambda number, _: failure if number == batch else None


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("is_stored", [False, True], ids=["batch lost", "answer lost"])
def test_each_key_keeps_its_order_after_a_batch_failed(
    world: World, batch: int, *, is_stored: bool
) -> None:
    """The producer would continue with the partition's next batch, but the fence stops it."""
    world.database.add("a", *EVENTS)
    world.database.add("b", *EVENTS)
    world.cluster.answer = fail_once(batch, Failure(KafkaTimeoutError(), is_stored))

    world.relay().run()

    assert first_appearances(world) == {"a": EVENTS, "b": EVENTS}
    assert world.database.tables.pending == set()


def test_the_first_failure_stops_the_producer_before_its_next_batch(world: World) -> None:
    asked: list[list[bytes]] = []

    def answer(number: int, values: list[bytes]) -> Failure | None:
        asked.append(values)
        return Failure(KafkaTimeoutError()) if number == 2 else None

    world.database.add("a", *EVENTS)
    world.cluster.answer = answer

    world.relay().run()

    assert asked == [[b"1", b"2"], [b"3", b"4"], [b"3", b"4"], [b"5", b"6"]]


def test_only_acknowledged_events_are_marked_and_the_others_are_sent_again(
    world: World, kill_at: Callable[[str], None]
) -> None:
    world.database.add("a", *EVENTS)
    world.cluster.answer = fail_once(2, Failure(KafkaTimeoutError()))
    kill_at("relay.marked")

    with pytest.raises(KilledError):
        world.relay().run()
    pending = set(world.database.tables.pending)
    world.relay().run()

    assert pending == {3, 4, 5, 6}
    assert [record.value for record in world.cluster.records(ORDERS)] == EVENTS


@pytest.mark.parametrize("place", ["relay.locked", "relay.sent", "relay.marked"])
def test_a_relay_that_is_killed_leaves_its_events_to_the_next(
    world: World, kill_at: Callable[[str], None], place: str
) -> None:
    world.database.add("a", *EVENTS)
    kill_at(place)

    with pytest.raises(KilledError):
        world.relay().run()
    world.relay().run()

    assert first_appearances(world) == {"a": EVENTS}
    assert world.database.tables.pending == set()


def test_a_transaction_that_fails_is_repeated_with_another_producer(world: World) -> None:
    failures = [unreachable()]
    connections_before: list[object] = []

    def fail_after_sending() -> None:
        if failures and ORDERS in world.cluster.topics and world.cluster.records(ORDERS):
            connections_before.extend(world.cluster.connections)
            raise failures.pop()

    world.database.add("a", *EVENTS)
    world.database.before_commit = fail_after_sending

    world.relay().run()

    sent = [record.value for record in world.cluster.records(ORDERS)]
    assert sent == [*EVENTS, *EVENTS]
    assert world.database.tables.pending == set()
    assert len(connections_before) == 1
    assert len(world.cluster.connections) == 2, "each producer opens one"


def test_the_event_that_the_broker_rejects_is_found_and_the_others_are_sent(world: World) -> None:
    world.database.add("a", *EVENTS)
    world.cluster.answer = lambda _, values: (
        Failure(MessageSizeTooLargeError()) if b"3" in values else None
    )

    world.relay().run()

    assert list(world.database.tables.refused) == [3]
    assert "MessageSizeTooLargeError" in world.database.tables.refused[3]
    assert first_appearances(world) == {"a": [b"1", b"2", b"4", b"5", b"6"]}
    assert world.database.tables.pending == set()


def test_an_event_that_cannot_be_encoded_does_not_hold_up_the_others(world: World) -> None:
    world.database.add("a", b"1", b"none", b"2")
    world.cluster.unsendable = {b"none"}

    world.relay().run()

    assert list(world.database.tables.refused) == [2]
    assert first_appearances(world) == {"a": [b"1", b"2"]}


def test_an_undeclared_aggregatetype_does_not_hold_up_the_others(world: World) -> None:
    world.database.add("a", b"1", aggregatetype="unknown")
    world.database.add("a", b"2")

    world.relay().run()

    assert list(world.database.tables.refused) == [1]
    assert first_appearances(world) == {"a": [b"2"]}


def test_a_producer_whose_connection_ended_sends_nothing_more(world: World) -> None:
    """The next connection may lead to an emptied broker, which can drop events as duplicates."""

    def is_over() -> bool:
        if len(world.database.tables.outbox) == 2:
            return True
        world.cluster.cut_connections()
        world.database.add("a", b"2")
        return False

    world.database.add("a", b"1")
    world.is_over = is_over

    world.relay().run()

    assert first_appearances(world) == {"a": [b"1", b"2"]}
    assert len(world.cluster.connections) == 1, "no other producer was made"


def test_the_events_of_a_topic_that_was_replaced_are_sent_again(world: World) -> None:
    def is_over() -> bool:
        if len(world.database.tables.outbox) == 7:
            return not world.database.tables.pending
        world.cluster.create_topic(ORDERS)
        world.clock.advance(relay_module.TOPIC_CHECK_INTERVAL_S)
        world.database.add("a", b"7")
        return False

    world.database.add("a", *EVENTS)
    world.is_over = is_over

    world.relay().run()

    assert first_appearances(world) == {"a": [*EVENTS, b"7"]}


def test_a_broker_that_is_down_is_waited_for(world: World) -> None:
    world.database.add("a", *EVENTS)
    world.cluster.is_down = True
    waits: list[float] = []
    relay = world.relay()

    def note(seconds: float) -> None:
        waits.append(seconds)
        world.cluster.is_down = len(waits) < 10

    world.stop.on_wait = note

    relay.run()

    assert first_appearances(world) == {"a": EVENTS}
    assert len(waits) == 10
    assert waits[0] < 0.2
    assert max(waits) <= 5


def test_a_stopped_relay_marks_the_sent_events_and_reads_nothing_more(world: World) -> None:
    world.database.add("a", *EVENTS)

    def stop_meanwhile(_number: int, _values: list[bytes]) -> None:
        world.stop.request()

    world.cluster.answer = stop_meanwhile

    world.relay(relay_batch=2).run()

    sent = [record.value for record in world.cluster.records(ORDERS)]
    assert sent == [b"1", b"2"]
    assert world.database.tables.pending == {3, 4, 5, 6}
