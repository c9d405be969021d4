"""The migrations create the schema that the code expects, even if they run twice or in parallel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, NullPool, create_engine, event, inspect, text
from sqlalchemy.exc import OperationalError

from settle_outbox.storage import tables
from shared import migrations
from shared.web.idempotency import tables as idempotency_tables
from support.pooler import Pooler
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.config import Config
    from sqlalchemy import Connection

    from support.postgres import PostgresServer

SERVICES = ["payments", "orders"]
EMPTY = "migrations_test"

# The constraints as PostgreSQL prints them. The tables of settle_outbox have other tests.
_CONSTRAINTS = text(
    """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE conrelid::regclass::text = ANY(:tables) AND contype <> 'n'
    ORDER BY 1, 2
    """
)


@pytest.fixture
def engine(postgres: PostgresServer) -> Iterator[Engine]:
    """Return an engine of an empty database."""
    engine = create_engine(postgres.create_database(EMPTY), poolclass=NullPool)
    yield engine
    postgres.drop_database(EMPTY)


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def config_of(service: str, engine: Engine) -> Config:
    config = migrations.config_of(service)
    config.attributes["database_url"] = url_of(engine)
    return config


def revisions_of(service: str) -> list[str]:
    """Return the revisions of a service, oldest first."""
    script = ScriptDirectory.from_config(migrations.config_of(service))
    return [each.revision for each in script.walk_revisions()][::-1]


def tables_of(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def migrated_to(engine: Engine) -> str:
    with engine.connect() as connection:
        return connection.scalar(text("SELECT version_num FROM alembic_version"))


def indexes_of(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        definitions = text("SELECT indexdef FROM pg_indexes WHERE tablename = 'orders'")
        return set(connection.scalars(definitions))


@pytest.mark.parametrize("service", SERVICES)
def test_models_and_migrations_do_not_drift(engine: Engine, service: str) -> None:
    """Alembic compares tables, columns, types, defaults and indexes."""
    migrations.upgrade(service, url_of(engine))
    command.check(config_of(service, engine))


@pytest.mark.parametrize("service", SERVICES)
def test_constraints_of_models_and_migrations_do_not_drift(engine: Engine, service: str) -> None:
    """Alembic does not compare CHECK constraints, for example."""
    known = [import_module(f"services.{service}.models").Base.metadata, idempotency_tables.metadata]
    names = {"tables": [name for metadata in known for name in metadata.tables]}
    migrations.upgrade(service, url_of(engine))
    with engine.begin() as connection:
        migrated = connection.execute(_CONSTRAINTS, names).all()
        connection.execute(text(f"DROP TABLE {', '.join(names['tables'])}"))
        for metadata in known:
            metadata.create_all(connection)
        modelled = connection.execute(_CONSTRAINTS, names).all()
    assert migrated
    assert modelled == migrated


@pytest.mark.parametrize("service", SERVICES)
def test_migrations_run_up_down_and_up_again(engine: Engine, service: str) -> None:
    migrations.upgrade(service, url_of(engine))
    made = tables_of(engine)
    known = set(import_module(f"services.{service}.models").Base.metadata.tables)
    assert made >= known | set(tables.metadata.tables)
    command.downgrade(config_of(service, engine), "base")
    assert tables_of(engine) == {"alembic_version"}
    migrations.upgrade(service, url_of(engine))
    assert tables_of(engine) == made


def waiting_for_a_lock(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def test_migrations_run_through_a_transaction_pooler(
    engine: Engine, postgres: PostgresServer
) -> None:
    with Pooler(postgres.port, ignored=[b"options"]).serving() as pooler:
        url = engine.url.set(port=pooler.port).render_as_string(hide_password=False)

        migrations.upgrade("orders", url)

    assert migrated_to(engine) == migrations.head("orders")


@pytest.mark.parametrize("service", SERVICES)
def test_a_concurrent_migration_waits_and_finds_nothing_to_do(engine: Engine, service: str) -> None:
    """Several machines may start together. The test holds the lock as the first migration would."""
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:key)"), {"key": migrations.ADVISORY_LOCK}
            )
            running = pool.submit(migrations.upgrade, service, url_of(engine))
            wait_until(lambda: waiting_for_a_lock(engine), what="the migration to wait")
            assert tables_of(engine) == set()
        running.result(timeout=30)
    migrations.upgrade(service, url_of(engine))
    assert "outbox" in tables_of(engine)


@contextmanager
def recorded_strong_locks() -> Iterator[set[str]]:
    """Collect the relations that are locked against writers when a transaction commits."""
    found: set[str] = set()

    def record(connection: Connection) -> None:
        cursor = connection.connection.cursor()
        cursor.execute(
            "SELECT relation::regclass::text FROM pg_locks"
            " WHERE pid = pg_backend_pid() AND locktype = 'relation' AND mode IN"
            " ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
        )
        found.update(name for (name,) in cursor.fetchall())
        cursor.close()

    event.listen(Engine, "commit", record)
    try:
        yield found
    finally:
        event.remove(Engine, "commit", record)


# The tables to which a revision adds columns. This locks them, but only for a moment: PostgreSQL
# does not rewrite a table for a column without a default, or with a constant one. Only dead_letters
# is read once, for its checks. A revision that does not get the lock within LOCK_TIMEOUT_MS is
# tried again.
_REPAIR_TABLES = {"dead_letters", "inbox", "inbox_default", "outbox_refused"}
ADDED_COLUMNS = {
    ("orders", "0009"): _REPAIR_TABLES,
    ("payments", "0008"): _REPAIR_TABLES,
    ("orders", "0006"): {"idempotency_keys"},
    ("payments", "0005"): {"idempotency_keys"},
}


@pytest.mark.parametrize("service", SERVICES)
def test_no_revision_locks_an_existing_table_against_writers(engine: Engine, service: str) -> None:
    """Examine the locks. tests/faults/test_migrations_beside_writers.py runs real writers."""
    config = config_of(service, engine)
    for revision in revisions_of(service):
        existing = tables_of(engine)

        with recorded_strong_locks() as locked:
            command.upgrade(config, revision)

        allowed = ADDED_COLUMNS.get((service, revision), set())
        assert locked & existing == allowed, f"revision {revision}"


def test_an_upgraded_database_has_the_head_revision(engine: Engine) -> None:
    migrations.upgrade("orders", url_of(engine))
    assert migrated_to(engine) == migrations.head("orders")


def test_an_index_built_before_the_migration_is_kept(engine: Engine) -> None:
    command.upgrade(config_of("orders", engine), "0004")
    statement = text(
        "CREATE INDEX CONCURRENTLY orders_by_status ON orders (status, created_at, id)"
    )
    oid = text("SELECT CAST('orders_by_status' AS regclass)::oid")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(statement)
        made = connection.scalar(oid)

        command.upgrade(config_of("orders", engine), "head")

        assert connection.scalar(oid) == made


def test_an_index_whose_build_was_interrupted_is_built_again(engine: Engine) -> None:
    command.upgrade(config_of("orders", engine), "0004")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE INDEX orders_by_user ON orders (user_id, status)"))
        connection.execute(
            text(
                "UPDATE pg_index SET indisvalid = false"
                " WHERE indexrelid = 'orders_by_user'::regclass"
            )
        )

        command.upgrade(config_of("orders", engine), "head")

        definition, is_valid = connection.execute(
            text(
                "SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index"
                " WHERE indexrelid = 'orders_by_user'::regclass"
            )
        ).one()
    assert "(user_id, status, created_at, id)" in definition
    assert is_valid


def test_a_revision_that_stopped_between_two_indexes_continues(engine: Engine) -> None:
    """An index is built outside a transaction, so a crash leaves a part of the revision."""
    command.upgrade(config_of("orders", engine), "0005")
    whole = indexes_of(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0004'"))
        connection.execute(text("DROP INDEX orders_by_user"))
        connection.execute(text("CREATE INDEX orders_newest_of_user ON orders (user_id)"))

    command.upgrade(config_of("orders", engine), "0005")

    assert indexes_of(engine) == whole


def test_a_revision_that_meets_a_lock_is_tried_again(engine: Engine) -> None:
    """Between its attempts, the revision does not wait for the lock, so writers continue."""
    migrations.upgrade("orders", url_of(engine))
    insert = text("INSERT INTO outbox_clusters (cluster_id) VALUES ('c')")
    with ThreadPoolExecutor(1) as pool, engine.connect() as reader:
        reader.execute(text("SELECT FROM outbox_clusters"))
        running = pool.submit(command.downgrade, config_of("orders", engine), "0003")
        wait_until(lambda: waiting_for_a_lock(engine), what="the revision to wait")

        with engine.begin() as writer:
            writer.execute(insert)
        reader.rollback()
        running.result(timeout=30)

    assert "outbox_clusters" not in tables_of(engine)
    assert migrated_to(engine) == "0003"


def test_a_relative_target_is_not_tried_again_from_another_revision(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt at -2 undoes one revision. A second attempt would undo three in total."""
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 50)
    command.upgrade(config_of("orders", engine), "0005")
    with engine.connect() as reader:
        reader.execute(text("SELECT FROM outbox_clusters"))

        with pytest.raises(OperationalError, match="lock timeout"):
            command.downgrade(config_of("orders", engine), "-2")

    assert migrated_to(engine) == "0004"


def test_a_revision_gives_up_if_the_lock_is_not_released(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "RETRY_FOR_S", 0.0)
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 50)
    migrations.upgrade("orders", url_of(engine))
    with engine.connect() as reader:
        reader.execute(text("SELECT FROM outbox_clusters"))

        with pytest.raises(OperationalError, match="lock timeout"):
            command.downgrade(config_of("orders", engine), "0003")

    assert "outbox_clusters" in tables_of(engine)


def test_a_migration_that_waits_too_long_names_the_other_migration(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "TURN_TIMEOUT_S", 0.1)
    with engine.begin() as connection:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:key)"), {"key": migrations.ADVISORY_LOCK}
        )

        with pytest.raises(migrations.MigrationsBusyError, match="migrations-orders"):
            migrations.upgrade("orders", url_of(engine))
