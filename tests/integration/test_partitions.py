"""Partitions are created ahead and dropped after their retention, during concurrent writes."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from structlog.testing import capture_logs
from uuid_utils.compat import uuid7

import settle_outbox as outbox
from settle_outbox import Event
from settle_outbox.consume.circuit_breaker import read_state
from settle_outbox.storage import partition_maintenance
from settle_outbox.storage.catalog import query_runner
from settle_outbox.storage.partition_maintenance import Maintenance, maintain
from settle_outbox.storage.partitions import (
    inbox_partitions,
    outbox_partitions,
    retention_time,
    wanted_days,
)
from settle_outbox.uuid7 import lowest_id
from shared.migrations import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from settle_outbox.storage.partitions import Partitioned
    from support.postgres import PostgresServer

DAY = timedelta(days=1)
NOON = datetime(2031, 3, 10, 12, tzinfo=UTC)
RETENTION_S = 7 * 24 * 60 * 60
OUTBOX = outbox_partitions(RETENTION_S)
INBOX = inbox_partitions(RETENTION_S)
BOTH = pytest.mark.parametrize("partitioned", [OUTBOX, INBOX], ids=["outbox", "inbox"])
HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "wrong-horizon.md"


@pytest.fixture
def engine(any_postgres: PostgresServer) -> Iterator[Engine]:
    """Create an orders database on each available PostgreSQL version."""
    name = f"partitions_{any_postgres.major}"
    url = any_postgres.create_database(name)
    upgrade("orders", url)
    engine = create_engine(url)
    yield engine
    engine.dispose()
    any_postgres.drop_database(name)


def horizon(connection: Connection) -> UUID | None:
    """Return the horizon of the inbox as a consumer reads it."""
    with Session(connection) as session:
        return read_state(session).horizon


def id_at(moment: datetime, number: int = 0) -> UUID:
    """Return a UUIDv7 of this time."""
    return UUID(int=lowest_id(moment).int | 0x7 << 76 | 0b10 << 62 | number)


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


def put_sent(engine: Engine, *ids: UUID) -> None:
    """Add events, and mark them as sent."""
    add(engine, *ids)
    with engine.begin() as connection:
        connection.execute(
            text("DELETE FROM outbox_pending WHERE id = ANY (CAST(:ids AS uuid[]))"),
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


@BOTH
def test_days_are_created_ahead_and_get_the_rows_of_the_default_partition(
    engine: Engine, partitioned: Partitioned
) -> None:
    table = partitioned.table
    insert = add if table == "outbox" else receive
    foreign = UUID("3f2b8c1e-7d7a-4c39-9d0e-6a0f5f4f9b11")
    moved = [id_at(NOON, 1), id_at(NOON - 3 * DAY, 2), id_at(NOON + 2 * DAY, 3)]
    left = [id_at(NOON - 30 * DAY, 4), id_at(NOON + 30 * DAY, 5), foreign]
    insert(engine, *moved, *left)  # there is no partition yet, and the insert succeeds
    assert len(query(engine, f"SELECT id FROM {table}_default")) == 6

    maintain(engine, partitioned, NOON)
    assert days(engine, table) == ["20310307", "20310310", "20310311", "20310312", "20310313"]
    assert set(query(engine, f"SELECT id FROM {table}_default")) == set(left)
    assert set(query(engine, f"SELECT id FROM {table}")) == {*moved, *left}
    assert query(engine, f"SELECT id FROM {table}_p20310307") == [moved[1]]
    insert(engine, id_at(NOON + DAY, 6))
    assert query(engine, f"SELECT id FROM {table}_p20310311") == [id_at(NOON + DAY, 6)]
    if table == "outbox":
        # Moved rows keep their number and their shard.
        assert query(
            engine, "SELECT o.seq FROM outbox o JOIN outbox_pending p USING (id, seq, shard)"
        ) == query(engine, "SELECT seq FROM outbox")

    maintain(engine, partitioned, NOON)
    assert len(days(engine, table)) == 5


def test_partitions_past_retention_are_dropped_unless_they_have_pending_events(
    engine: Engine,
) -> None:
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
        # The partition of the 10th ends at midnight, and is dropped seven days after that.
        (midnight + 8 * DAY - timedelta(microseconds=1), "20310310", "20310310"),
        (midnight + 8 * DAY, "20310311", "20310311"),
        (midnight + 9 * DAY, "20310311", "20310312"),  # the 11th has a pending event
    ]:
        put_sent(engine, id_at(at))
        receive(engine, id_at(at))
        maintain(engine, OUTBOX, at)
        maintain(engine, INBOX, at)
        assert (days(engine, "outbox")[0], days(engine, "inbox")[0]) == (outbox_from, inbox_from)
    # The horizon is one row, at the start of the oldest partition.
    assert query(engine, "SELECT before FROM inbox_horizon") == [lowest_id(midnight + 2 * DAY)]
    assert query(engine, "SELECT id FROM outbox ORDER BY id LIMIT 1") == [unsent]

    query(engine, "DELETE FROM outbox_pending")
    maintain(engine, OUTBOX, midnight + 9 * DAY)
    assert days(engine, "outbox")[0] == "20310312"


def test_a_horizon_stays_when_the_partition_that_ends_at_it_is_dropped(engine: Engine) -> None:
    maintain(engine, INBOX, NOON)
    midnight = NOON.replace(hour=0)
    end_of_day = lowest_id(midnight + DAY)
    query(engine, f"INSERT INTO inbox_horizon VALUES ('{end_of_day}')")
    receive(engine, id_at(midnight + 8 * DAY))

    maintain(engine, INBOX, midnight + 8 * DAY)

    assert days(engine, "inbox")[0] == "20310311"
    assert query(engine, "SELECT before FROM inbox_horizon") == [end_of_day]


def test_a_partition_in_use_is_dropped_by_a_later_maintenance(engine: Engine) -> None:
    maintain(engine, OUTBOX, NOON)
    put_sent(engine, id_at(NOON + 9 * DAY))
    with engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM outbox"))
        # This creates nothing, drops nothing and does not raise.
        maintain(engine, OUTBOX, NOON + 9 * DAY)
    assert days(engine, "outbox")[0] == "20310310"
    maintain(engine, OUTBOX, NOON + 9 * DAY)
    assert days(engine, "outbox")[0] == "20310312"


def test_several_processes_create_partitions_during_writes(engine: Engine) -> None:
    """A row for the default partition is not refused while the partition of its day is created."""
    days_count = 12
    both = [outbox_partitions(60 * RETENTION_S), inbox_partitions(60 * RETENTION_S)]
    done = threading.Event()

    def write(writer: int) -> int:
        number = 0
        while not done.is_set():
            number += 2
            ids = [id_at(NOON + day * DAY, number + writer) for day in range(days_count + 3)]
            add(engine, *ids)
            receive(engine, *ids)
        return number // 2 * (days_count + 3)

    def maintain_all() -> None:
        for day in range(days_count):
            for partitioned in both:
                assert maintain(engine, partitioned, NOON + day * DAY) == []

    with ThreadPoolExecutor() as threads:
        writers = [threads.submit(write, number) for number in (0, 1)]
        maintainers = [threads.submit(maintain_all) for _ in range(3)]
        wait(maintainers, 60)
        done.set()
        written = sum(writer.result() for writer in writers)
        for maintainer in maintainers:
            maintainer.result()
    for table in ("outbox", "outbox_pending", "inbox"):
        assert query(engine, f"SELECT count(*) FROM {table}") == [written]
    for partitioned in both:  # a day that was locked all the time is created by the next call
        maintain(engine, partitioned, NOON + (days_count - 1) * DAY)
        assert query(engine, f"SELECT id FROM {partitioned.table}_default LIMIT 1") == []


# Clocks.


def put(engine: Engine, partitioned: Partitioned, *ids: UUID) -> None:
    (put_sent if partitioned is OUTBOX else receive)(engine, *ids)


def set_database_clock(engine: Engine, ahead: str) -> None:
    """Make the database's clock_timestamp() return another time, on new connections."""
    query(
        engine,
        "CREATE SCHEMA skewed; CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz"
        f" RETURN pg_catalog.clock_timestamp() + interval '{ahead}';",
    )
    query(
        engine,
        f'ALTER DATABASE "{engine.url.database}" SET search_path = public, skewed, pg_catalog',
    )
    engine.dispose()


def set_process_clock(monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> None:
    """Change the clock of this process, as the engine reads it."""
    monkeypatch.setattr(
        partition_maintenance,
        "time",
        SimpleNamespace(time=lambda: time.time() + ahead.total_seconds(), monotonic=time.monotonic),
    )


@BOTH
@pytest.mark.parametrize("days_ahead", [40, -40])
def test_a_process_with_a_wrong_clock_uses_the_databases_clock_and_warns(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, partitioned: Partitioned, days_ahead: int
) -> None:
    table = partitioned.table
    put(engine, partitioned, uuid7())
    maintain(engine, partitioned)
    before = days(engine, table)
    set_process_clock(monkeypatch, days_ahead * DAY)

    with capture_logs() as lines:
        maintain(engine, partitioned)

    assert days(engine, table) == before
    (skew,) = [line for line in lines if line["event"] == "clock.skew"]
    assert skew["log_level"] == "warning"
    assert skew["seconds"] == pytest.approx(days_ahead * 86_400, abs=5)
    with engine.connect() as connection:
        assert horizon(connection) is None


def test_clocks_that_agree_cause_no_warning(engine: Engine) -> None:
    with capture_logs() as lines:
        maintain(engine, OUTBOX)

    assert {line["event"] for line in lines} == {"partition.made"}


@BOTH
def test_a_database_whose_clock_is_days_ahead_drops_no_partition_within_retention_of_the_newest_row(
    engine: Engine, partitioned: Partitioned
) -> None:
    table, newest = partitioned.table, uuid7()
    put(engine, partitioned, newest)
    maintain(engine, partitioned)
    before = set(days(engine, table))
    set_database_clock(engine, "40 days")

    maintain(engine, partitioned)

    assert before <= set(days(engine, table))
    assert query(engine, f"SELECT id FROM {table}") == [newest]
    with engine.connect() as connection:
        assert horizon(connection) is None


@BOTH
def test_ids_from_the_future_and_of_other_versions_drop_nothing(
    engine: Engine, partitioned: Partitioned
) -> None:
    maintain(engine, partitioned, NOON)
    forged = [
        id_at(NOON + 4000 * DAY),
        UUID("ffffffff-ffff-7fff-bfff-ffffffffffff"),
        UUID("3f2b8c1e-7d7a-4c39-9d0e-6a0f5f4f9b11"),
        UUID(int=lowest_id(NOON + 39 * DAY).int | 4 << 76),  # not a UUIDv7
    ]
    put(engine, partitioned, id_at(NOON), *forged)

    for at in (NOON + DAY, NOON + 40 * DAY):
        maintain(engine, partitioned, at)

    assert days(engine, partitioned.table)[0] == "20310310"


@BOTH
def test_a_table_without_new_rows_keeps_its_partitions_until_the_next_row(
    engine: Engine, partitioned: Partitioned
) -> None:
    later = NOON + 60 * DAY
    maintain(engine, partitioned, NOON)
    maintain(engine, partitioned, later)  # empty
    put(engine, partitioned, id_at(NOON))
    maintain(engine, partitioned, later)  # idle
    assert days(engine, partitioned.table)[0] == "20310310"

    put(engine, partitioned, id_at(later))
    maintain(engine, partitioned, later)

    assert days(engine, partitioned.table) == ["20310509", "20310510", "20310511", "20310512"]


def test_the_horizon_is_never_later_than_the_databases_clock_minus_the_retention(
    engine: Engine,
) -> None:
    for day in range(12):
        receive(engine, id_at(NOON + day * DAY))
        maintain(engine, INBOX, NOON + day * DAY)

        with engine.connect() as connection:
            found = horizon(connection)
        assert found is None or found <= lowest_id(NOON + day * DAY - INBOX.retention)
    assert found is not None


def test_the_documented_repair_of_a_wrong_horizon_works(engine: Engine) -> None:
    dropped_at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
    future = lowest_id(datetime.now(UTC) + 10 * DAY)
    query(engine, f"INSERT INTO inbox_horizon VALUES ('{future}'), ('{lowest_id(NOON)}')")
    (statements,) = re.findall(
        r"```sql\n(BEGIN;\nDELETE FROM inbox_horizon;.*?)```",
        HOW_TO.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    moment = "2026-01-31 12:34:56+00"
    assert moment in statements

    with engine.connect() as connection:
        connection.exec_driver_sql(statements.replace(moment, dropped_at.isoformat()))

    assert query(engine, "SELECT before FROM inbox_horizon") == [lowest_id(dropped_at)]


@BOTH
def test_queries_of_large_tables_use_an_index(engine: Engine, partitioned: Partitioned) -> None:
    maintain(engine, partitioned, NOON)
    plans: list[str] = []
    with engine.connect() as connection:
        connection.exec_driver_sql("SET enable_seqscan = off; SET enable_sort = off")
        ask = query_runner(connection)

        def explain(query: str, parameters: Mapping[str, object]) -> Sequence[Sequence[object]]:
            if "LIMIT 1" in query:
                plans.append("\n".join(line for (line,) in ask(f"EXPLAIN {query}", parameters)))
            return ask(query, parameters)

        retention_time(explain, partitioned.table, NOON)
        wanted_days(explain, partitioned, NOON)

    assert len(plans) == 2
    assert all("Index" in plan and "Sort  (" not in plan for plan in plans), plans


# Changes of partitions by operators.


@BOTH
def test_partitions_with_other_names_or_bounds_are_kept_and_reported(
    engine: Engine, partitioned: Partitioned
) -> None:
    table = partitioned.table
    maintain(engine, partitioned, NOON - 60 * DAY)
    low, high = lowest_id(NOON - 100 * DAY), lowest_id(NOON - 99 * DAY)
    query(
        engine,
        "CREATE SCHEMA archive;"
        f"ALTER TABLE {table}_p20310109 RENAME TO {table}_p20310109_old;"
        f"ALTER TABLE {table}_p20310110 RENAME TO {table}_p2031;"
        f'ALTER TABLE {table}_p20310111 RENAME TO "{table.upper()}_P20310111";'
        f"ALTER TABLE {table}_p20310112 SET SCHEMA archive;"
        f"CREATE TABLE {table}_p20319999 PARTITION OF {table}"
        f" FOR VALUES FROM ('{low}') TO ('{high}');"
        f"CREATE TABLE {table}_p20310101 PARTITION OF {table}"
        f" FOR VALUES FROM ('{high}') TO ('{lowest_id(NOON - 98 * DAY)}');",
    )
    put(engine, partitioned, id_at(NOON))

    with capture_logs() as lines:
        failed = maintain(engine, partitioned, NOON)

    assert failed == []
    assert {
        (line["partition"], line["log_level"])
        for line in lines
        if line["event"] == "partition.foreign"
    } == {
        (f"{table}_p20310109_old", "warning"),
        (f"{table}_p2031", "warning"),
        (f'"{table.upper()}_P20310111"', "warning"),
        (f"archive.{table}_p20310112", "warning"),
        (f"{table}_p20319999", "warning"),
        (f"{table}_p20310101", "warning"),
    }
    assert len(days(engine, table)) == 10


@BOTH
def test_a_day_covered_by_a_foreign_partition_is_reported_and_the_others_are_created(
    engine: Engine, partitioned: Partitioned
) -> None:
    table = partitioned.table
    query(
        engine,
        f"CREATE TABLE {table}_march PARTITION OF {table} FOR VALUES"
        f" FROM ('{lowest_id(NOON)}') TO ('{lowest_id(NOON + DAY)}')",
    )

    with capture_logs() as lines:
        failed = maintain(engine, partitioned, NOON)

    assert failed == [f"{table}_p20310310", f"{table}_p20310311"]
    logged = [line for line in lines if line["event"] == "partition.failed"]
    assert [line["partition"] for line in logged] == failed
    assert "would overlap" in str(logged[0]["exc_info"])
    assert days(engine, table)[1:] == ["20310312", "20310313"]


@BOTH
def test_a_detached_partition_is_kept_and_reported(
    engine: Engine, partitioned: Partitioned
) -> None:
    table = partitioned.table
    maintain(engine, partitioned, NOON)
    put(engine, partitioned, id_at(NOON), id_at(NOON + 20 * DAY))
    query(engine, f"ALTER TABLE {table} DETACH PARTITION {table}_p20310310")

    with capture_logs() as lines:
        assert maintain(engine, partitioned, NOON + DAY) == []
        assert maintain(engine, partitioned, NOON) == [f"{table}_p20310310"]
        assert maintain(engine, partitioned, NOON + 20 * DAY) == []

    (logged,) = [line for line in lines if line["event"] == "partition.failed"]
    assert "Attach, rename or drop it" in str(logged["exc_info"])
    assert query(engine, f"SELECT id FROM {table}_p20310310") == [id_at(NOON)]


@BOTH
def test_a_missing_default_partition_is_created_and_a_renamed_one_is_used(
    engine: Engine, partitioned: Partitioned
) -> None:
    table = partitioned.table
    query(engine, f"DROP TABLE {table}_default")

    assert maintain(engine, partitioned, NOON) == []
    put(engine, partitioned, id_at(NOON + 9 * DAY))
    query(engine, f'ALTER TABLE {table}_default RENAME TO "The rest"')
    assert maintain(engine, partitioned, NOON + 9 * DAY) == []

    assert query(engine, f"SELECT id FROM {table}_p20310319") == [id_at(NOON + 9 * DAY)]
    assert query(engine, 'SELECT id FROM "The rest"') == []


def test_a_partition_is_created_in_the_schema_of_its_table(engine: Engine) -> None:
    query(engine, "CREATE SCHEMA first_in_path")
    query(
        engine,
        f'ALTER DATABASE "{engine.url.database}" SET search_path = first_in_path, public',
    )
    engine.dispose()

    maintain(engine, OUTBOX, NOON)

    assert query(engine, "SELECT 'public.outbox_p20310310'::regclass::text") == ["outbox_p20310310"]


def test_created_and_dropped_partitions_are_logged_with_static_event_names(engine: Engine) -> None:
    later = NOON + 10 * DAY
    with capture_logs() as lines:
        maintain(engine, OUTBOX, NOON)
        put_sent(engine, id_at(later))
        maintain(engine, OUTBOX, later)

    logged = [(line["event"], line["partition"]) for line in lines]
    assert logged[0] == ("partition.made", "outbox_p20310310")
    assert logged[-1] == ("partition.dropped", "outbox_p20310312")


# The maintenance job.


def test_rows_are_moved_in_batches_with_heartbeats_in_between(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_maintenance, "MOVE_ROWS", 10)
    ids = [id_at(NOON, number) for number in range(35)]
    add(engine, *ids)
    beats: list[None] = []

    maintain(engine, OUTBOX, NOON, beat=lambda: beats.append(None))

    assert query(engine, "SELECT id FROM outbox_p20310310 ORDER BY id") == ids
    # One for each of four days. One for each batch: the 35 rows take four, and an empty day one.
    assert len(beats) == 4 + 4 + 3


def test_a_failure_of_the_maintenance_is_reported_and_not_raised(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    maintenance = Maintenance(engine, OUTBOX, beat=lambda: None)
    monkeypatch.setattr(partition_maintenance, "read_partitions", lambda *_: 1 / 0)

    with capture_logs() as lines:
        maintenance.run()

    assert maintenance.problem == "partition upkeep failed: outbox"
    assert not maintenance.is_due
    (logged,) = lines
    assert (logged["event"], type(logged["exc_info"])) == (
        "partition.maintenance_failed",
        ZeroDivisionError,
    )


def test_an_unreachable_database_is_not_reported_as_a_failure_of_the_maintenance() -> None:
    away = create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/nowhere")
    maintenance = Maintenance(away, OUTBOX, beat=lambda: None)

    with pytest.raises(OperationalError):
        maintenance.run()

    assert maintenance.is_due
