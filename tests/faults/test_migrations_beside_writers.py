"""A migration of large tables does not hold up writers."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, inspect, text
from sqlalchemy.exc import OperationalError

from settle_outbox.storage.sqlstate import LOCK_NOT_AVAILABLE, sqlstate_of
from shared import migrations
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from support.postgres import PostgresServer

DATABASE = "migrations_beside_writers"
ROWS = 200_000
# Maximum time for which a writer may wait for a lock. PostgreSQL counts only the wait for the lock,
# so a slow test machine does not fail the test.
WRITER_LOCK_TIMEOUT_MS = 500

# For each table that grows with the traffic, the statement that inserts :count rows.
GROWING = {
    "orders": """
        INSERT INTO orders (id, user_id, amount, description, status, created_at, updated_at)
        SELECT gen_random_uuid(), gen_random_uuid(), 1, 'a book', 'created', now(), now()
        FROM generate_series(1, :count)
    """,
    "accounts": """
        INSERT INTO accounts (user_id, balance)
        SELECT gen_random_uuid(), 0 FROM generate_series(1, :count)
    """,
    "transfers": """
        INSERT INTO transfers (from_account_id, to_account_id, amount, kind, order_id)
        SELECT 1, 2, 1, kind, CASE kind WHEN 'charge' THEN gen_random_uuid() END
        FROM generate_series(1, :count) AS n, LATERAL (
            SELECT CASE n % 2 WHEN 0 THEN 'charge' ELSE 'deposit' END AS kind
        ) AS kinds
    """,
    "payments": """
        INSERT INTO payments (order_id, user_id, amount, status)
        SELECT gen_random_uuid(), gen_random_uuid(), 1, 'succeeded' FROM generate_series(1, :count)
    """,
    "outbox": """
        INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
        SELECT gen_random_uuid(), 'orders', n::text, 'order.created', '{}'
        FROM generate_series(1, :count) AS n
    """,
    "outbox_pending": """
        INSERT INTO outbox_pending (shard, seq, id)
        SELECT 0, nextval(pg_get_serial_sequence('outbox', 'seq')), gen_random_uuid()
        FROM generate_series(1, :count)
    """,
    "inbox": """
        INSERT INTO inbox (id, type, source, topic, partition, "offset", outcome)
        SELECT gen_random_uuid(), 'order.created', '/orders', 'orders.events', 0, n, 'applied'
        FROM generate_series(1, :count) AS n
    """,
    "dead_letters": """
        INSERT INTO dead_letters (fingerprint, topic, partition, "offset", headers, reason, detail)
        SELECT uuid_send(gen_random_uuid()), 'orders.events', 0, n, '[]', 'invalid_data', 'x'
        FROM generate_series(1, :count) AS n
    """,
    "idempotency_keys": """
        INSERT INTO idempotency_keys (caller, method, path, key, fingerprint)
        SELECT '', 'POST', '/orders', gen_random_uuid()::text, '' FROM generate_series(1, :count)
    """,
}
# Tables that stay small. A revision locks one of them only for a short time.
SMALL = {
    "alembic_version",
    "cursor_secrets",
    "dead_letter_requests",
    "inbox_attempts",
    "inbox_brakes",
    "inbox_default",
    "inbox_horizon",
    "inbox_owners",
    "inbox_skipped",
    "outbox_clusters",
    "outbox_default",
    "outbox_refused",
    "outbox_shards",
    "outbox_topics",
}


@pytest.fixture
def engine(postgres: PostgresServer) -> Iterator[Engine]:
    """Create an empty database in which it takes long to build an index."""
    engine = create_engine(postgres.create_database(DATABASE), poolclass=NullPool)
    postgres.execute(f"ALTER DATABASE {DATABASE} SET maintenance_work_mem = '1MB'")
    postgres.execute(f"ALTER DATABASE {DATABASE} SET max_parallel_maintenance_workers = 0")
    yield engine
    postgres.drop_database(DATABASE)


def fill(engine: Engine, tables: set[str]) -> None:
    with engine.begin() as connection:
        for table in sorted(tables):
            connection.execute(text(GROWING[table]), {"count": ROWS})


class Writer:
    """Writes to each table in turn, in a transaction that it rolls back, until stopped.

    Attributes:
        written: How many times the writer has written to all tables.
        held_up: The tables for which it waited too long, once for each time.
    """

    def __init__(self, engine: Engine, tables: set[str]) -> None:
        self._engine = engine
        self._tables = sorted(tables)
        self._stop = threading.Event()
        self.written = 0
        self.held_up: list[str] = []

    def run(self) -> None:
        with self._engine.connect() as connection:
            while not self._stop.is_set():
                for table in self._tables:
                    self._write(connection, table)
                self.written += 1

    def _write(self, connection: Connection, table: str) -> None:
        connection.execute(text(f"SET LOCAL lock_timeout = {WRITER_LOCK_TIMEOUT_MS}"))
        try:
            connection.execute(text(GROWING[table]), {"count": 1})
        except OperationalError as error:
            if sqlstate_of(error) != LOCK_NOT_AVAILABLE:
                raise
            self.held_up.append(table)
        connection.rollback()

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def writing(engine: Engine, tables: set[str]) -> Iterator[Writer]:
    """Run a writer in a thread. It has written before the context begins."""
    writer = Writer(engine, tables)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        wait_until(lambda: writer.written or not thread.is_alive(), what="the writer to write")
        yield writer
    finally:
        writer.stop()
        thread.join(30)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("service", ["payments", "orders"])
def test_no_revision_holds_up_writers(engine: Engine, service: str) -> None:
    config = migrations.config_of(service)
    config.attributes["database_url"] = engine.url.render_as_string(hide_password=False)
    revisions = [each.revision for each in ScriptDirectory.from_config(config).walk_revisions()]
    filled: set[str] = set()
    held_up = {}

    for revision in reversed(revisions):
        with writing(engine, filled) as writer:
            command.upgrade(config, revision)
        if writer.held_up:
            held_up[revision] = writer.held_up
        growing = set(inspect(engine).get_table_names()) - SMALL
        fill(engine, growing - filled)
        filled = growing

    assert held_up == {}
