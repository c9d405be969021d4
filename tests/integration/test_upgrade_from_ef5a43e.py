"""Databases of commit ef5a43e keep every row in the upgrade, and work with the current code.

``databases/`` holds their dumps (``pg_dump --inserts``). The APIs, relays and consumers of that
commit wrote the rows, except for the horizons and the refused events. There are six orders: four
are settled, one is charged but its result is pending, and one has its own event pending.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, create_engine, text

from shared.migrations import upgrade
from support.delivery import Delivery
from support.schema import schema_of
from support.waiting import wait_until
from support.web import open_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.broker import Broker
    from support.postgres import PostgresServer

pytestmark = pytest.mark.slow

DUMPS = Path(__file__).parent / "databases"
SERVICES = ("payments", "orders")
TEN_YEARS_S = str(3650 * 24 * 60 * 60)
# Partitioned and plain tables, without partitions and without alembic_version, which changes.
TABLES = text(
    "SELECT relname::text FROM pg_class"
    " WHERE relkind IN ('r', 'p') AND NOT relispartition AND relname <> 'alembic_version'"
    " AND relnamespace = 'public'::regnamespace"
)
DAY_PARTITION = re.compile(r"table (?:outbox|inbox)_p\d{8} ")


@pytest.fixture
def urls(postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """Restore the old databases, and yield their URLs by service."""
    urls = {}
    try:
        for service in SERVICES:
            name = f"{service}_ef5a43e"
            urls[service] = postgres.create_database(name)
            postgres.execute((DUMPS / f"{service}-ef5a43e.sql").read_text(), database=name)
        yield urls
    finally:
        for service in SERVICES:
            postgres.drop_database(f"{service}_ef5a43e")


def rows_of(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table, by the table's name."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return {
            table: [
                json.loads(row)
                for row in connection.scalars(
                    text(f"SELECT to_jsonb(t)::text FROM public.{table} t ORDER BY t::text")
                )
            ]
            for table in connection.scalars(TABLES).all()
        }


def schema_at(url: str) -> set[str]:
    """Return the schema without partitions of days, and without parentheses, which a dump adds."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        lines = schema_of(connection)
    return {re.sub("[()]", "", line) for line in lines if not DAY_PARTITION.match(line)}


@pytest.mark.parametrize("service", SERVICES)
def test_every_row_is_kept_by_the_upgrade(urls: dict[str, str], service: str) -> None:
    """A later revision may add columns and tables. It keeps the existing ones."""
    before = rows_of(urls[service])
    assert [table for table, rows in before.items() if not rows] == []

    upgrade(service, urls[service])

    after = rows_of(urls[service])
    for table, rows in before.items():
        columns = rows[0].keys()
        kept = [{column: row[column] for column in columns} for row in after[table]]
        assert kept == rows, table


@pytest.mark.parametrize("service", SERVICES)
def test_the_upgraded_schema_equals_that_of_a_new_database(
    urls: dict[str, str], postgres: PostgresServer, databases: Callable[[str], str], service: str
) -> None:
    upgrade(service, urls[service])

    assert schema_at(urls[service]) == schema_at(postgres.url(databases(service)))


def test_the_services_work_with_the_upgraded_databases(
    urls: dict[str, str], broker: Broker
) -> None:
    for service in SERVICES:
        upgrade(service, urls[service])
    delivery = Delivery(urls["payments"], urls["orders"], broker.bootstrap)
    ((payer, balance),) = delivery.query(
        "payments", "SELECT user_id, balance FROM accounts WHERE balance > 0"
    )

    delivery.place(payer, 50)
    with (
        delivery.relay("orders"),
        delivery.relay("payments"),
        delivery.consumer("orders"),
        delivery.consumer("payments"),
    ):
        wait_until(
            lambda: "created" not in delivery.statuses(), timeout_s=60, what="orders to be settled"
        )

    assert delivery.statuses() == {"success": 5, "failed": 2}
    assert delivery.balance(payer) == balance - 100 - 50
    assert len(delivery.charges()) == 5
    assert [len(delivery.dead_letters(service)) for service in SERVICES] == [1, 1]


def test_a_request_from_before_the_upgrade_gets_its_stored_answer(urls: dict[str, str]) -> None:
    upgrade("orders", urls["orders"])
    answered = rows_of(urls["orders"])["idempotency_keys"][0]
    location = dict(answered["headers"])["Location"]
    orders = rows_of(urls["orders"])["orders"]
    (order,) = [row for row in orders if location.endswith(row["id"])]
    body = {name: order[name] for name in ("user_id", "amount", "description")}

    with open_app("orders", urls["orders"], IDEMPOTENCY_RETENTION_S=TEN_YEARS_S) as app:
        again = app.test_client().post(
            "/orders", json=body, headers={"Idempotency-Key": answered["key"]}
        )

    assert (again.status_code, again.headers["Location"]) == (202, location)
    assert rows_of(urls["orders"])["orders"] == orders
