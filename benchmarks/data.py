"""Create databases that hold data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.migrations import upgrade

if TYPE_CHECKING:
    from support.postgres import PostgresServer

# The orders belong to a thousand users. They are a minute apart, and the last one is placed now.
_ORDERS = """
INSERT INTO orders (id, user_id, amount, description, status, created_at, updated_at)
SELECT gen_random_uuid(), CAST(md5((number % 1000)::text) AS uuid), 1 + number % 10000,
    'Order ' || number, 'success', moment, moment
FROM generate_series(1, {count}) AS number,
    LATERAL (SELECT now() - ({count} - number) * interval '1 minute' AS moment) AS placed
"""

_ACCOUNTS = """
INSERT INTO accounts (user_id, balance)
SELECT CAST(md5(number::text) AS uuid), 0 FROM generate_series(1, {count}) AS number
"""


def orders_database(server: PostgresServer, name: str, count: int) -> str:
    """Create a database with `count` orders, and return its URL."""
    return _filled(server, "orders", name, _ORDERS.format(count=count))


def payments_database(server: PostgresServer, name: str, count: int) -> str:
    """Create a database with `count` empty accounts, each of another user, and return its URL."""
    return _filled(server, "payments", name, _ACCOUNTS.format(count=count))


def _filled(server: PostgresServer, service: str, name: str, statement: str) -> str:
    url = server.create_database(name)
    upgrade(service, url)
    server.execute(statement, database=name)
    server.execute("VACUUM ANALYZE", database=name)
    return url
