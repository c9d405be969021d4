"""The migrations make what the code knows, whoever runs them, and however often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine, inspect, text
from sqlalchemy.exc import InternalError

from settle_outbox.storage import tables
from shared import migrations
from shared.idempotency import tables as idempotency_tables
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from support.postgres import PostgresServer

SERVICES = ["payments", "orders"]
EMPTY = "migrations_test"

# The constraints, as the database writes them; of the engine's tables their own tests take care.
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
    """An empty database."""
    engine = create_engine(postgres.create_database(EMPTY), poolclass=NullPool)
    yield engine
    postgres.drop_database(EMPTY)


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def config_of(service: str, engine: Engine) -> Config:
    config = Config(migrations.CONFIG_FILE, ini_section=service)
    config.attributes["database_url"] = url_of(engine)
    return config


def tables_of(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


@pytest.mark.parametrize("service", SERVICES)
def test_models_and_migrations_do_not_drift(engine: Engine, service: str) -> None:
    """Tables, columns, types, defaults and indexes, by alembic's comparison."""
    migrations.upgrade(service, url_of(engine))
    command.check(config_of(service, engine))


@pytest.mark.parametrize("service", SERVICES)
def test_constraints_of_models_and_migrations_do_not_drift(engine: Engine, service: str) -> None:
    """What alembic does not compare, CHECK constraints above all."""
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
def test_up_down_and_up_again(engine: Engine, service: str) -> None:
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


@pytest.mark.parametrize("service", SERVICES)
def test_of_two_at_once_one_waits_and_finds_nothing_to_do(engine: Engine, service: str) -> None:
    """As when several machines start together; one is held where the other has the lock."""
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


def test_head_is_what_a_database_gets(engine: Engine) -> None:
    migrations.upgrade("orders", url_of(engine))
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    assert found == migrations.head("orders")


def test_an_index_that_was_made_beforehand_is_kept(engine: Engine) -> None:
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


def test_an_index_whose_making_was_interrupted_is_refused(engine: Engine) -> None:
    """The indexes that it replaces stay until it is whole."""
    command.upgrade(config_of("orders", engine), "0004")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE INDEX orders_by_user ON orders (user_id, status)"))
        connection.execute(
            text(
                "UPDATE pg_index SET indisvalid = false"
                " WHERE indexrelid = 'orders_by_user'::regclass"
            )
        )

        with pytest.raises(InternalError, match="orders_by_user is invalid"):
            command.upgrade(config_of("orders", engine), "head")

        kept = text("SELECT to_regclass('orders_newest_of_user') IS NOT NULL")
        assert connection.scalar(kept)
