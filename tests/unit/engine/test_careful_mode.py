"""After a consumer's process died, the next one finds the record that killed it.

A process dies here at the commit that follows a fatal number. Nothing of that batch is committed.
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


class Mortal:
    """A service whose process dies at some numbers, and a record of what it did.

    Attributes:
        fatal: the numbers at which it dies.
        batches: the numbers of each call of the handler.
        stops_at: a number at which the handler asks for a retry, and the process is stopped.
        fails_once_at: a number at which the database fails, once.
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
        """Run a process until it is stopped, or dies; return whether it died."""
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

    def note(self: Transaction, statement: Any, parameters: Any = None) -> Any:
        if "inbox_owners" in str(statement):
            seen.append(str(statement).split()[0])
        return execute(self, statement, parameters)

    monkeypatch.setattr(Transaction, "execute", note)
    return seen


@pytest.mark.parametrize("in_schema", [False, True])
def test_a_record_that_kills_the_process_becomes_a_dead_letter(
    world: World, *, in_schema: bool
) -> None:
    """It kills the process five times: in a batch, in a group, and three times alone."""
    mortal = Mortal(world, 2, in_schema=in_schema)
    mortal.publish(1, 2, 3)

    lives = [mortal.run() for _ in range(6)]

    assert lives == [True] * 5 + [False]
    assert dead_letters(world) == [(0, 1, "process_died")]
    assert world.database.tables.effects == [1, 3]
    assert sorted(world.database.tables.inbox.values()) == ["applied", "applied", "parked"]
    assert world.cluster.group("orders").committed[FIRST].offset == 3
    assert held(world) == []


def test_records_that_kill_the_process_in_two_partitions_are_both_found(world: World) -> None:
    mortal = Mortal(world, 2, 12)
    mortal.publish(1, 2, 3)
    mortal.publish(11, 12, 13, place=SECOND)

    lives = [mortal.run() for _ in range(10)]

    assert lives == [True] * 9 + [False]
    assert sorted(dead_letters(world)) == [(0, 1, "process_died"), (1, 1, "process_died")]
    assert sorted(world.database.tables.effects) == [1, 3, 11, 13]
    assert held(world) == []


def test_careful_mode_ends_after_all_records_that_can_have_killed_the_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspects are applied alone, and others in groups."""
    monkeypatch.setattr(careful_mode, "GROUP_LIMIT", 2)
    mortal = Mortal(world, 1)
    mortal.publish(*range(1, 9))
    assert mortal.run(consumer_batch=3)
    assert mortal.run(consumer_batch=3)
    mortal.fatal.clear()
    mortal.batches.clear()

    mortal.run(consumer_batch=3)

    assert mortal.batches == [[1], [2], [3], [4, 5, 6], [7, 8]]
    assert held(world) == []


def test_kills_at_other_places_count_against_no_record(world: World) -> None:
    """An operator kills the process: in a batch, and then each time at another record."""
    mortal = Mortal(world)
    mortal.publish(1, 2, 3, 4, 5)

    for fatal in (3, 1, 2, 3, 4, 1, 2, 3, 4, 5):
        mortal.fatal = {fatal}
        mortal.run()
    mortal.fatal = set()
    mortal.run()

    assert dead_letters(world) == []
    assert world.database.tables.effects == [1, 2, 3, 4, 5]


def test_a_clean_stop_between_the_deaths_keeps_the_count(world: World) -> None:
    """A deploy and a rebalance are clean stops."""
    mortal = Mortal(world, 2)
    mortal.publish(1, 2)
    for _ in range(4):
        assert mortal.run()
    mortal.fatal.clear()
    mortal.stops_at = 2

    lives = [mortal.run()]
    mortal.fatal, mortal.stops_at = {2}, None
    lives += [mortal.run(), mortal.run()]

    assert lives == [False, True, False]
    assert dead_letters(world) == [(0, 1, "process_died")]


def test_a_record_that_waits_for_the_database_is_not_in_hand(world: World) -> None:
    """So a process that ends meanwhile does not count against the record."""
    mortal = Mortal(world, 1)
    mortal.publish(1)
    assert mortal.run()
    mortal.fatal.clear()
    mortal.fails_once_at = 1
    waiting: list[object] = []

    def is_over() -> bool:
        waiting.extend(row.in_hand for row in world.database.tables.owners.values())
        return bool(world.database.tables.effects)

    world.is_over = is_over

    mortal.run()

    assert mortal.batches == [[1], [1], [1]]
    assert len(waiting) > 1
    assert all(in_hand is None for in_hand in waiting)


def test_a_handler_that_always_kills_the_process_stops_its_subscription(world: World) -> None:
    mortal = Mortal(world, *range(1, 6))
    mortal.publish(*range(1, 6))
    for _ in range(9):
        assert mortal.run(brake_failures=2)
    until = world.clock.monotonic() + 60
    world.is_over = lambda: world.clock.monotonic() > until
    calls = len(mortal.batches)

    died = mortal.run(brake_failures=2)

    assert not died
    assert dead_letters(world) == [(0, 0, "process_died")]
    assert world.database.tables.brakes[TOPIC, NUMBER][2], "the subscription is stopped"
    assert len(mortal.batches) == calls, "the event is not tried in vain"
    assert world.cluster.group("orders").committed[FIRST].offset == 1


def test_normal_batches_cost_no_statement(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mortal = Mortal(world)
    mortal.publish(*range(9))
    statements = statements_on_owners(monkeypatch)

    mortal.run(consumer_batch=1)

    assert len(mortal.batches) == 9
    assert statements == ["UPDATE", "INSERT", "DELETE"]


def test_a_rebalance_releases_and_claims(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mortal = Mortal(world)
    mortal.publish(1)
    statements = statements_on_owners(monkeypatch)
    steps: list[Callable[[], None]] = [
        lambda: mortal.publish(2),
        world.cluster.group("orders").rebalance,
    ]

    def is_over() -> bool:
        if not steps:
            return True
        steps.pop()()
        return False

    world.is_over = is_over

    mortal.run()

    assert mortal.batches == [[1], [2]]
    assert statements == ["UPDATE", "INSERT", "DELETE"] * 2
    assert held(world) == []
