"""The consumer applies records and commits offsets correctly after each kind of failure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from kafka import TopicPartition

from settle_outbox.consume import consumed_topics
from settle_outbox.service import Retry
from support.engine import KilledError
from support.memory_database import unreachable
from support.number_service import TOPIC, number_record, number_service

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from settle_outbox.event import ReceivedEvent
    from support.engine import World

GROUP = "orders"
FIRST, SECOND = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)


@pytest.fixture(autouse=True)
def _topic(world: World) -> None:
    world.cluster.create_topic(TOPIC)


def publish(world: World, *numbers: int, place: TopicPartition = FIRST) -> None:
    for number in numbers:
        record = number_record(number)
        world.cluster.append(TOPIC, record.value, headers=record.headers, partition=place.partition)


def numbers_of(events: Sequence[ReceivedEvent]) -> list[int]:
    return [event.data["number"] for event in events]


def write_numbers(session: Any, events: Sequence[ReceivedEvent]) -> None:
    """Handle events: their numbers are the effects."""
    session.tables.effects.extend(numbers_of(events))


def effects(world: World) -> list[int]:
    return world.database.tables.effects


def dead_letters(world: World) -> list[tuple[int, str]]:
    """Return the offsets and reasons of the dead letters."""
    letters = world.database.tables.dead_letters.values()
    return [(letter["offset"], letter["reason"]) for letter in letters]


def committed(world: World) -> dict[TopicPartition, int]:
    offsets = world.cluster.group(GROUP).committed
    return {place: offset.offset for place, offset in offsets.items()}


def test_the_offsets_of_applied_events_are_committed(world: World) -> None:
    publish(world, 1, 2, 3)
    publish(world, 4, place=SECOND)

    world.consumer(number_service(write_numbers)).run()

    assert effects(world) == [1, 2, 3, 4]
    assert committed(world) == {FIRST: 3, SECOND: 1}


@pytest.mark.parametrize("place", ["consumer.recorded", "consumer.applied", "consumer.committed"])
def test_a_consumer_killed_twice_at_one_place_applies_each_event_once(
    world: World, kill_at: Callable[[str], None], place: str
) -> None:
    """After a death between the commits of database and offsets, records are read again."""
    publish(world, 1, 2, 3)
    for _ in range(2):
        kill_at(place)
        publish(world, *range(10, 13), place=SECOND)
        with pytest.raises(KilledError):
            world.consumer(number_service(write_numbers)).run()

    world.consumer(number_service(write_numbers)).run()

    # The numbers 10 to 12 were published twice, as different events.
    assert sorted(effects(world)) == [1, 2, 3, 10, 10, 11, 11, 12, 12]
    assert committed(world) == {FIRST: 3, SECOND: 6}


def test_events_of_a_partition_that_moves_while_they_are_applied_are_applied_once(
    world: World,
) -> None:
    group = world.cluster.group(GROUP)

    def handle(session: Any, events: Sequence[ReceivedEvent]) -> None:
        if not effects(world):
            group.rebalance(taken=[FIRST])
        write_numbers(session, events)

    def is_over() -> bool:
        if group.taken:
            group.rebalance()  # the other member left without a commit
            return False
        return True

    publish(world, 1, 2, 3)
    world.is_over = is_over

    world.consumer(number_service(handle)).run()

    assert effects(world) == [1, 2, 3]
    assert committed(world) == {FIRST: 3}
    assert len(world.cluster.consumers) == 1, "the consumer stays in the group"


def test_while_one_partition_waits_another_one_continues(world: World) -> None:
    attempts: list[float] = []

    def handle(session: Any, events: Sequence[ReceivedEvent]) -> None:
        if 1 in numbers_of(events) and len(attempts) < 3:
            if len(events) == 1:
                attempts.append(world.clock.monotonic())
            raise Retry(after_s=10.0)
        write_numbers(session, events)

    publish(world, 1, 2, 3)
    publish(world, 4, 5, place=SECOND)
    world.is_over = lambda: len(effects(world)) == 5

    world.consumer(number_service(handle)).run()

    assert effects(world) == [4, 5, 1, 2, 3]
    assert dead_letters(world) == []
    waits = [later - earlier for earlier, later in pairwise(attempts)]
    assert waits == [pytest.approx(10, abs=1), pytest.approx(20, abs=1)]


def test_a_consumer_that_is_killed_while_a_partition_waits_leaves_nothing_out(
    world: World, kill_at: Callable[[str], None]
) -> None:
    def fail_for_two(session: Any, events: Sequence[ReceivedEvent]) -> None:
        if 2 in numbers_of(events):
            raise Retry
        write_numbers(session, events)

    publish(world, 1, 2, 3)
    kill_at("consumer.committed")
    with pytest.raises(KilledError):
        world.consumer(number_service(fail_for_two)).run()
    before = committed(world)

    world.consumer(number_service(write_numbers)).run()

    assert before == {FIRST: 1}
    assert effects(world) == [1, 2, 3]


def test_an_event_that_was_retried_enough_becomes_a_dead_letter(world: World) -> None:
    def handle(session: Any, events: Sequence[ReceivedEvent]) -> None:
        if 2 in numbers_of(events):
            raise Retry
        write_numbers(session, events)

    publish(world, 1, 2, 3)
    world.is_over = lambda: len(effects(world)) == 2

    world.consumer(number_service(handle), retry_attempts=3).run()

    assert effects(world) == [1, 3]
    assert dead_letters(world) == [(1, "retries_exhausted")]
    assert world.database.tables.attempts == {}


def test_a_failed_batch_is_halved_until_the_bad_event_is_alone(world: World) -> None:
    batches: list[list[int]] = []

    def handle(session: Any, events: Sequence[ReceivedEvent]) -> None:
        batches.append(numbers_of(events))
        if 3 in numbers_of(events):
            raise ValueError("three")
        write_numbers(session, events)

    publish(world, 1, 2, 3, 4, 5, 6, 7, 8)

    world.consumer(number_service(handle)).run()

    assert effects(world) == [1, 2, 4, 5, 6, 7, 8]
    assert dead_letters(world) == [(2, "handler_failed")]
    assert batches == [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [1, 2, 3, 4],
        [1, 2],
        [3, 4],
        [3],
        [4],
        [5, 6, 7, 8],
    ]


def test_a_handler_that_fails_for_every_event_stops_its_subscription_and_loses_none(
    world: World,
) -> None:
    mended_at = world.clock.monotonic() + 30
    probes: list[float] = []

    def handle(session: Any, events: Sequence[ReceivedEvent]) -> None:
        if world.clock.monotonic() < mended_at:
            never_failed = ("", 0, False)
            _, _, is_stopped = world.database.tables.brakes.get((TOPIC, "number"), never_failed)
            if is_stopped:
                probes.append(world.clock.monotonic())
            raise ValueError("always")
        write_numbers(session, events)

    publish(world, *range(10))
    world.is_over = lambda: bool(effects(world)) and not world.database.tables.brakes

    world.consumer(number_service(handle), brake_failures=3).run()

    assert dead_letters(world) == [(0, "handler_failed"), (1, "handler_failed")]
    assert effects(world) == list(range(2, 10))
    assert committed(world) == {FIRST: 10}
    assert 3 <= len(probes) <= 6, "the handler is probed, at growing intervals"


def test_a_failed_commit_makes_no_dead_letters(world: World) -> None:
    failures = [unreachable(), unreachable()]

    def fail() -> None:
        if failures:
            raise failures.pop()

    publish(world, 1, 2, 3)
    world.database.before_commit = fail
    world.is_over = lambda: bool(effects(world))

    world.consumer(number_service(write_numbers)).run()

    assert effects(world) == [1, 2, 3]
    assert dead_letters(world) == []
    assert committed(world) == {FIRST: 3}


def test_a_broker_that_stops_before_the_offsets_are_committed_is_waited_for(world: World) -> None:
    def handle(session: Any, events: Sequence[ReceivedEvent]) -> None:
        world.cluster.is_down = True
        write_numbers(session, events)

    publish(world, 1, 2, 3)
    consumer = world.consumer(number_service(handle))
    world.stop.on_wait = lambda _: setattr(world.cluster, "is_down", False)

    consumer.run()

    assert effects(world) == [1, 2, 3]
    assert committed(world) == {FIRST: 3}


def test_a_stopped_consumer_commits_its_batch_and_reads_nothing_more(
    world: World,
) -> None:
    def handle(session: Any, events: Sequence[ReceivedEvent]) -> None:
        world.stop.request()
        write_numbers(session, events)

    publish(world, 1, 2, 3, 4)

    world.consumer(number_service(handle), consumer_batch=2).run()

    assert effects(world) == [1, 2]
    assert committed(world) == {FIRST: 2}


def test_a_topic_that_was_replaced_is_read_from_its_start(world: World) -> None:
    def is_over() -> bool:
        if effects(world) == [1, 2, 3]:
            world.cluster.create_topic(TOPIC)
            publish(world, 4, 5, 6, 7)
            world.clock.advance(consumed_topics.CHECK_INTERVAL_S)
        return 7 in effects(world)

    publish(world, 1, 2, 3)
    world.is_over = is_over

    world.consumer(number_service(write_numbers)).run()

    assert effects(world) == [1, 2, 3, 4, 5, 6, 7]
    assert committed(world) == {FIRST: 4}


def test_a_topic_that_does_not_exist_yet_is_waited_for(world: World) -> None:
    del world.cluster.topics[TOPIC]
    consumer = world.consumer(number_service(write_numbers))

    def create_topic(_seconds: float) -> None:
        world.cluster.create_topic(TOPIC)
        publish(world, 1)

    world.stop.on_wait = create_topic

    consumer.run()

    assert effects(world) == [1]
