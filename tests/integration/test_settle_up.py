"""What `settle up` says of databases that it cannot migrate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config

from settle.stack import BOOTSTRAP, DATABASE_URLS, Stack, planned_stack
from settle.state import StateFolder
from settle.up import UpError, migrate
from settle_outbox.storage.database import connect_autocommit
from shared.migrations import CONFIG_FILE
from support.doctor import NOWHERE
from support.environ import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import PostgresServer

INVALID_INDEX = (
    "CREATE INDEX orders_by_user ON orders (user_id, status, created_at, id);"
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'orders_by_user'::regclass"
)


def stack_on(folder: Path, payments_url: str, orders_url: str) -> Stack:
    given = {"payments": payments_url, "orders": orders_url}
    urls = {DATABASE_URLS[service]: url for service, url in given.items()}
    with environment({**urls, BOOTSTRAP: NOWHERE}):
        return planned_stack(StateFolder(folder))


def run(url: str, statements: str) -> None:
    opened = connect_autocommit(url, application_name="test")
    with opened.cursor() as cursor:
        cursor.execute(statements)
    opened.close()


@pytest.fixture
def older_url(postgres: PostgresServer) -> Iterator[str]:
    """A database of orders before its last migration."""
    url = postgres.create_database("up_older")
    config = Config(CONFIG_FILE, ini_section="orders")
    config.attributes["database_url"] = url
    command.upgrade(config, "0004")
    yield url
    postgres.drop_database("up_older")


def test_a_database_of_a_later_version_is_told(
    tmp_path: Path, payments_url: str, orders_url: str
) -> None:
    run(orders_url, "UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(UpError) as no:
        migrate(stack_on(tmp_path, payments_url, orders_url))

    assert "database of orders cannot be migrated by this code" in str(no.value)
    assert "'9999'" in str(no.value)
    assert "if a later version has migrated it, run that one" in str(no.value)


def test_the_hint_of_a_migration_that_is_refused_is_told(
    tmp_path: Path, payments_url: str, older_url: str
) -> None:
    run(older_url, INVALID_INDEX)

    with pytest.raises(UpError) as no:
        migrate(stack_on(tmp_path, payments_url, older_url))

    assert "The index orders_by_user is invalid" in str(no.value)
    assert "Run REINDEX INDEX CONCURRENTLY for it" in str(no.value)


def test_a_database_that_does_not_answer_is_named_by_its_variable(
    tmp_path: Path, orders_url: str
) -> None:
    gone = f"postgresql+psycopg2://payments@{NOWHERE}/payments"

    with pytest.raises(UpError, match=r"of PAYMENTS_DATABASE_URL does not answer \(.*\): start it"):
        migrate(stack_on(tmp_path, gone, orders_url))
