"""The errors of `settle up` for databases that it cannot migrate, and databases of new services."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alembic import command

from settle.stack.databases import DatabaseNameError, create_database
from settle.stack.up import UpError, migrate
from settle_outbox.storage.database import connect_autocommit
from shared.migrations import config_of
from support.doctor import NOWHERE
from support.environ import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import PostgresServer

REFUSE_INDEXES = """
    CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'No indexes today' USING HINT = 'Wait for tomorrow'; END $$;
    CREATE EVENT TRIGGER refuse ON ddl_command_start
        WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION refuse();
"""


def migrate_both(payments_url: str, orders_url: str) -> None:
    urls = {"PAYMENTS_DATABASE_URL": payments_url, "ORDERS_DATABASE_URL": orders_url}
    with environment(urls):
        migrate()


def run(url: str, statements: str) -> None:
    opened = connect_autocommit(url, application_name="test")
    with opened.cursor() as cursor:
        cursor.execute(statements)
    opened.close()


@pytest.fixture
def older_url(postgres: PostgresServer) -> Iterator[str]:
    """Yield the URL of an orders database at revision 0004, which is not the newest."""
    url = postgres.create_database("up_older")
    config = config_of("orders")
    config.attributes["database_url"] = url
    command.upgrade(config, "0004")
    yield url
    postgres.drop_database("up_older")


def test_the_error_names_a_database_of_a_later_version(payments_url: str, orders_url: str) -> None:
    run(orders_url, "UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(UpError) as error:
        migrate_both(payments_url, orders_url)

    assert "database of orders cannot be migrated by this code" in str(error.value)
    assert "'9999'" in str(error.value)
    assert "if a later version has migrated it, run that version" in str(error.value)


def test_the_error_includes_the_hint_of_a_refused_migration(
    payments_url: str, older_url: str
) -> None:
    run(older_url, REFUSE_INDEXES)

    with pytest.raises(UpError) as error:
        migrate_both(payments_url, older_url)

    assert "No indexes today" in str(error.value)
    assert "Wait for tomorrow" in str(error.value)


def test_the_error_names_the_variable_of_a_database_that_does_not_answer(orders_url: str) -> None:
    gone = f"postgresql+psycopg2://payments@{NOWHERE}/payments"

    with pytest.raises(UpError, match=r"of PAYMENTS_DATABASE_URL does not answer \(.*\): start it"):
        migrate_both(gone, orders_url)


def test_another_service_gets_a_separate_database_and_keeps_it(postgres: PostgresServer) -> None:
    url = create_database(postgres.cluster, postgres.port, "user-stock")
    run(url, "CREATE TABLE kept (id integer)")

    again = create_database(postgres.cluster, postgres.port, "user-stock")

    assert again == url
    run(again, "SELECT FROM kept")
    postgres.execute('DROP DATABASE "user-stock"')
    postgres.execute('DROP ROLE "user-stock"')


@pytest.mark.parametrize(
    "name", ["", "orders", "postgres", "template1", "Stock", "a b", "1st", "x;"]
)
def test_an_invalid_database_name_is_refused(postgres: PostgresServer, name: str) -> None:
    with pytest.raises(DatabaseNameError, match="cannot have the name"):
        create_database(postgres.cluster, postgres.port, name)
