"""The table inbox_owners: which consumer holds a partition, and which records it has in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from kafka import TopicPartition
from sqlalchemy import text

from settle_outbox.consume.careful_mode import CarefulApplier
from settle_outbox.storage.database import make_sessions
from support.number_service import (
    TOPIC,
    empty,
    handler_engine,
    make_applier,
    number_record,
    number_service,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

PARTITION = TopicPartition(TOPIC, 0)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with handler_engine(database_url) as engine:
        empty(engine)
        yield engine


def new_consumer(engine: Engine, *, batch_limit: int = 100) -> CarefulApplier:
    applier = make_applier(number_service(lambda *_: None), engine)
    return CarefulApplier(applier, make_sessions(engine), batch_limit=batch_limit)


def apply(consumer: CarefulApplier, *numbers: int) -> None:
    records = [number_record(number) for number in numbers]
    consumer.apply({PARTITION: records}, end_of=lambda _: 1_000)


def rows(engine: Engine) -> list[Any]:
    with engine.begin() as connection:
        return list(connection.execute(text("SELECT * FROM inbox_owners")).all())


def test_a_frozen_owner_does_not_delete_the_row_of_the_next_owner(engine: Engine) -> None:
    frozen, other = new_consumer(engine), new_consumer(engine)
    apply(frozen, 1)
    apply(other, 2)
    before = rows(engine)

    frozen.release()

    assert rows(engine) == before
    assert len(before) == 1


def test_a_frozen_owner_does_not_change_what_the_next_owner_has_in_hand(
    engine: Engine,
) -> None:
    """In careful mode, the frozen owner applies a record while the next owner has one in hand."""
    apply(new_consumer(engine), 1)
    frozen = new_consumer(engine)
    apply(frozen, 2)
    other = new_consumer(engine)
    apply(other, 3)
    with engine.begin() as connection:
        connection.execute(text("UPDATE inbox_owners SET in_hand = ARRAY['record 4'::bytea]"))

    apply(frozen, 5)

    assert [bytes(in_hand) for row in rows(engine) for in_hand in row.in_hand] == [b"record 4"]


def test_the_row_stays_until_careful_mode_has_ended(engine: Engine) -> None:
    """Careful mode ends after `batch_limit` records."""
    apply(new_consumer(engine), 1)
    first, second = (new_consumer(engine, batch_limit=3) for _ in range(2))

    apply(first, 2)
    first.release()
    kept = len(rows(engine))
    apply(second, 3, 4, 5)
    second.release()

    assert kept == 1
    assert rows(engine) == []


def test_a_consumer_stops_although_it_cannot_delete_its_row(
    engine: Engine,
) -> None:
    consumer = new_consumer(engine)
    apply(consumer, 1)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE inbox_owners RENAME TO away"))

    consumer.release()

    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO inbox_owners"))
    assert len(rows(engine)) == 1
