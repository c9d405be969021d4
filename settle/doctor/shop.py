"""The checks that only this system's services need: API settings, migrations, schemas, orders."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from services.orders import models as orders
from services.payments import models as payments
from settle_outbox.checks.check import duration, fail, grade, ok
from settle_outbox.checks.delivery import (
    COUNT_LIMIT,
    IDS_SHOWN,
    LATE_FAIL_S,
    LATE_WARN_S,
    counted,
    shown_ids,
)
from settle_outbox.checks.schema import ExpectedSchema
from settle_outbox.checks.service import check_database, database_checks
from settle_outbox.checks.upkeep import HOT_TABLES
from settle_outbox.errors import SettleError
from settle_outbox.storage import tables as outbox
from shared import cursor_secrets
from shared.migrations import head
from shared.settings import read_web_settings
from shared.web.idempotency import tables as idempotency

if TYPE_CHECKING:
    from collections.abc import Iterator

    from settle_outbox.checks.check import Finding, NamedCheck
    from settle_outbox.checks.database import Database

_SHARED = (outbox.metadata, idempotency.metadata, cursor_secrets.metadata)
SCHEMAS = {
    "orders": ExpectedSchema(
        (orders.Base.metadata, *_SHARED),
        frozenset({"orders.orders_final"}),
    ),
    "payments": ExpectedSchema(
        (payments.Base.metadata, *_SHARED),
        frozenset({"transfers.transfers_append_only", "payments.payments_append_only"}),
    ),
}
LARGE_TABLES = {"orders": "orders", "payments": "accounts"}
_OPEN_ORDERS = """
    SELECT id::text, extract(epoch FROM clock_timestamp() - created_at)::float, count(*) OVER ()
    FROM (
        SELECT id, created_at FROM orders
        WHERE status = 'created' AND created_at < clock_timestamp() - interval '1 minute'
        ORDER BY created_at LIMIT %(limit)s
    ) AS late ORDER BY created_at LIMIT %(shown)s
"""


def check_service(service: str, *, quick: bool) -> Iterator[Finding]:
    """Check the settings and the database of a service.

    Args:
        service: the service's name. A service of another system gets only the engine's checks.
        quick: only run the checks of what keeps the stack from starting.
    """
    if service not in SCHEMAS:
        yield from check_database(service, database_checks)
        return
    try:
        read_web_settings(service)
    except SettleError as error:
        yield fail(f"{service} api settings", str(error), "correct the variable")
    yield from check_database(service, partial(_checks, quick=quick))


def _checks(database: Database, *, quick: bool) -> Iterator[NamedCheck]:
    service = database.service
    yield f"{service} migrations", partial(check_migrations, database)
    if quick:
        return
    hot_tables = (*HOT_TABLES, LARGE_TABLES[service])
    yield from database_checks(database, partial(_expected_schema, database), hot_tables)
    if service == "orders":
        yield f"{service} open", partial(check_open_orders, database)


def _expected_schema(database: Database) -> ExpectedSchema:
    is_migrated = revision(database) == head(database.service)
    return SCHEMAS[database.service] if is_migrated else ExpectedSchema()


def revision(database: Database) -> str | None:
    """Return the migration that a database is at; None before the first one."""
    ((is_there,),) = database.ask("SELECT to_regclass('alembic_version') IS NOT NULL")
    rows = database.ask("SELECT version_num FROM alembic_version") if is_there else []
    return str(rows[0][0]) if rows else None


def check_migrations(database: Database) -> Iterator[Finding]:
    """Check that the database is at the code's revision."""
    service = database.service
    name = f"{service} migrations"
    found, needed = revision(database), head(service)
    if found == needed:
        yield ok(name, f"at revision {found}")
        return
    remedy = f"run settle up, or alembic -n {service} upgrade head"
    yield fail(name, f"at revision {found}, the code needs {needed}", remedy)


def check_open_orders(database: Database) -> Iterator[Finding]:
    """Check for orders that have been open for too long."""
    name = f"{database.service} open"
    found = database.ask(_OPEN_ORDERS, {"limit": COUNT_LIMIT, "shown": IDS_SHOWN})
    if not found:
        yield ok(name, f"none for more than {duration(LATE_WARN_S)}")
        return
    _, age_s, count = found[0]
    yield grade(
        name,
        age_s,
        f"{counted(count)} in created, the oldest for {duration(age_s)}: "
        f"{shown_ids([order_id for order_id, *_ in found], count)}",
        "follow the first one: unsent events of orders, lag and dead letters of payments, unsent"
        " events of payments, lag and dead letters of orders",
        warn_over=LATE_WARN_S,
        fail_over=LATE_FAIL_S,
    )
