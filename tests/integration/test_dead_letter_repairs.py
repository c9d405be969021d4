"""Each request to retry, discard or restore a dead letter is carried out at most once.

This holds even if a process dies.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from structlog.testing import capture_logs
from uuid_utils.compat import uuid7

from settle_outbox import Outcome, Verdict
from settle_outbox.consume import repair_requests, repairs
from settle_outbox.consume.dead_letters import (
    DeadLetterFilter,
    State,
    fingerprint,
    read_groups,
    read_ids,
    read_newest,
    record_of,
)
from settle_outbox.consume.repair_requests import Action, Answer, Repair, add_requests
from settle_outbox.consume.repairs import Repaired, Repairs
from settle_outbox.storage.database import make_sessions
from support.number_service import (
    empty,
    handler_engine,
    make_applier,
    number_record,
    number_service,
    write_down,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from settle_outbox import ReceivedEvent

pytestmark = pytest.mark.usefixtures("plain_logs")

DAY_S = 86_400


class KilledError(BaseException):
    """Simulate SIGKILL: no error handler of the engine catches it."""


class RepairHarness:
    """A service, its database and its repairs. The handler fails until `fix_handler` is called.

    Attributes:
        before_write: Called with each number before the handler stores it.
        verdict: The verdict that the handler returns for each event.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.before_write: Callable[[int], None] = self._fail
        self.verdict: Verdict | None = None
        self.service = number_service(self._handle)
        self.applier = make_applier(self.service, engine)
        self.repairs = self.new_repairs(engine)

    def new_repairs(self, engine: Engine) -> Repairs:
        sessions = make_sessions(engine)
        sessions.configure(close_resets_only=False)
        return Repairs(self.service, sessions, retention_s=DAY_S)

    def _fail(self, number: int) -> None:
        raise RuntimeError(f"cannot write {number} down")

    def _handle(
        self, session: Session, events: Sequence[ReceivedEvent]
    ) -> Mapping[UUID, Verdict] | None:
        for event in events:
            self.before_write(event.data["number"])
            write_down(session, event.data["number"])
        return {event.id: self.verdict for event in events if self.verdict}

    def fix_handler(self) -> None:
        self.before_write = lambda _: None

    def receive(self, *records: ConsumerRecord) -> None:
        self.applier.apply(records)

    def repair(self, action: Action, dead_letter_id: int = 1, *, force: bool = False) -> Repaired:
        return self.repairs.carry_out(dead_letter_id, Repair(action, "ann", "a note", force))

    def ask(self, statement: str, **parameters: Any) -> list[Any]:
        """Run a statement on a separate connection, and return its rows.

        A row of one column is returned as its value.
        """
        other = create_engine(self.engine.url)
        with other.begin() as connection:
            result = connection.execute(text(statement), parameters)
            found = [tuple(row) for row in result] if result.returns_rows else []
        other.dispose()
        return [row[0] if len(row) == 1 else row for row in found]

    def effects(self) -> list[int]:
        return self.ask("SELECT number FROM effects ORDER BY 1")

    def states(self) -> list[str]:
        return self.ask("SELECT state FROM dead_letters ORDER BY id")


@pytest.fixture
def harness(database_url: str) -> Iterator[RepairHarness]:
    """Return a harness with an empty database."""
    with handler_engine(database_url, lock_timeout="500") as engine:
        empty(engine)
        yield RepairHarness(engine)


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that simulates SIGKILL at a failpoint."""

    def arm(wanted: str) -> None:
        def failpoint(name: str) -> None:
            if name == wanted:
                raise KilledError(name)

        monkeypatch.setattr(repairs, "failpoint", failpoint)

    return arm


@contextmanager
def second_engine(harness: RepairHarness) -> Iterator[Engine]:
    with handler_engine(harness.engine.url.render_as_string(hide_password=False)) as engine:
        yield engine


def test_a_retry_applies_the_event_after_its_handler_is_fixed(harness: RepairHarness) -> None:
    record = number_record(1, request_id="r-1")
    harness.receive(record)
    harness.fix_handler()

    repaired = harness.repair(Action.RETRY)

    assert repaired == Repaired(1, Answer.DONE, "Applied.")
    assert harness.effects() == [1]
    assert harness.ask("SELECT outcome, key FROM inbox") == [("applied", "key")]
    assert harness.states() == [State.RETRIED]
    harness.receive(record)
    assert harness.effects() == [1]
    assert harness.states() == [State.RETRIED]


def test_a_failed_retry_leaves_the_dead_letter_open_with_the_reason(harness: RepairHarness) -> None:
    harness.receive(number_record(1))

    repaired = harness.repair(Action.RETRY)

    assert repaired.answer is Answer.FAILED
    assert repaired.detail == "RuntimeError: cannot write 1 down"
    assert harness.effects() == []
    assert harness.ask("SELECT outcome FROM inbox") == ["parked"]
    with harness.engine.connect() as connection:
        (letter,) = read_newest(connection, DeadLetterFilter(), limit=9)
    assert (letter["state"], letter["attempts"], letter["last_answer"]) == ("open", 1, "failed")
    assert (letter["last_by"], letter["last_note"]) == ("ann", "a note")
    assert letter["last_detail"] == repaired.detail


def test_a_retry_fails_if_its_handler_ends_the_transaction(harness: RepairHarness) -> None:
    harness.receive(number_record(1))

    def handle(session: Session, events: Sequence[ReceivedEvent]) -> None:
        write_down(session, events[0].data["number"])
        session.commit()

    harness.service = number_service(handle)
    harness.repairs = harness.new_repairs(harness.engine)

    repaired = harness.repair(Action.RETRY)

    assert repaired.answer is Answer.FAILED
    assert harness.effects() == []
    assert harness.states() == [State.OPEN]


def test_a_dead_letter_is_not_retried_before_an_older_one_of_its_key(
    harness: RepairHarness,
) -> None:
    harness.receive(number_record(1), number_record(2), number_record(3, key=b"other"))
    harness.fix_handler()

    too_early = harness.repair(Action.RETRY, 2)
    other_key = harness.repair(Action.RETRY, 3)
    forced = harness.repair(Action.RETRY, 2, force=True)
    older = harness.repair(Action.RETRY, 1)

    assert too_early.answer is Answer.REFUSED
    assert "1 older dead letters of the same key are open, the oldest is 1" in too_early.detail
    assert [other_key.answer, forced.answer, older.answer] == [Answer.DONE] * 3
    assert older.detail == "Applied. 1 later events of its key were applied before it."
    assert harness.effects() == [1, 2, 3]


def test_an_event_parked_by_its_handler_is_retried_only_by_force(harness: RepairHarness) -> None:
    harness.fix_handler()
    harness.verdict = Verdict(Outcome.PARKED, "unknown_order", "There is no such order.")
    harness.receive(number_record(1))
    harness.ask("DELETE FROM effects")

    refused = harness.repair(Action.RETRY)
    decided_again = harness.repair(Action.RETRY, force=True)
    harness.verdict = None
    applied = harness.repair(Action.RETRY, force=True)

    assert refused.answer is Answer.REFUSED
    assert decided_again == Repaired(1, Answer.FAILED, "unknown_order: There is no such order.")
    assert applied.answer is Answer.DONE
    assert harness.effects() == [1]


def test_an_anomaly_that_a_retry_finds_is_recorded(harness: RepairHarness) -> None:
    harness.receive(number_record(1))
    harness.fix_handler()
    harness.verdict = Verdict(Outcome.ANOMALY, "already_final", "It is final.")

    repaired = harness.repair(Action.RETRY)

    assert repaired.answer is Answer.DONE
    assert "already_final" in repaired.detail
    assert harness.ask("SELECT outcome FROM inbox") == ["anomaly"]
    assert harness.states() == [State.RETRIED]


def test_a_retry_of_an_invalid_record_leaves_the_dead_letter_open(harness: RepairHarness) -> None:
    harness.receive(number_record("three", offset=3))

    invalid = harness.repair(Action.RETRY)

    assert invalid.answer is Answer.FAILED
    assert invalid.detail.startswith("invalid_data: ")
    assert harness.ask("SELECT count(*) FROM inbox") == [0]
    assert harness.states() == [State.OPEN]


def test_an_event_applied_from_another_record_is_not_applied_twice(harness: RepairHarness) -> None:
    event_id = uuid7()
    harness.receive(number_record("one", offset=1, event_id=event_id))
    harness.fix_handler()
    harness.receive(number_record(1, offset=2, event_id=event_id))
    harness.ask(
        "UPDATE dead_letters SET value = convert_to(:value, 'UTF8')", value='{"number": 1}'
    )  # simulates a schema that accepts the value now

    repaired = harness.repair(Action.RETRY)

    assert repaired.detail == "The event was applied meanwhile, from another record."
    assert harness.effects() == [1]
    assert harness.states() == [State.RETRIED]


def test_an_event_older_than_the_inbox_is_retried_only_by_force(harness: RepairHarness) -> None:
    harness.receive(number_record(1))
    harness.fix_handler()
    harness.ask("DELETE FROM inbox")
    harness.ask("INSERT INTO inbox_horizon (before) VALUES (:id)", id=uuid7())

    refused = harness.repair(Action.RETRY)
    forced = harness.repair(Action.RETRY, force=True)

    assert refused.answer is Answer.REFUSED
    assert "older than the inbox" in refused.detail
    assert forced.answer is Answer.DONE
    assert harness.effects() == [1]


def test_a_discarded_dead_letter_is_not_retried_until_it_is_restored(
    harness: RepairHarness,
) -> None:
    harness.receive(number_record(1))
    harness.fix_handler()

    answers = [
        harness.repair(action).answer
        for action in (
            Action.RESTORE,
            Action.DISCARD,
            Action.DISCARD,
            Action.RETRY,
            Action.RESTORE,
            Action.RETRY,
            Action.RESTORE,
        )
    ]

    done, refused = Answer.DONE, Answer.REFUSED
    assert answers == [refused, done, refused, refused, done, done, refused]
    assert harness.effects() == [1]
    assert harness.states() == [State.RETRIED]


def test_the_record_of_a_dead_letter_is_kept_unchanged(harness: RepairHarness) -> None:
    record = number_record(1)._replace(
        headers=[*number_record(1).headers, ("raw", b"\xff\x00"), ("none", None), ("raw", b"")],
        timestamp=1_700_000_000_000,
    )

    harness.receive(record)

    with harness.engine.connect() as connection:
        (letter,) = read_newest(connection, DeadLetterFilter(), limit=9)
    assert fingerprint(record_of(letter)) == fingerprint(record)


def test_a_consumer_carries_out_requests_in_their_order(harness: RepairHarness) -> None:
    harness.receive(*[number_record(number) for number in (1, 2, 3)])
    harness.fix_handler()
    with harness.engine.begin() as connection:
        add_requests(connection, [1, 2, 3], Repair(Action.RETRY, "console"))

    with capture_logs() as logged:
        harness.repairs.carry_out_unclaimed()

    assert harness.effects() == [1, 2, 3]
    assert harness.ask("SELECT answer FROM dead_letter_requests ORDER BY id") == ["done"] * 3
    repaired = [line for line in logged if line["event"] == "consumer.repaired"]
    assert [line["dead_letter"] for line in repaired] == [1, 2, 3]
    assert {line["requested_by"] for line in repaired} == {"console"}


def test_consumers_carry_out_requests_one_after_another(harness: RepairHarness) -> None:
    """Two consumers at the same time could apply the events of a key in the wrong order."""
    harness.receive(number_record(1), number_record(2))
    with second_engine(harness) as other:
        second_repairs = harness.new_repairs(other)
        unanswered: list[list[int]] = []

        def meanwhile(number: int) -> None:
            if number == 1:
                second_repairs.carry_out_unclaimed()
                unanswered.append(
                    harness.ask(
                        "SELECT id FROM dead_letter_requests WHERE answer IS NULL ORDER BY id"
                    )
                )

        harness.before_write = meanwhile
        with harness.engine.begin() as connection:
            add_requests(connection, [1, 2], Repair(Action.RETRY, "console", force=True))
        harness.repairs.carry_out_unclaimed()

    assert unanswered == [[1, 2]]  # the second consumer has carried out nothing
    assert harness.effects() == [1, 2]


def test_a_cancelled_error_of_a_handler_does_not_end_the_process(harness: RepairHarness) -> None:
    def cancel(_: int) -> None:
        raise asyncio.CancelledError("cancelled")

    harness.receive(number_record(1))
    harness.before_write = cancel

    repaired = harness.repair(Action.RETRY)

    assert repaired == Repaired(1, Answer.FAILED, "CancelledError: cancelled")


def test_heartbeats_continue_during_a_repair(harness: RepairHarness) -> None:
    beats: list[int] = []
    has_beaten = threading.Event()

    def beat() -> None:
        beats.append(1)
        has_beaten.set()

    harness.receive(number_record(1))
    harness.before_write = lambda _: None if has_beaten.wait(30) else pytest.fail("no heartbeat")
    sessions = make_sessions(harness.engine)
    harness.repairs = Repairs(harness.service, sessions, retention_s=DAY_S, beat=beat)

    repaired = harness.repair(Action.RETRY)

    assert repaired.answer is Answer.DONE


def test_a_repair_request_with_a_long_name_is_refused(harness: RepairHarness) -> None:
    harness.receive(number_record(1))

    with pytest.raises(IntegrityError, match="dead_letter_requests_by"):
        harness.ask(
            "INSERT INTO dead_letter_requests (dead_letter_id, action, requested_by)"
            " VALUES (1, 'retry', repeat('x', 1000))"
        )


def test_a_repair_request_can_be_written_during_a_repair(harness: RepairHarness) -> None:
    harness.receive(number_record(1))

    def write(_: int) -> None:
        harness.ask(
            "INSERT INTO dead_letter_requests (dead_letter_id, action) VALUES (1, 'discard')"
        )

    harness.before_write = write

    repaired = harness.repair(Action.RETRY)

    assert repaired.answer is Answer.DONE
    assert harness.ask("SELECT count(*) FROM dead_letter_requests") == [2]


def test_concurrent_requests_for_one_dead_letter_apply_it_once(harness: RepairHarness) -> None:
    harness.receive(number_record(1))
    both_ready = threading.Barrier(2)
    harness.before_write = lambda _: None
    found: list[Repaired] = []

    def retry(engine: Engine) -> None:
        both_ready.wait(30)
        found.append(harness.new_repairs(engine).carry_out(1, Repair(Action.RETRY, "ann")))

    with second_engine(harness) as one, second_engine(harness) as two:
        threads = [threading.Thread(target=retry, args=(engine,)) for engine in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    assert sorted(each.answer for each in found) == [Answer.DONE, Answer.REFUSED]
    assert harness.effects() == [1]


def test_an_event_that_arrives_during_its_retry_is_applied_once(harness: RepairHarness) -> None:
    """A replay sends the event again. The insert of the inbox row waits for the retry."""
    record = number_record(1)
    harness.receive(record)
    again = record._replace(offset=9)
    receiving: list[threading.Thread] = []
    with second_engine(harness) as other:
        applier = make_applier(number_service(lambda _, __: None), other)

        def receive_meanwhile(_: int) -> None:
            thread = threading.Thread(target=applier.apply, args=([again],))
            thread.start()
            receiving.append(thread)

        harness.before_write = receive_meanwhile
        repaired = harness.repair(Action.RETRY)
        receiving[0].join(30)

    assert repaired.answer is Answer.DONE
    assert harness.effects() == [1]
    assert harness.ask("SELECT outcome FROM inbox") == ["applied"]


@pytest.mark.parametrize("place", ["repair.claimed", "repair.applied"])
def test_a_process_that_dies_in_a_retry_leaves_the_dead_letter_open(
    harness: RepairHarness,
    kill_at: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    harness.receive(number_record(1))
    harness.fix_handler()
    kill_at(place)
    with pytest.raises(KilledError):
        harness.repair(Action.RETRY)
    kill_at("nowhere")
    assert harness.effects() == []

    harness.repairs.carry_out_unclaimed()
    not_yet = harness.ask("SELECT answer FROM dead_letter_requests")
    monkeypatch.setattr(repair_requests, "ABANDONED_AFTER_S", 0)
    harness.repairs.carry_out_unclaimed()

    assert not_yet == [None]  # unanswered until ABANDONED_AFTER_S has passed
    assert harness.ask("SELECT answer FROM dead_letter_requests") == ["failed"]
    assert harness.effects() == []
    assert harness.repair(Action.RETRY).answer is Answer.DONE
    assert harness.effects() == [1]


def test_a_request_that_was_answered_as_abandoned_is_not_carried_out(
    harness: RepairHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens if a process is frozen between its claim of the request and its attempt.

    Meanwhile, another process answers the request as failed.
    """
    harness.receive(number_record(1))
    harness.fix_handler()
    monkeypatch.setattr(repair_requests, "ABANDONED_AFTER_S", 0)

    def failpoint(name: str) -> None:
        if name == "repair.claimed":
            harness.repairs.carry_out_unclaimed()

    monkeypatch.setattr(repairs, "failpoint", failpoint)

    repaired = harness.repair(Action.RETRY)

    assert repaired.answer is Answer.FAILED
    assert harness.ask("SELECT answer FROM dead_letter_requests") == ["failed"]
    assert harness.effects() == []
    assert harness.states() == [State.OPEN]


def test_closed_dead_letters_are_deleted_after_the_retention(harness: RepairHarness) -> None:
    harness.receive(*[number_record(number) for number in (1, 2, 3)])
    harness.repair(Action.DISCARD, 1)
    harness.repair(Action.DISCARD, 2)
    # The retention of one day counts from the time at which a dead letter was closed.
    harness.ask("UPDATE dead_letters SET parked_at = parked_at - interval '9 days'")
    harness.ask("UPDATE dead_letters SET closed_at = closed_at - interval '2 days' WHERE id = 1")

    harness.repairs.carry_out_unclaimed()

    assert harness.ask("SELECT id FROM dead_letters ORDER BY id") == [2, 3]
    assert harness.ask("SELECT dead_letter_id FROM dead_letter_requests") == [2]


def test_dead_letters_are_filtered_and_counted(harness: RepairHarness) -> None:
    harness.receive(number_record(1, key=b"a"))
    harness.receive(number_record(2, key=b"b"))
    harness.receive(number_record("x", offset=3))
    harness.repair(Action.DISCARD, 1)

    with harness.engine.connect() as connection:
        groups = read_groups(connection, DeadLetterFilter(state=State.OPEN))
        chosen = {
            "key": read_ids(connection, DeadLetterFilter(key="b")),
            "reason": read_ids(connection, DeadLetterFilter(reason="handler_failed")),
            "state": read_ids(connection, DeadLetterFilter(state=State.DISCARDED)),
            "error": read_ids(connection, DeadLetterFilter(error="cannot write 2")),
            "type": read_ids(connection, DeadLetterFilter(type="other")),
        }

    assert [(each["reason"], each["count"]) for each in groups] == [
        ("handler_failed", 1),
        ("invalid_data", 1),
    ]
    assert chosen == {"key": [2], "reason": [1, 2], "state": [1], "error": [2], "type": []}
