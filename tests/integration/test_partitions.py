"""Partitions come ahead of need and go after retention, whoever writes meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from shared import outbox
from shared.migrations import upgrade
from shared.outbox import Event
from shared.outbox.partitions import horizon, inbox_partitions, maintain, outbox_partitions
from shared.outbox.uuid7 import least_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from shared.outbox.partitions import Partitioned
    from support.postgres import PostgresServer

DAY = timedelta(days=1)
NOON = datetime(2031, 3, 10, 12, tzinfo=UTC)
RETENTION_S = 7 * 24 * 60 * 60
OUTBOX = outbox_partitions(RETENTION_S)
INBOX = inbox_partitions(RETENTION_S)


@pytest.fixture
def engine(any_postgres: PostgresServer) -> Iterator[Engine]:
    """A database of orders on each PostgreSQL there is."""
    name = f"partitions_{any_postgres.major}"
    url = any_postgres.create_database(name)
    upgrade("orders", url)
    engine = create_engine(url)
    yield engine
    engine.dispose()
    any_postgres.drop_database(name)


def id_at(moment: datetime, number: int = 0) -> UUID:
    """A UUIDv7 of that moment."""
    return UUID(int=least_id(moment).int | 0x7 << 76 | 0b10 << 62 | number)


def add(engine: Engine, *ids: UUID) -> None:
    with Session(engine) as session, session.begin():
        outbox.add_all(
            session, [Event("orders", "a", "order.created", {}, id=each) for each in ids]
        )


def receive(engine: Engine, *ids: UUID) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                'INSERT INTO inbox (id, type, source, topic, partition, "offset", outcome)'
                " SELECT id, 't', '/s', 'o', 0, 0, 'applied' FROM unnest(CAST(:ids AS uuid[])) id"
            ),
            {"ids": [str(each) for each in ids]},
        )


def query(engine: Engine, statement: str) -> list[object]:
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return list(result.scalars()) if result.returns_rows else []


def days(engine: Engine, table: str) -> list[str]:
    return [
        str(name).removeprefix(f"{table}_p")
        for name in query(
            engine,
            "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid"
            f" WHERE inhparent = '{table}'::regclass AND relname <> '{table}_default' ORDER BY 1",
        )
    ]


@pytest.mark.parametrize("partitioned", [OUTBOX, INBOX], ids=["outbox", "inbox"])
def test_days_are_made_ahead_and_take_what_the_default_holds(
    engine: Engine, partitioned: Partitioned
) -> None:
    table = partitioned.table
    put = add if table == "outbox" else receive
    foreign = UUID("3f2b8c1e-7d7a-4c39-9d0e-6a0f5f4f9b11")
    kept = [id_at(NOON, 1), id_at(NOON - 3 * DAY, 2), id_at(NOON + 2 * DAY, 3)]
    left = [id_at(NOON - 30 * DAY, 4), id_at(NOON + 30 * DAY, 5), foreign]
    put(engine, *kept, *left)  # no partition, and nothing is refused
    assert len(query(engine, f"SELECT id FROM {table}_default")) == 6

    maintain(engine, partitioned, NOON)
    assert days(engine, table) == ["20310307", "20310310", "20310311", "20310312", "20310313"]
    assert set(query(engine, f"SELECT id FROM {table}_default")) == set(left)
    assert set(query(engine, f"SELECT id FROM {table}")) == {*kept, *left}
    assert query(engine, f"SELECT id FROM {table}_p20310307") == [kept[1]]
    put(engine, id_at(NOON + DAY, 6))
    assert query(engine, f"SELECT id FROM {table}_p20310311") == [id_at(NOON + DAY, 6)]
    if table == "outbox":
        # Rows that were moved keep their number and their shard.
        assert query(
            engine, "SELECT o.seq FROM outbox o JOIN outbox_pending p USING (id, seq, shard)"
        ) == query(engine, "SELECT seq FROM outbox")

    maintain(engine, partitioned, NOON)
    assert len(days(engine, table)) == 5


def test_what_is_past_retention_goes_unless_it_is_still_to_be_sent(engine: Engine) -> None:
    for back in (0, 1, 2):
        maintain(engine, OUTBOX, NOON + back * DAY)
        maintain(engine, INBOX, NOON + back * DAY)
    unsent = id_at(NOON + DAY)
    add(engine, id_at(NOON), unsent)
    query(engine, f"DELETE FROM outbox_pending WHERE id <> '{unsent}'")
    receive(engine, id_at(NOON), unsent)
    with engine.connect() as connection:
        assert horizon(connection) is None

    midnight = NOON.replace(hour=0)
    for at, outbox_from, inbox_from in [
        # The 10th is over at midnight of the 11th; seven days later is the moment.
        (midnight + 8 * DAY - timedelta(microseconds=1), "20310310", "20310310"),
        (midnight + 8 * DAY, "20310311", "20310311"),
        (midnight + 9 * DAY, "20310311", "20310312"),  # the 11th has an unsent event
    ]:
        maintain(engine, OUTBOX, at)
        maintain(engine, INBOX, at)
        assert (days(engine, "outbox")[0], days(engine, "inbox")[0]) == (outbox_from, inbox_from)
    # The horizon stands where the inbox begins, in one row.
    assert query(engine, "SELECT before FROM inbox_horizon") == [least_id(midnight + 2 * DAY)]
    assert query(engine, "SELECT id FROM outbox") == [unsent]

    query(engine, "DELETE FROM outbox_pending")
    maintain(engine, OUTBOX, midnight + 9 * DAY)
    assert days(engine, "outbox")[0] == "20310312"


def test_a_partition_in_use_is_left_for_later_and_nobody_waits_long(engine: Engine) -> None:
    maintain(engine, OUTBOX, NOON)
    with engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM outbox"))
        maintain(engine, OUTBOX, NOON + 9 * DAY)  # neither makes nor drops, nor raises
    assert days(engine, "outbox")[0] == "20310310"
    maintain(engine, OUTBOX, NOON + 9 * DAY)
    assert days(engine, "outbox")[0] == "20310312"


def test_partitions_are_made_under_writers_by_several_at_once(engine: Engine) -> None:
    """A row on its way to the default partition is not refused because its day is made."""
    most = 12
    both = [outbox_partitions(60 * RETENTION_S), inbox_partitions(60 * RETENTION_S)]
    done = threading.Event()

    def write(writer: int) -> int:
        number = 0
        while not done.is_set():
            number += 2
            ids = [id_at(NOON + day * DAY, number + writer) for day in range(most + 3)]
            add(engine, *ids)
            receive(engine, *ids)
        return number // 2 * (most + 3)

    def look_after() -> None:
        for day in range(most):
            for partitioned in both:
                maintain(engine, partitioned, NOON + day * DAY)

    with ThreadPoolExecutor() as threads:
        writers = [threads.submit(write, number) for number in (0, 1)]
        keepers = [threads.submit(look_after) for _ in range(3)]
        wait(keepers, 60)
        done.set()
        written = sum(writer.result() for writer in writers)
        for keeper in keepers:
            keeper.result()
    for table in ("outbox", "outbox_pending", "inbox"):
        assert query(engine, f"SELECT count(*) FROM {table}") == [written]
    for partitioned in both:  # a day that was locked all the time is made at the next call
        maintain(engine, partitioned, NOON + (most - 1) * DAY)
        assert query(engine, f"SELECT id FROM {partitioned.table}_default LIMIT 1") == []
