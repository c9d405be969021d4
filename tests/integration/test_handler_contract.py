"""settle_outbox enforces the contract of a handler. A breach of the contract loses no event."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from kafka import TopicPartition
from marshmallow import Schema, fields, post_load
from psycopg2.extras import DictCursor
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError, ProgrammingError, SQLAlchemyError
from structlog.testing import capture_logs
from uuid_utils.compat import uuid7

import settle_outbox as outbox
from settle_outbox import Event, Outcome, Retry, Service, Subscription, Verdict
from settle_outbox.consume.failures import HandlerLimits, KeyCollisionError, TransientDatabaseError
from settle_outbox.storage.sqlstate import sqlstate_of
from support.number_service import (
    TOPIC,
    Effect,
    NumberSchema,
    empty,
    handler_engine,
    make_applier,
    number_record,
    number_service,
    write_down,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, SessionTransaction

    from settle_outbox import ReceivedEvent
    from settle_outbox.service import Handler

pytestmark = pytest.mark.usefixtures("plain_logs")

PARTITION = TopicPartition(TOPIC, 0)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Return SQLAlchemy's engine as in a consumer, on a database with the table of effects."""
    with handler_engine(database_url, lock_timeout="500") as engine:
        empty(engine)
        yield engine


@pytest.fixture
def ask(engine: Engine) -> Iterator[Callable[[str], list[Any]]]:
    """Return a function that runs a statement on a separate connection."""
    other = create_engine(engine.url)

    def run(statement: str) -> list[Any]:
        with other.begin() as connection:
            result = connection.execute(text(statement))
            return list(result.scalars()) if result.returns_rows else []

    yield run
    other.dispose()


def connection_is_free(engine: Engine) -> bool:
    """Return whether the pool can give out its only connection."""
    with engine.connect() as connection:
        return bool(connection.scalar(text("SELECT true")))


def handler(act: Callable[[Session, int], object]) -> Handler:
    """Return a handler that stores each number and then calls `act`."""

    def handle(session: Session, events: Sequence[ReceivedEvent]) -> None:
        for event in events:
            write_down(session, event.data["number"])
            act(session, event.data["number"])

    return handle


def apply(engine: Engine, handle: Handler, *numbers: int, **options: Any) -> Any:
    applier = make_applier(number_service(handle), engine, **options)
    return applier.apply([number_record(number) for number in numbers])


def swallowing(act: Callable[[Session], object]) -> Callable[[Session], None]:
    def run(session: Session) -> None:
        with suppress(Exception):  # the mistake under test
            act(session)

    return run


def transaction_of(session: Session) -> SessionTransaction:
    transaction = session.get_transaction()
    assert transaction is not None
    return transaction


def driver_of(session: Session) -> Any:
    """Return the connection of psycopg2 under a session."""
    driver = session.connection().connection.driver_connection
    assert isinstance(driver, psycopg2.extensions.connection)
    return driver


ENDS: dict[str, Callable[[Session], object]] = {
    "session.commit": lambda session: session.commit(),
    "session.rollback": lambda session: session.rollback(),
    "session.close": lambda session: session.close(),
    "session.reset": lambda session: session.reset(),
    "session.invalidate": lambda session: session.invalidate(),
    "transaction.commit": lambda session: transaction_of(session).commit(),
    "transaction.rollback": lambda session: transaction_of(session).rollback(),
    "connection.commit": lambda session: session.connection().commit(),
    "connection.rollback": lambda session: session.connection().rollback(),
    "connection.close": lambda session: session.connection().close(),
    "driver.commit": lambda session: session.connection().connection.commit(),
    "driver.rollback": lambda session: driver_of(session).rollback(),
    "driver.set_isolation_level": lambda session: driver_of(session).set_isolation_level(0),
    "driver.set_client_encoding": lambda session: driver_of(session).set_client_encoding("LATIN1"),
    "COMMIT by a cursor of another class": lambda session: (
        driver_of(session).cursor(cursor_factory=DictCursor).execute("COMMIT; BEGIN")
    ),
    "COMMIT by copy_expert": lambda session: (
        session.connection().connection.cursor().copy_expert("COMMIT; BEGIN", io.StringIO())
    ),
    "driver.reset": lambda session: driver_of(session).reset(),
    "COMMIT": lambda session: session.execute(text("COMMIT")),
    "END after another statement": lambda session: session.connection().exec_driver_sql(
        "SELECT 1; /* done */ end"
    ),
    "ROLLBACK": lambda session: session.execute(text("-- back\nrollback work")),
    "COMMIT by a driver's cursor": lambda session: (
        session.connection().connection.cursor().execute(b"COMMIT AND CHAIN")
    ),
}
ENDS |= {f"{name}, swallowed": swallowing(end) for name, end in ENDS.items()}


@pytest.mark.parametrize("name", ENDS)
def test_a_handler_that_ends_the_transaction_fails_alone(
    engine: Engine, ask: Callable[[str], list[Any]], name: str
) -> None:
    durable: list[list[int]] = []

    def act(session: Session, number: int) -> None:
        if number == 2:
            ENDS[name](session)
            durable.append(ask("SELECT count(*) FROM effects WHERE number = 2"))

    apply(engine, handler(act), 0, 1, 2)

    assert all(count == [0] for count in durable)
    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 1]
    assert ask('SELECT outcome FROM inbox ORDER BY "offset"') == ["applied", "applied", "parked"]
    assert ask('SELECT "offset" FROM dead_letters') == [2]
    assert connection_is_free(engine)


def test_a_savepoint_and_its_rollback_are_allowed(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def act(session: Session, number: int) -> None:
        with session.begin_nested():
            write_down(session, number + 100)
        undone = session.begin_nested()
        write_down(session, number + 200)
        undone.rollback()
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(text(f"INSERT INTO effects VALUES ({number})"))

    apply(engine, handler(act), 0, 1)

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 1, 100, 101]
    assert ask("SELECT count(*) FROM dead_letters") == [0]


def rolling_back(session: Session) -> None:
    """Roll back and continue, which is usual elsewhere and forbidden in a handler."""
    try:
        session.add(Effect(number=0))
        session.flush()
    except IntegrityError:
        session.rollback()
        session.add(Effect(number=77))


def swallowing_flush(session: Session) -> None:
    session.add(Effect(number="no number"))
    with suppress(SQLAlchemyError):
        session.flush()


@pytest.mark.parametrize("mistake", [rolling_back, swallowing_flush])
def test_a_handler_that_continues_after_a_failed_flush_fails_alone(
    engine: Engine, ask: Callable[[str], list[Any]], mistake: Callable[[Session], None]
) -> None:
    def act(session: Session, number: int) -> None:
        if number == 1:
            mistake(session)

    apply(engine, handler(act), 0, 1, 2)

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 2]
    assert ask('SELECT "offset" FROM dead_letters') == [1]
    assert connection_is_free(engine)


def test_an_error_that_the_handler_swallowed_does_not_lose_the_event(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    """PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK, without an error."""

    def act(session: Session, number: int) -> None:
        if number == 1:
            swallowing(lambda session: session.execute(text("SELECT 1 / 0")))(session)

    apply(engine, handler(act), 0, 1, 2)

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 2]
    assert "division by zero" in ask("SELECT detail FROM dead_letters")[0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([], "not a list"),
        ("first: outcome as text", "not a Verdict"),
        ("first: no detail", "texts as reason and detail"),
        ({uuid7(): Verdict(Outcome.ANOMALY, "x", "y")}, "not in its batch"),
        ("first: applied", "ANOMALY or PARKED"),
        ("first: text", "not a Verdict"),
    ],
)
def test_an_invalid_verdict_is_a_failure(
    engine: Engine, ask: Callable[[str], list[Any]], returned: Any, message: str
) -> None:
    verdicts = {
        "first: applied": Verdict(Outcome.APPLIED, "x", "y"),
        "first: text": "parked",
        "first: outcome as text": Verdict("parked", "x", "y"),  # type: ignore[arg-type]
        "first: no detail": Verdict(Outcome.PARKED, "x", None),  # type: ignore[arg-type]
    }

    def handle(_: Session, events: Sequence[ReceivedEvent]) -> Any:
        return {events[0].id: verdicts[returned]} if isinstance(returned, str) else returned

    apply(engine, handle, 0)

    assert message in ask("SELECT detail FROM dead_letters")[0]


def test_the_texts_of_a_verdict_may_quote_the_event(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def handle(_: Session, events: Sequence[ReceivedEvent]) -> Any:
        verdict = Verdict(Outcome.PARKED, "unknown\0", "order 'a\0b\ud800' is unknown")
        return {event.id: verdict for event in events}

    apply(engine, handle, 0)

    assert ask("SELECT detail FROM dead_letters") == ["order 'a\\x00b\\ud800' is unknown"]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class OddRetry(Retry):
    def __init__(self) -> None:
        """Do not call the base class's __init__."""


def circular() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__context__ = second, first
    return first


ODD_ERRORS: dict[str, Callable[[], BaseException]] = {
    "unprintable": UnprintableError,
    "circular causes": circular,
    "not an Exception": lambda: asyncio.CancelledError("cancelled"),
    "a group": lambda: ExceptionGroup("several", [ValueError("x"), KeyError("y")]),
}


@pytest.mark.parametrize("name", ODD_ERRORS)
def test_an_unusual_error_becomes_a_dead_letter(
    engine: Engine, ask: Callable[[str], list[Any]], name: str
) -> None:
    def act(_: Session, number: int) -> None:
        if number == 1:
            error = ODD_ERRORS[name]()
            raise error from error

    apply(engine, handler(act), 0, 1, 2)

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 2]
    assert ask('SELECT "offset" FROM dead_letters') == [1]


def test_a_retry_whose_class_skips_init_waits_one_second(engine: Engine) -> None:
    def act(_: Session, __: int) -> None:
        raise OddRetry

    assert apply(engine, handler(act), 0)[PARTITION].wait_s == 1.0


def test_a_handler_may_change_the_data_of_an_event(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    """The next attempt at the event gets the original data."""

    def handle(session: Session, events: Sequence[ReceivedEvent]) -> None:
        for event in events:
            number = event.data.pop("number")
            write_down(session, number)
            if number == 5:
                raise ValueError(number)

    apply(engine, handle, *range(8))

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 1, 2, 3, 4, 6, 7]
    assert ask('SELECT "offset" FROM dead_letters') == [5]


def test_a_schema_that_raises_counts_as_a_failure_of_the_subscription(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    """A defect in a schema fails every event, so the breaker stops the subscription.

    A replay applies the events after the fix.
    """

    class Broken(NumberSchema):
        @post_load
        def divide(self, data: dict[str, int], **_: Any) -> Any:
            return data["number"] / 0

    subscription = Subscription(TOPIC, "number", Broken(), lambda _session, _events: None)
    applier = make_applier(Service("orders", (), (subscription,)), engine, EARLY_BREAKER)

    held = applier.apply([number_record(number) for number in range(10)])

    assert held[PARTITION].offset == 4
    assert ask("SELECT reason FROM dead_letters") == ["invalid_data"] * 4
    assert "ZeroDivisionError: division by zero" in ask("SELECT detail FROM dead_letters")
    assert ask("SELECT count(*) FROM inbox") == [0]


def test_fields_that_the_schema_does_not_know_are_ignored(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    strict = type("StrictSchema", (Schema,), {"number": fields.Integer(required=True)})()
    subscription = Subscription(TOPIC, "number", strict, lambda _session, _events: None)
    record = number_record(1, added_later=2)

    make_applier(Service("orders", (), (subscription,)), engine).apply([record])

    assert ask("SELECT outcome FROM inbox") == ["applied"]


def test_an_event_that_fails_in_a_deferred_trigger_fails_alone(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    ask(
        "DROP TABLE IF EXISTS watched; CREATE TABLE watched (number integer);"
        "CREATE OR REPLACE FUNCTION refuse_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.number = 1 THEN RAISE EXCEPTION 'no' USING ERRCODE = 'MY001'; END IF;"
        " RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON watched DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse_one()"
    )

    def act(session: Session, number: int) -> None:
        session.execute(text(f"INSERT INTO watched VALUES ({number})"))

    apply(engine, handler(act), 0, 1, 2)

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 2]
    assert ask('SELECT "offset" FROM dead_letters') == [1]


def test_an_outage_of_another_database_counts_as_an_attempt_at_the_event(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def act(_: Session, __: int) -> None:
        try:
            psycopg2.connect("postgresql://127.0.0.1:1/nowhere")
        except psycopg2.OperationalError as error:
            raise Retry("the other database is away") from error

    assert apply(engine, handler(act), 0)[PARTITION].offset == 0
    assert ask("SELECT attempts FROM inbox_attempts") == [1]


def test_an_error_after_a_swallowed_deadlock_makes_no_dead_letter(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def act(session: Session, _: int) -> None:
        rows: Any = None
        with suppress(Exception):
            rows = session.execute(text("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$"))
        list(rows)

    with pytest.raises(TransientDatabaseError):
        apply(engine, handler(act), 0)

    assert ask("SELECT count(*) FROM dead_letters") == [0]


def test_a_session_used_after_its_handler_returned_takes_no_connection(
    database_url: str, ask: Callable[[str], list[Any]]
) -> None:
    kept: list[Session] = []

    with handler_engine(database_url) as engine:
        apply(engine, lambda session, _: kept.append(session), 0)
        with pytest.raises(InvalidRequestError):
            kept[0].execute(text("SELECT 1"))

        assert connection_is_free(engine)


def test_a_handler_that_returns_none_applied_all_events(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    apply(engine, handler(lambda _session, _number: None), 0, 1)

    assert ask("SELECT outcome FROM inbox") == ["applied", "applied"]
    assert ask("SELECT count(*) FROM dead_letters") == [0]


INVALID_SQL = {
    "undefined column": "SELECT nothing FROM effects",
    "undefined function": "SELECT nothing()",
    "syntax": "SELEC 1",
    "wrong type": "SELECT 1 + true",
    "ambiguous column": "SELECT number FROM effects a, effects b",
    "more than one row": "SELECT (SELECT generate_series(1, 2))",
    "no such savepoint": "ROLLBACK TO SAVEPOINT nothing",
    "no such cursor": "FETCH nothing",
}


@pytest.mark.parametrize("name", INVALID_SQL)
def test_an_error_in_the_sql_of_a_handler_becomes_a_dead_letter(
    engine: Engine, ask: Callable[[str], list[Any]], name: str
) -> None:
    def act(session: Session, number: int) -> None:
        if number == 1:
            session.execute(text(INVALID_SQL[name]))

    apply(engine, handler(act), 0, 1, 2)

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 2]
    assert ask("SELECT reason FROM dead_letters") == ["handler_failed"]


def test_a_handler_that_exits_does_not_end_the_process(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    apply(engine, handler(lambda _session, number: sys.exit(number) if number else None), 0, 1)

    assert ask("SELECT outcome FROM inbox ORDER BY 1") == ["applied", "parked"]


def test_a_handler_that_takes_a_second_connection_fails(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    apply(engine, handler(lambda session, _: session.get_bind().engine.connect()), 0)

    assert ask("SELECT reason FROM dead_letters") == ["handler_failed"]


DATABASE_FAILURES = {
    "a missing table": ("SELECT 1 FROM not_migrated_yet", "42P01"),
    "a missing privilege": ("SET ROLE pg_monitor; DELETE FROM effects", "42501"),
    "read-only": ("SET TRANSACTION READ ONLY; DELETE FROM effects", "25006"),
    "shutdown": ("SELECT pg_terminate_backend(pg_backend_pid())", "57P01"),
    "a full disk": ("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$", "53100"),
    "a deadlock": ("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$", "40P01"),
}


@pytest.mark.parametrize("name", DATABASE_FAILURES)
@pytest.mark.parametrize("handling", ["plain", "wrapped", "swallowed"])
def test_a_failure_of_the_database_is_raised_and_makes_no_dead_letter(
    engine: Engine, ask: Callable[[str], list[Any]], name: str, handling: str
) -> None:
    statement, _ = DATABASE_FAILURES[name]

    def act(session: Session, _: int) -> None:
        if handling == "swallowed":
            swallowing(lambda session: session.execute(text(statement)))(session)
            return
        try:
            session.execute(text(statement))
        except SQLAlchemyError as error:
            if handling == "plain":
                raise
            raise ValueError("the handler's own error") from error

    with pytest.raises(Exception) as raised:  # noqa: PT011 - one of two classes, checked below
        apply(engine, handler(act), 0, 1)

    assert isinstance(raised.value, SQLAlchemyError) or "TransientDatabaseError" in repr(raised)
    assert ask("SELECT count(*) FROM dead_letters") == [0]
    assert ask("SELECT count(*) FROM inbox") == [0]


def test_a_missing_table_keeps_its_sqlstate(engine: Engine) -> None:
    with pytest.raises(ProgrammingError) as raised:
        apply(engine, handler(lambda session, _: session.execute(text("TABLE missing"))), 0)

    assert sqlstate_of(raised.value) == "42P01"


def test_retry_waits_and_becomes_a_dead_letter_after_the_last_attempt(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def act(_: Session, number: int) -> None:
        if number == 1:
            raise Retry("the bank is closed", after_s=2)

    applier = make_applier(number_service(handler(act)), engine)
    records = [number_record(number) for number in range(4)]
    elsewhere = number_record(7, partition=1)

    first = applier.apply([*records, elsewhere])
    assert (first[PARTITION].offset, first[PARTITION].wait_s) == (1, 2)
    assert first.keys() == {PARTITION}
    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 7]
    assert ask("SELECT attempts FROM inbox_attempts") == [1]

    second = applier.apply(records[1:])
    assert (second[PARTITION].offset, second[PARTITION].wait_s) == (1, 4)
    assert ask("SELECT count(*) FROM dead_letters") == [0]

    assert applier.apply(records[1:]) == {}
    assert ask("SELECT reason FROM dead_letters") == ["retries_exhausted"]
    assert "the bank is closed" in ask("SELECT detail FROM dead_letters")[0]
    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 2, 3, 7]
    assert ask("SELECT count(*) FROM inbox_attempts") == [0]


def test_attempts_are_counted_over_restarts_and_forgotten_after_success(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    works = False

    def act(_: Session, __: int) -> None:
        if not works:
            raise Retry

    record = number_record(0)
    for expected in (1, 2):
        applier = make_applier(number_service(handler(act)), engine)
        assert applier.apply([record])
        assert ask("SELECT attempts FROM inbox_attempts") == [expected]
    works = True
    assert applier.apply([record]) == {}

    assert ask("SELECT count(*) FROM inbox_attempts") == [0]
    assert ask("SELECT outcome FROM inbox") == ["applied"]


@pytest.mark.parametrize("after_s", [-1, float("nan"), float("inf"), 301])
def test_retry_rejects_an_invalid_wait(after_s: float) -> None:
    with pytest.raises(ValueError, match="after_s"):
        Retry(after_s=after_s)


SHORT_PAUSES = HandlerLimits(pause_s=0.4, total_s=120, retry_attempts=3, brake_failures=20)


@pytest.mark.parametrize("then", ["a statement", "return"])
def test_an_event_whose_handler_takes_too_long_three_times_is_a_dead_letter(
    database_url: str, ask: Callable[[str], list[Any]], then: str
) -> None:
    runs = []

    def act(session: Session, number: int) -> None:
        if number == 1:
            runs.append(number)
            time.sleep(0.6)  # the mistake under test
            if then == "a statement":
                session.execute(text("SELECT 1"))

    with handler_engine(database_url, idle_in_transaction_session_timeout="400") as engine:
        applier = make_applier(number_service(handler(act)), engine, SHORT_PAUSES)
        records = [number_record(number) for number in range(3)]
        with capture_logs() as lines:
            held = [applier.apply(records)]
            assert ask("SELECT number FROM effects") == [0]
            held += [applier.apply(records[1:]) for _ in range(2)]

    assert [each.get(PARTITION) and each[PARTITION].offset for each in held] == [1, 1, None]
    assert ask("SELECT reason FROM dead_letters") == ["handler_timeout"]
    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 2]
    waits = [line for line in lines if line["event"] == "consumer.event_waits"]
    assert [(line["attempt"], line["of"]) for line in waits] == [(1, 3), (2, 3)]
    assert "between two statements" in waits[0]["error"]


def test_a_lost_connection_is_not_the_fault_of_a_fast_handler(
    database_url: str, ask: Callable[[str], list[Any]]
) -> None:
    """The connection ends, but the handler itself took no time."""
    with handler_engine(database_url) as engine, pytest.raises(SQLAlchemyError):
        apply(
            engine,
            handler(lambda s, _: s.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))),
            0,
            limits=SHORT_PAUSES,
        )

    assert ask("SELECT count(*) FROM inbox_attempts") == [0]


def test_a_lock_that_is_never_released_makes_no_dead_letter(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    holder = create_engine(engine.url)
    with holder.begin() as locking:
        locking.execute(text("LOCK TABLE effects"))
        with pytest.raises(SQLAlchemyError) as raised:
            apply(engine, handler(lambda _session, _number: None), 0)

    assert sqlstate_of(raised.value) == "55P03"
    assert ask("SELECT count(*) FROM dead_letters") == [0]


def test_a_sequence_that_is_behind_makes_no_dead_letter_and_catches_up(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    ask("CREATE TABLE generated (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, number int)")
    ask("INSERT INTO generated (number) SELECT 0 FROM generate_series(1, 3)")
    ask("ALTER SEQUENCE generated_id_seq RESTART WITH 1")

    def act(session: Session, number: int) -> None:
        session.execute(text(f"INSERT INTO generated (number) VALUES ({number})"))

    applier = make_applier(number_service(handler(act)), engine)
    record = number_record(1)
    for _ in range(3):  # each collision advances the sequence past one existing value
        with pytest.raises(KeyCollisionError, match="generated_pkey"):
            applier.apply([record])
    assert applier.apply([record]) == {}

    assert ask("SELECT count(*) FROM dead_letters") == [0]
    assert ask("SELECT id FROM generated WHERE number = 1") == [4]


INSERT_THREE = "INSERT INTO things (x) SELECT 1 FROM generate_series(1, 3)"
COLLIDING = {
    "a chosen id": "INSERT INTO things (id, x) VALUES (1, 1)",
    "the newest id": "INSERT INTO things (id, x) VALUES (3, 1)",
    "another row's id": "UPDATE things SET id = 1 WHERE id = 2",
}


@pytest.mark.parametrize("name", COLLIDING)
def test_a_duplicate_key_chosen_by_the_handler_is_a_failure_of_the_handler(
    engine: Engine, ask: Callable[[str], list[Any]], name: str
) -> None:
    ask("DROP TABLE IF EXISTS things; CREATE TABLE things (id serial PRIMARY KEY, x integer)")
    ask(INSERT_THREE)

    apply(engine, handler(lambda session, _: session.execute(text(COLLIDING[name]))), 0)

    assert ask("SELECT reason FROM dead_letters") == ["handler_failed"]


def test_an_event_older_than_a_partition_dropped_during_its_batch_is_not_applied(
    engine: Engine, ask: Callable[[str], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The horizon changes after the ids are inserted, and before the horizon is read."""
    record = number_record(0)

    def drop(_name: str) -> None:
        ask(f"INSERT INTO inbox_horizon VALUES ('{uuid7()}') ON CONFLICT DO NOTHING")

    monkeypatch.setattr("settle_outbox.consume.batch_transaction.failpoint", drop)
    applier = make_applier(number_service(handler(lambda _session, _number: None)), engine)
    applier.apply([record])

    assert ask("SELECT reason FROM dead_letters") == ["older_than_inbox"]
    assert ask("SELECT count(*) FROM effects") == [0]
    assert ask("SELECT count(*) FROM inbox") == [0]


# The circuit breaker.

EARLY_BREAKER = HandlerLimits(pause_s=10, total_s=120, retry_attempts=1, brake_failures=5)


def fail(session: Session, number: int) -> None:
    raise RuntimeError(f"cannot do {number}")


def test_a_defect_that_fails_every_event_stops_the_subscription(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    defect = {"there": True}

    def act(session: Session, number: int) -> None:
        if defect["there"]:
            fail(session, number)

    service = number_service(handler(act))
    records = [number_record(number) for number in range(50)]
    with capture_logs() as lines:
        held = make_applier(service, engine, EARLY_BREAKER).apply(records)

    assert held[PARTITION].offset == 4
    assert held[PARTITION].subscription == (TOPIC, "number")
    assert "stopped" in held[PARTITION].detail
    assert ask("SELECT count(*) FROM dead_letters") == [4]
    assert [line["event"] for line in lines].count("consumer.subscription_stopped") == 1

    # A restarted process tries one event, and makes no dead letter.
    restarted = make_applier(service, engine, EARLY_BREAKER)
    with capture_logs() as lines:
        assert restarted.apply(records[4:])[PARTITION].offset == 4
        # The second call makes no attempt, because the next probe is not yet due.
        assert restarted.apply(records[4:])[PARTITION].offset == 4
    assert [line["event"] for line in lines].count("consumer.probe_failed") == 1
    assert ask("SELECT count(*) FROM dead_letters") == [4]

    defect["there"] = False
    with capture_logs() as lines:
        assert make_applier(service, engine, EARLY_BREAKER).apply(records[4:]) == {}
    assert "consumer.subscription_resumed" in [line["event"] for line in lines]
    assert ask("SELECT number FROM effects ORDER BY 1") == list(range(4, 50))
    assert ask("SELECT count(*) FROM inbox_brakes") == [0]


def test_other_subscriptions_continue_while_one_is_stopped(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def handle(session: Session, events: Sequence[ReceivedEvent]) -> None:
        for event in events:
            if event.type == "bad":
                fail(session, event.data["number"])
            write_down(session, event.data["number"])

    applier = make_applier(number_service(handle, "good", "bad"), engine, EARLY_BREAKER)
    applier.apply([number_record(number, type_="bad", partition=1) for number in range(10)])
    mixed = [number_record(100, type_="good"), number_record(101, type_="bad")]
    elsewhere = number_record(102, type_="good", partition=2)

    held = applier.apply([*mixed, elsewhere])

    assert {place.partition: wait.offset for place, wait in held.items()} == {0: 101}
    assert ask("SELECT number FROM effects ORDER BY 1") == [100, 102]
    assert ask("SELECT count(*) FROM dead_letters") == [4]


def test_failures_that_are_not_consecutive_do_not_stop_the_subscription(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def act(session: Session, number: int) -> None:
        if number % 2:
            fail(session, number)

    assert apply(engine, handler(act), *range(30), limits=EARLY_BREAKER) == {}
    assert ask("SELECT count(*) FROM dead_letters") == [15]


def test_different_errors_do_not_stop_the_subscription(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def act(_: Session, number: int) -> None:
        raise (ValueError, TypeError, KeyError)[number % 3]

    assert apply(engine, handler(act), *range(20), limits=EARLY_BREAKER) == {}
    assert ask("SELECT count(*) FROM dead_letters") == [20]


def test_unreadable_records_do_not_count_for_the_circuit_breaker(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    applier = make_applier(
        number_service(handler(lambda _session, _number: None)), engine, EARLY_BREAKER
    )

    held = applier.apply([number_record("not a number", offset=n) for n in range(30)])

    assert held == {}
    assert ask("SELECT count(*) FROM dead_letters") == [30]
    assert ask("SELECT count(*) FROM inbox_brakes") == [0]


def test_exhausted_retries_count_for_the_circuit_breaker(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def act(_: Session, __: int) -> None:
        raise Retry

    held = apply(engine, handler(act), *range(20), limits=EARLY_BREAKER)

    assert held[PARTITION].offset == 4
    assert ask("SELECT count(*) FROM dead_letters") == [4]


# The ORM, traces, and events that a handler adds.


def test_a_query_sees_what_the_handler_added(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    seen = []

    def handle(session: Session, events: Sequence[ReceivedEvent]) -> None:
        for event in events:
            session.add(Effect(number=event.data["number"]))
            seen.append(session.scalars(select(Effect.number).order_by(Effect.number)).all())

    apply(engine, handle, 0, 1)

    assert seen == [[0], [0, 1]]
    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 1]


def test_an_event_that_fails_in_the_last_flush_fails_alone(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    ask("INSERT INTO effects VALUES (1)")

    def handle(session: Session, events: Sequence[ReceivedEvent]) -> None:
        session.add_all([Effect(number=event.data["number"]) for event in events])

    apply(engine, handle, 0, 1, 2)

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 1, 2]
    assert ask('SELECT "offset" FROM dead_letters') == [1]


def test_an_event_that_violates_a_deferred_constraint_fails_alone(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    ask("CREATE TABLE checked (number integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    ask("INSERT INTO checked VALUES (1)")

    def act(session: Session, number: int) -> None:
        session.execute(text(f"INSERT INTO checked VALUES ({number})"))

    apply(engine, handler(act), 0, 1, 2)

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 2]
    assert ask("SELECT reason FROM dead_letters") == ["handler_failed"]


def test_events_added_by_a_handler_carry_the_trace_of_the_current_event(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def handle(session: Session, events: Sequence[ReceivedEvent]) -> None:
        for event in events:
            outbox.add(session, Event("orders", "a", "told", {"of": event.data["number"]}))
        outbox.add(session, Event("orders", "a", "told", {"of": "all"}))

    applier = make_applier(number_service(handle), engine)
    applier.apply([number_record(n, request_id=f"request-{n}") for n in range(2)])
    applier.apply([number_record(2, request_id="request-2")])

    assert ask("SELECT requestid FROM outbox ORDER BY seq") == [
        "request-0",
        "request-1",
        None,  # after the loop over two events with different traces
        "request-2",
        "request-2",
    ]


# Types that the service does not subscribe to.

COUNTS = "SELECT type || ' ' || records FROM inbox_skipped ORDER BY type"


def write_all(session: Session, events: Sequence[ReceivedEvent]) -> None:
    for event in events:
        write_down(session, event.data["number"])


def test_events_without_a_subscription_are_counted_by_type(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    applier = make_applier(number_service(write_all), engine)
    records = [
        number_record(0),
        *[number_record(n, type_="number.lost") for n in range(1, 4)],
        number_record(4, type_="number.found"),
        number_record(5),
    ]

    with capture_logs() as logs:
        applier.apply(records)
        applier.apply(records)

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 5]
    assert ask('SELECT outcome || "offset" FROM inbox ORDER BY "offset"') == [
        "applied0",
        "applied5",
    ]
    assert ask(COUNTS) == ["number.found 2", "number.lost 6"]
    assert ask("SELECT count(*) FROM inbox_skipped WHERE first_at < last_at") == [2]
    assert sorted(
        each["type"] for each in logs if each["event"] == "consumer.type_not_subscribed"
    ) == ["number.found", "number.lost"]


def test_a_count_of_skipped_events_is_committed_with_its_batch(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    """The batch is rolled back and applied in halves. Each event is counted once."""

    def act(_: Session, number: int) -> None:
        if number == 3:
            raise ValueError

    applier = make_applier(number_service(handler(act)), engine)
    types = {1: "number.lost", 2: "number.lost", 4: "number.lost"}

    applier.apply([number_record(n, type_=types.get(n, "number")) for n in range(6)])

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 5]
    assert ask(COUNTS) == ["number.lost 3"]


def test_a_skipped_event_is_applied_by_a_replay_after_its_type_is_subscribed(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    records = [number_record(n, type_="number.found") for n in range(2)]
    make_applier(number_service(write_all), engine).apply(records)

    make_applier(number_service(write_all, "number", "number.found"), engine).apply(records)

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 1]


def test_an_event_recorded_as_skipped_by_an_earlier_version_stays_skipped(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    event_id = uuid7()
    ask(
        'INSERT INTO inbox (id, type, source, topic, partition, "offset", outcome)'
        f" VALUES ('{event_id}', 'number', '/test', '{TOPIC}', 0, 0, 'skipped')"
    )

    make_applier(number_service(write_all), engine).apply([number_record(0, event_id=event_id)])

    assert ask("SELECT count(*) FROM effects") == [0]


def test_the_counts_of_skipped_types_are_bounded_in_number_and_size(
    engine: Engine, ask: Callable[[str], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A type may have 4,000 bytes. An index entry cannot, so 200 characters of a type are kept."""
    monkeypatch.setattr("settle_outbox.consume.inbox.SKIPPED_TYPES_MAX", 3)
    applier = make_applier(number_service(write_all), engine)
    long = "".join(chr(0x1F600 + n * 7919 % 60_000) for n in range(1000))

    applier.apply([number_record(0, type_=long), number_record(1, type_=f"{long[:999]}x")])
    for number, type_ in enumerate(["a", "b", "c", "a"], start=2):
        applier.apply([number_record(number, type_=type_)])

    # a, b and the long type. c would be a fourth type, so it is not counted.
    assert ask("SELECT char_length(type) || ' ' || records FROM inbox_skipped ORDER BY type") == [
        "1 2",
        "1 1",
        "200 2",
    ]


def test_a_running_handler_does_not_lock_the_counts_of_skipped_types(
    engine: Engine, database_url: str, ask: Callable[[str], list[Any]]
) -> None:
    with handler_engine(database_url, lock_timeout="500") as other_engine:
        other = make_applier(number_service(write_all), other_engine)

        def handle(session: Session, events: Sequence[ReceivedEvent]) -> None:
            write_all(session, events)
            other.apply([number_record(9, type_="number.lost", partition=1)])

        make_applier(number_service(handle), engine).apply(
            [number_record(0, type_="number.lost"), number_record(1)]
        )

    assert ask("SELECT number FROM effects") == [1]
    assert ask(COUNTS) == ["number.lost 2"]


# Handlers of one event.


def test_a_handler_of_one_event_is_called_for_each_event(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def handle(session: Session, event: ReceivedEvent) -> Verdict | None:
        outbox.add(session, Event("orders", "a", event.type, {}))
        if event.data["number"] == 1:
            return Verdict(Outcome.ANOMALY, "odd", "It is odd.")
        write_down(session, event.data["number"])
        return None

    applier = make_applier(number_service(outbox.one_by_one(handle), "number", "digit"), engine)
    applier.apply(
        [
            number_record(n, type_=type_, request_id=f"request-{n}")
            for n, type_ in enumerate(["number", "number", "digit"])
        ]
    )

    assert ask("SELECT number FROM effects ORDER BY 1") == [0, 2]
    assert ask('SELECT outcome FROM inbox ORDER BY "offset"') == ["applied", "anomaly", "applied"]
    assert ask("SELECT type || requestid FROM outbox ORDER BY seq") == [
        "numberrequest-0",
        "numberrequest-1",
        "digitrequest-2",
    ]


def test_an_invalid_verdict_of_a_handler_of_one_event_is_a_failure(
    engine: Engine, ask: Callable[[str], list[Any]]
) -> None:
    def handle(_: Session, event: ReceivedEvent) -> Any:
        return event.data["number"] == 1

    apply(engine, outbox.one_by_one(handle), 0)

    assert "is False, not a Verdict" in ask("SELECT detail FROM dead_letters")[0]
