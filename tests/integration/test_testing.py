"""`settle_outbox.testing` runs a handler in a test as the engine does."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

import settle_outbox as outbox
from settle_outbox import Event, Outcome, Retry, Verdict
from settle_outbox.consume.handler.guard import NotGuardableError, TransactionEndedError
from settle_outbox.testing import GUARDABLE, HandlerResult, apply
from settle_outbox.trace import Trace
from support.number_service import NUMBER, Effect, empty, number_service, write_down

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine

    from settle_outbox import ReceivedEvent

ARRANGED = 100


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Return an engine configured as in a service's tests."""
    engine = create_engine(database_url, connect_args=GUARDABLE)
    empty(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session that has inserted a row in its open transaction."""
    with Session(engine) as session:
        write_down(session, ARRANGED)
        yield session


def number_event(number: object, **changed: Any) -> Event:
    given = {"aggregatetype": "numbers", "aggregateid": "a", "type": NUMBER} | changed
    return Event(data={"number": number}, **given)


def handler(act: Callable[[Session, ReceivedEvent], Any] = lambda *_: None) -> Any:
    """Return a handler that stores the number and then calls `act`."""

    def handle(session: Session, event: ReceivedEvent) -> Any:
        write_down(session, event.data["number"])
        return act(session, event)

    return outbox.one_by_one(handle)


def numbers(session: Session) -> Sequence[int]:
    return session.scalars(select(Effect.number).order_by(Effect.number)).all()


def test_an_event_is_applied_in_the_tests_transaction(engine: Engine, session: Session) -> None:
    recorded = apply(number_service(handler()), session, number_event(1))

    assert recorded == HandlerResult(Outcome.APPLIED)
    assert numbers(session) == [1, ARRANGED]
    session.rollback()
    assert numbers(session) == []


def test_the_handler_gets_the_event_as_in_a_consumer(session: Session) -> None:
    received: list[ReceivedEvent] = []
    event = number_event(1, trace=Trace(request_id="request-1"))

    def act(session: Session, event: ReceivedEvent) -> None:
        received.append(event)
        outbox.add(session, Event("orders", "b", "told", {}))

    apply(number_service(handler(act)), session, event)

    (found,) = received
    assert (found.id, found.type, found.source) == (event.id, NUMBER, "/numbers")
    assert (found.topic, found.key, found.data) == ("numbers.events", b"a", {"number": 1})
    assert dict(found.headers)["ce_id"] == str(event.id).encode()
    assert session.scalars(text("SELECT requestid FROM outbox")).all() == ["request-1"]


def test_a_topic_may_have_any_name(session: Session) -> None:
    service = number_service(handler())

    assert apply(service, session, number_event(1, aggregatetype="x")).outcome is Outcome.SKIPPED
    there = apply(service, session, number_event(1, aggregatetype="x"), topic="numbers.events")
    assert there.outcome is Outcome.APPLIED


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (number_event(1, type="other"), HandlerResult(Outcome.SKIPPED)),
        (
            number_event("x"),
            HandlerResult(
                Outcome.PARKED,
                "invalid_data",
                "The data does not fit number: {'number': ['Not a valid integer.']}.",
            ),
        ),
    ],
)
def test_the_handler_is_not_called_for_other_events(
    session: Session, event: Event, expected: HandlerResult
) -> None:
    recorded = apply(number_service(handler()), session, event)

    assert recorded == expected
    assert numbers(session) == [ARRANGED]


@pytest.mark.parametrize("outcome", [Outcome.ANOMALY, Outcome.PARKED])
def test_a_verdict_is_returned(session: Session, outcome: Outcome) -> None:
    deciding = handler(lambda *_: Verdict(outcome, "odd", "It is odd."))

    recorded = apply(number_service(deciding), session, number_event(1))

    assert recorded == HandlerResult(outcome, "odd", "It is odd.")


def fail(session: Session, _: ReceivedEvent) -> None:
    raise LookupError("nothing there")


def fail_in_sql(session: Session, _: ReceivedEvent) -> None:
    session.execute(text("SELECT 1 / 0"))


def fail_to_flush(session: Session, _: ReceivedEvent) -> None:
    session.add(Effect(number=ARRANGED))  # there is a row with this key


def swallow(session: Session, _: ReceivedEvent) -> None:
    with suppress(DBAPIError):
        session.execute(text("SELECT 1 / 0"))


def publish_undeclared(session: Session, _: ReceivedEvent) -> None:
    outbox.add(session, Event("undeclared", "a", "told", {}))


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (fail, "LookupError: nothing there"),
        (fail_in_sql, "DataError: "),
        (fail_to_flush, "IntegrityError: "),
        (swallow, "SwallowedError: "),
        (publish_undeclared, "UndeclaredAggregateTypeError: "),
        (lambda *_: True, "WrongVerdictError: "),
    ],
)
def test_the_changes_of_a_failed_handler_are_rolled_back(
    session: Session, act: Callable[[Session, ReceivedEvent], Any], error: str
) -> None:
    recorded = apply(number_service(handler(act)), session, number_event(1))

    assert (recorded.outcome, recorded.reason) == (Outcome.PARKED, "handler_failed")
    assert recorded.detail is not None
    assert recorded.detail.startswith(error)
    assert recorded.error is not None
    assert numbers(session) == [ARRANGED]
    assert apply(number_service(handler()), session, number_event(1)).outcome is Outcome.APPLIED


ENDS: dict[str, Callable[[Session, ReceivedEvent], object]] = {
    "commit": lambda session, _: session.commit(),
    "rollback": lambda session, _: session.rollback(),
    "close": lambda session, _: session.close(),
    "COMMIT": lambda session, _: session.execute(text("COMMIT")),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_handler_that_ends_the_transaction_fails(
    engine: Engine, session: Session, name: str
) -> None:
    recorded = apply(number_service(handler(ENDS[name])), session, number_event(1))

    assert isinstance(recorded.error, TransactionEndedError)
    assert recorded.outcome is Outcome.PARKED
    assert numbers(session) == []


@pytest.mark.parametrize("name", ENDS)
def test_a_handler_that_ends_the_transaction_fails_in_a_savepoint_too(
    engine: Engine, name: str
) -> None:
    """The session joins an open transaction, as SQLAlchemy documents it for test suites."""
    with engine.connect() as connection:
        connection.begin()
        session = Session(connection, join_transaction_mode="create_savepoint")

        recorded = apply(number_service(handler(ENDS[name])), session, number_event(1))

        session.close()
    assert isinstance(recorded.error, TransactionEndedError)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM effects")) == 0


def test_an_event_is_applied_in_a_savepoint(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.begin()
        session = Session(connection, join_transaction_mode="create_savepoint")

        recorded = apply(number_service(handler()), session, number_event(1))

        assert recorded == HandlerResult(Outcome.APPLIED)
        session.commit()
        assert numbers(session) == [1]


def test_retries_and_lost_connections_are_raised(session: Session) -> None:
    def retry(*_: object) -> None:
        raise Retry("the bank is closed")

    def lose(session: Session, _: ReceivedEvent) -> None:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(Retry):
        apply(number_service(handler(retry)), session, number_event(1))
    assert numbers(session) == [ARRANGED]
    with pytest.raises(DBAPIError):
        apply(number_service(handler(lose)), session, number_event(1))


def test_a_session_that_cannot_be_guarded_is_refused(database_url: str) -> None:
    engine = create_engine(database_url)

    with (
        Session(engine) as session,
        pytest.raises(NotGuardableError, match="connect_args=GUARDABLE"),
    ):
        apply(number_service(handler()), session, number_event(1))

    engine.dispose()
