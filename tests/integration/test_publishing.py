"""Which events `outbox.add` accepts and refuses, and which commits notify listeners."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import NullPool, create_engine, text

import settle_outbox as outbox
from settle_outbox import (
    Event,
    InvalidEventError,
    UndeclaredAggregateTypeError,
    announce,
    notify_after_commit,
)
from settle_outbox.notifications.listen import Listener
from settle_outbox.notifications.notify import Notifier
from settle_outbox.runtime.process import Stop
from settle_outbox.storage.database import make_engine, make_sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

ID = UUID("01978007-3b5e-7c40-8f5a-3a2b1c0d9e8f")
OUTBOX, SETTLED = "outbox", "settled"


class Status(Enum):
    """An enumeration whose members are not strings."""

    DONE = "done"


class Level(IntEnum):
    """An enumeration whose members are integers."""

    HIGH = 3


def event(**changed: Any) -> Event:
    return Event(
        **{
            "aggregatetype": "orders",
            "aggregateid": "a",
            "type": "order.created",
            "data": {},
            **changed,
        }
    )


def added(session: Session) -> int:
    """Return the number of events in the outbox. All of them must be pending."""
    events, pending = session.execute(
        text("SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM outbox_pending)")
    ).one()
    assert events == pending
    return int(events)


# The data of an event. `...` means that the value is written as it is.


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (ID, str(ID)),
        (datetime(2025, 6, 17, 20, 55, 35, tzinfo=UTC), "2025-06-17T20:55:35.000000Z"),
        (
            datetime(2025, 6, 17, 22, 55, 35, 806222, tzinfo=timezone(timedelta(hours=2))),
            "2025-06-17T20:55:35.806222Z",
        ),
        (date(2025, 6, 17), "2025-06-17"),
        (Decimal("0.10"), "0.10"),
        (Decimal("12345678901234567890.123456789"), "12345678901234567890.123456789"),
        (Status.DONE, "done"),
        (Level.HIGH, 3),
        ((1, [ID, {"at": date(2025, 6, 17)}]), [1, [str(ID), {"at": "2025-06-17"}]]),
        ({"text": "Обед 🍲 \0", "none": None, "yes": True, "part": 0.5}, ...),
        (2**63 - 1, ...),
    ],
)
def test_the_values_of_an_event_are_stored_as_json(
    orders_session: Session, value: object, written: object
) -> None:
    outbox.add(orders_session, event(data={"value": value}))

    payload = orders_session.execute(text("SELECT payload FROM outbox")).scalar_one()
    assert json.loads(bytes(payload)) == {"value": value if written is ... else written}


def _list_that_contains_itself() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (datetime(2025, 6, 17), r"data\.v is a datetime without a time zone"),  # noqa: DTZ001
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), r"data\.v is a datetime out"),
        (math.nan, r"data\.v is nan"),
        ([1, {"rate": math.inf}], r"data\.v\[1\]\.rate is inf"),
        (Decimal("NaN"), r"data\.v is NaN"),
        (Decimal("-Infinity"), r"data\.v is -Infinity"),
        ("\ud800", r"data\.v has a lone surrogate"),
        ({"\ud800": 1}, r"a key of data\.v has a lone surrogate"),
        ({1: 2}, r"data\.v has the key 1; the keys"),
        ({ID: 2}, r"data\.v has the key UUID\("),
        (b"bytes", r"data\.v is of type bytes"),
        ({1, 2}, r"data\.v is of type set"),
        (timedelta(1), r"data\.v is of type timedelta"),
        (object(), r"data\.v is of type object"),
        pytest.param(10**5000, "4300 digits", id="long-integer"),
        (_list_that_contains_itself(), "nested too deeply, or contains itself"),
    ],
)
def test_data_that_json_cannot_represent_is_refused(
    orders_session: Session, value: object, reason: str
) -> None:
    refused = event(data={"v": value})

    with pytest.raises(InvalidEventError, match=reason) as caught:
        outbox.add_all(orders_session, [event(), refused])

    assert str(refused.id) in str(caught.value)
    assert "order.created" in str(caught.value)
    assert added(orders_session) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"aggregateid": "a\0"},
        {"aggregateid": "\udfff"},
        {"aggregateid": ID},
        {"type": "order.\0"},
        {"aggregatetype": "\ud800"},
    ],
)
def test_a_text_that_cannot_be_stored_is_refused(
    orders_session: Session, wrong: dict[str, object]
) -> None:
    (name,) = wrong

    with pytest.raises(InvalidEventError, match=f"its {name} is"):
        outbox.add(orders_session, event(**wrong))

    assert added(orders_session) == 0


# Declared aggregate types.


@pytest.fixture
def engine(orders_url: str) -> Iterator[Engine]:
    engine = make_engine(orders_url, application_name="publishing-test", pool_size=3)
    yield engine
    engine.dispose()


def test_an_undeclared_aggregatetype_is_refused(engine: Engine) -> None:
    sessions = make_sessions(engine, aggregatetypes=("orders", "refunds"))
    wrong = event(aggregatetype="order")

    with sessions() as session:
        with pytest.raises(UndeclaredAggregateTypeError) as caught:
            outbox.add_all(session, [event(), wrong])
        count = added(session)

    assert count == 0
    message = str(caught.value)
    assert all(part in message for part in (str(wrong.id), "'order'", "orders, refunds"))


def test_a_declared_aggregatetype_is_added(engine: Engine) -> None:
    sessions = make_sessions(engine, aggregatetypes=("orders",))

    with sessions() as session:
        outbox.add(session, event())

        assert added(session) == 1


# Notifications.


@pytest.fixture
def sessions(engine: Engine, orders_url: str) -> sessionmaker[Session]:
    sessions = make_sessions(engine)
    notify_after_commit(sessions, orders_url)
    return sessions


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, set[str]]]:
    """Record the requests to the notifier."""
    recorded: list[dict[str, set[str]]] = []
    monkeypatch.setattr(Notifier, "request", lambda _, wanted: recorded.append(wanted))
    return recorded


def test_an_event_added_in_a_savepoint_wakes_listeners(
    sessions: sessionmaker[Session], orders_url: str
) -> None:
    listener = Listener(orders_url, Stop())
    assert listener.ensure()

    with sessions.begin() as session, session.begin_nested():
        outbox.add(session, event())

    assert listener.wait(10) == [""]
    listener.close()


def test_only_the_outermost_commit_notifies(
    sessions: sessionmaker[Session], requests: list[dict[str, set[str]]]
) -> None:
    with sessions.begin() as session:
        with session.begin_nested():
            outbox.add(session, event())
            with session.begin_nested():
                announce(session, SETTLED, [ID])
            assert requests == []
        assert requests == []

    assert requests == [{OUTBOX: set(), SETTLED: {str(ID)}}]


def test_a_commit_with_open_savepoints_notifies_once(
    sessions: sessionmaker[Session], requests: list[dict[str, set[str]]]
) -> None:
    with sessions() as session:
        session.begin_nested()
        outbox.add(session, event())
        session.begin_nested()
        session.commit()

    assert requests == [{OUTBOX: set()}]


@pytest.mark.parametrize("before", [True, False], ids=["added-before", "added-after"])
def test_the_rollback_of_a_savepoint_loses_no_notification(
    sessions: sessionmaker[Session], requests: list[dict[str, set[str]]], *, before: bool
) -> None:
    other = uuid4()
    with sessions.begin() as session:
        if before:
            outbox.add(session, event())
            announce(session, SETTLED, [ID])
        savepoint = session.begin_nested()
        announce(session, SETTLED, [other])
        savepoint.rollback()
        if not before:
            outbox.add(session, event())
            announce(session, SETTLED, [ID])

    (request,) = requests
    assert OUTBOX in request
    assert str(ID) in request[SETTLED]


def test_a_savepoint_that_fails_loses_no_notification(
    sessions: sessionmaker[Session], requests: list[dict[str, set[str]]]
) -> None:
    class OddError(Exception):
        """An error of a use case."""

    def fail(session: Session) -> None:
        with session.begin_nested(), session.begin_nested():
            outbox.add(session, event())
            raise OddError

    with sessions.begin() as session:
        outbox.add(session, event())
        with pytest.raises(OddError):
            fail(session)

    assert requests == [{OUTBOX: set()}]


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_a_rolled_back_event_causes_no_notification_when_the_session_is_used_again(
    sessions: sessionmaker[Session], requests: list[dict[str, set[str]]], end: str
) -> None:
    with sessions() as session:
        with session.begin_nested():
            announce(session, SETTLED, [ID])
        outbox.add(session, event())
        getattr(session, end)()
        session.execute(text("SELECT 1"))
        session.commit()
        assert requests == []
        outbox.add(session, event())
        session.commit()

    assert requests == [{OUTBOX: set()}]


@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "create_savepoint"])
def test_a_session_that_joins_a_transaction_notifies_after_the_transaction_ends(
    engine: Engine,
    sessions: sessionmaker[Session],
    requests: list[dict[str, set[str]]],
    mode: Any,
) -> None:
    for _ in range(2):
        with engine.begin() as connection:
            for n in range(2):
                with sessions(bind=connection, join_transaction_mode=mode) as session:
                    outbox.add(session, event())
                    announce(session, SETTLED, [UUID(int=n)])
                    session.commit()
            assert requests == []
        assert requests == [{OUTBOX: set(), SETTLED: {str(UUID(int=n)) for n in range(2)}}]
        requests.clear()


def test_a_session_that_owns_its_transaction_notifies_at_its_commit(
    engine: Engine, sessions: sessionmaker[Session], requests: list[dict[str, set[str]]]
) -> None:
    with (
        engine.connect() as connection,
        sessions(bind=connection, join_transaction_mode="control_fully") as session,
    ):
        outbox.add(session, event())
        session.commit()

        assert requests == [{OUTBOX: set()}]


def test_a_session_without_a_pool_notifies(
    orders_url: str, requests: list[dict[str, set[str]]]
) -> None:
    engine = create_engine(orders_url, poolclass=NullPool)
    sessions = make_sessions(engine)
    notify_after_commit(sessions, orders_url)

    with engine.begin() as connection, sessions(bind=connection) as session:
        outbox.add(session, event())
        session.commit()

    assert requests == [{OUTBOX: set()}]
