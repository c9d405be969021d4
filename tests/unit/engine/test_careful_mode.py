"""Careful mode finds the record that kills the process of a consumer.

A process dies here when it validates a fatal number, or at the commit after it. Nothing of that
batch is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from kafka import TopicPartition

from settle_outbox import Retry, Service, Subscription
from settle_outbox.consume import careful_mode
from support.engine import KilledError
from support.memory_database import Transaction, unreachable
from support.number_service import NUMBER, TOPIC, number_record, number_service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from settle_outbox.event import ReceivedEvent
    from support.engine import World

FIRST, SECOND = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)
# The statements on inbox_owners.
CLAIM_AND_RELEASE = ["UPDATE", "INSERT", "DELETE"]


class DeadlyService:
    """A service whose process dies at some numbers.

    Attributes:
        fatal: the numbers at which the process dies.
        batches: the numbers of each call of the handler.
        stops_at: a number at which the handler asks for a retry, and the process is stopped.
        fails_once_at: a number at which the database fails once.
    """

    def __init__(self, world: World, *fatal: int, in_schema: bool = False) -> None:
        self.fatal = set(fatal)
        self.batches: list[list[int]] = []
        self.stops_at: int | None = None
        self.fails_once_at: int | None = None
        self._world = world
        self._in_schema = in_schema
        self._is_dead = False
        self._is_failing = False
        world.database.before_commit = self._before_commit
        world.cluster.create_topic(TOPIC)

    def publish(self, *numbers: int, place: TopicPartition = FIRST) -> None:
        for number in numbers:
            record = number_record(number)
            self._world.cluster.append(
                TOPIC, record.value, headers=record.headers, partition=place.partition
            )

    def run(self, **settings: Any) -> bool:
        """Run a process until it is stopped or dies, and return whether it died."""
        self._is_dead = False
        service = number_service(self._handle)
        if self._in_schema:
            service = Service(
                "orders", (), (Subscription(TOPIC, NUMBER, self._validate, self._handle),)
            )
        try:
            self._world.consumer(service, **settings).run()
        except KilledError:
            return True
        return False

    def _validate(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if data["number"] in self.fatal:
            self._is_dead = True
            raise KilledError
        return data

    def _handle(self, session: Any, events: Sequence[ReceivedEvent]) -> None:
        numbers = [event.data["number"] for event in events]
        self.batches.append(numbers)
        if self.fatal & set(numbers):
            self._is_dead = True
        if self.stops_at in numbers:
            self._world.stop.request()
            raise Retry
        if self.fails_once_at in numbers:
            self._is_failing, self.fails_once_at = True, None
        session.tables.effects.extend(numbers)

    def _before_commit(self) -> None:
        if self._is_dead:
            raise KilledError
        if self._is_failing:
            self._is_failing = False
            raise unreachable()


def dead_letters(world: World) -> list[tuple[int, int, str]]:
    """Return the partitions, offsets and reasons of the dead letters."""
    letters = world.database.tables.dead_letters.values()
    return [(letter["partition"], letter["offset"], letter["reason"]) for letter in letters]


def held(world: World) -> list[tuple[str, int]]:
    return sorted(world.database.tables.owners)


def statements_on_owners(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    execute: Callable[..., Any] = Transaction.execute

    def record_statement(self: Transaction, statement: Any, parameters: Any = None) -> Any:
        if "inbox_owners" in str(statement):
            seen.append(str(statement).split()[0])
        return execute(self, statement, parameters)

    monkeypatch.setattr(Transaction, "execute", record_statement)
    return seen


@pytest.mark.parametrize("in_schema", [False, True])
def test_a_record_that_kills_the_process_becomes_a_dead_letter(
    world: World, *, in_schema: bool
) -> None:
    """The record kills the process five times: in a batch, in a group, and three times alone."""
    deadly = DeadlyService(world, 2, in_schema=in_schema)
    deadly.publish(1, 2, 3)

    died = [deadly.run() for _ in range(6)]

    assert died == [True] * 5 + [False]
    assert dead_letters(world) == [(0, 1, "process_died")]
    assert world.database.tables.effects == [1, 3]
    assert sorted(world.database.tables.inbox.values()) == ["applied", "applied", "parked"]
    assert world.cluster.group("orders").committed[FIRST].offset == 3
    assert held(world) == []


def test_records_that_kill_the_process_in_two_partitions_are_both_found(world: World) -> None:
    """The first batch has both. Then each kills the process in a group, and three times alone."""
    deadly = DeadlyService(world, 2, 12)
    deadly.publish(1, 2, 3)
    deadly.publish(11, 12, 13, place=SECOND)

    died = [deadly.run() for _ in range(10)]

    assert died == [True] * 9 + [False]
    assert sorted(dead_letters(world)) == [(0, 1, "process_died"), (1, 1, "process_died")]
    assert sorted(world.database.tables.effects) == [1, 3, 11, 13]
    assert held(world) == []


def test_careful_mode_ends_after_all_records_that_can_have_killed_the_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process dies with the batch 1, 2, 3, and the second one with the group 1, 2."""
    monkeypatch.setattr(careful_mode, "GROUP_LIMIT", 2)
    deadly = DeadlyService(world, 1)
    deadly.publish(*range(1, 9))
    assert deadly.run(consumer_batch=3)
    assert deadly.run(consumer_batch=3)
    deadly.fatal.clear()
    deadly.batches.clear()

    deadly.run(consumer_batch=3)

    assert deadly.batches == [[1], [2], [3], [4, 5, 6], [7, 8]]
    assert held(world) == []


def test_deaths_with_different_records_in_hand_make_no_dead_letter(world: World) -> None:
    """For example, an operator kills the process several times, each time at another record."""
    deadly = DeadlyService(world)
    deadly.publish(1, 2, 3, 4, 5)

    for fatal in (3, 1, 2, 3, 4, 1, 2, 3, 4, 5):
        deadly.fatal = {fatal}
        deadly.run()
    deadly.fatal = set()
    deadly.run()

    assert dead_letters(world) == []
    assert world.database.tables.effects == [1, 2, 3, 4, 5]


def test_a_clean_stop_between_the_deaths_keeps_the_count(world: World) -> None:
    """A deploy and a rebalance are clean stops."""
    deadly = DeadlyService(world, 2)
    deadly.publish(1, 2)
    for _ in range(4):
        assert deadly.run()
    deadly.fatal.clear()
    deadly.stops_at = 2

    died = [deadly.run()]
    deadly.fatal, deadly.stops_at = {2}, None
    died += [deadly.run(), deadly.run()]

    assert died == [False, True, False]
    assert dead_letters(world) == [(0, 1, "process_died")]


def test_a_record_that_waits_for_the_database_is_not_in_hand(world: World) -> None:
    """If the process ends during the wait, that does not count against the record."""
    deadly = DeadlyService(world, 1)
    deadly.publish(1)
    assert deadly.run()
    deadly.fatal.clear()
    deadly.fails_once_at = 1
    waiting: list[object] = []

    def is_over() -> bool:
        waiting.extend(row.in_hand for row in world.database.tables.owners.values())
        return bool(world.database.tables.effects)

    world.is_over = is_over

    deadly.run()

    assert deadly.batches == [[1], [1], [1]]
    assert len(waiting) > 1
    assert all(in_hand is None for in_hand in waiting)


def test_a_handler_that_always_kills_the_process_stops_its_subscription(world: World) -> None:
    """The first record becomes a dead letter, and the second one reaches `brake_failures`."""
    deadly = DeadlyService(world, *range(1, 6))
    deadly.publish(*range(1, 6))
    for _ in range(9):
        assert deadly.run(brake_failures=2)
    until = world.clock.monotonic() + 60
    world.is_over = lambda: world.clock.monotonic() > until
    calls = len(deadly.batches)

    is_dead = deadly.run(brake_failures=2)

    assert not is_dead
    assert dead_letters(world) == [(0, 0, "process_died")]
    assert world.database.tables.brakes[TOPIC, NUMBER][2], "the subscription is stopped"
    assert len(deadly.batches) == calls, "the handler is not called again"
    assert world.cluster.group("orders").committed[FIRST].offset == 1


def test_normal_batches_add_no_statement_on_owners(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = DeadlyService(world)
    deadly.publish(*range(9))
    statements = statements_on_owners(monkeypatch)

    deadly.run(consumer_batch=1)

    assert len(deadly.batches) == 9
    assert statements == CLAIM_AND_RELEASE


def test_a_rebalance_releases_and_claims_partitions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = DeadlyService(world)
    deadly.publish(1)
    statements = statements_on_owners(monkeypatch)
    steps: list[Callable[[], None]] = [
        lambda: deadly.publish(2),
        world.cluster.group("orders").rebalance,
    ]

    def is_over() -> bool:
        if not steps:
            return True
        steps.pop()()
        return False

    world.is_over = is_over

    deadly.run()

    assert deadly.batches == [[1], [2]]
    assert statements == CLAIM_AND_RELEASE * 2
    assert held(world) == []
