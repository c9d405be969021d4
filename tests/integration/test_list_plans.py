"""Each list of orders reads the rows of one page, and few others, from an index.

The statistics are older than the newest orders, which have other users and statuses. So the planner
takes rare values among the newest orders for common ones, and the reverse.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session

from services.orders.listing import read_page
from services.orders.models import STATUSES
from support.plans import most_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.postgres import PostgresServer

DATABASE = "orders_list_plans"
LIMIT = 10
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
FORMER, CURRENT, UNKNOWN = UUID(int=1), UUID(int=2), UUID(int=3)
OLD, NEW = 100_000, 30_000

# There is one order a second. Of the old orders, 19 of 20 are FORMER's, 1 of 1000 is CURRENT's,
# 49 of 50 failed, and a single one is `created`. Of the new orders, 19 of 20 are CURRENT's, one
# third is `created`, and no order failed.
_FILL = text(
    """
    INSERT INTO orders
        (id, user_id, amount, description, status, failure_reason, created_at, updated_at)
    SELECT gen_random_uuid(), user_id, 1, '', status,
        CASE status WHEN 'failed' THEN 'insufficient_funds' END, moment, moment
    FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS n, LATERAL (
        SELECT
            CASE
                WHEN n <= :old AND n % 20 > 0 THEN CAST(:former AS uuid)
                WHEN n > :old AND n % 20 > 0 OR n % 1000 = 0 THEN CAST(:current AS uuid)
                ELSE gen_random_uuid()
            END AS user_id,
            CASE
                WHEN n > :old AND n % 3 = 0 OR n = 777 THEN 'created'
                WHEN n > :old OR n % 50 = 1 THEN 'success'
                ELSE 'failed'
            END AS status,
            CAST(:begin AS timestamptz) + n * interval '1 second' AS moment
    ) AS made
    """
)


@pytest.fixture(scope="module")
def session(postgres: PostgresServer, databases: Callable[[str], str]) -> Iterator[Session]:
    url = postgres.create_database(DATABASE, template=databases("orders"))
    engine = create_engine(url, poolclass=NullPool)
    users = {"former": FORMER, "current": CURRENT, "begin": BEGIN, "old": OLD}
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ALTER TABLE orders SET (autovacuum_enabled = off)"))
        connection.execute(_FILL, {"first": 1, "last": OLD, **users})
        connection.execute(text("VACUUM ANALYZE orders"))
        connection.execute(_FILL, {"first": OLD + 1, "last": OLD + NEW, **users})
    with Session(engine) as session:
        yield session
    postgres.drop_database(DATABASE)


@pytest.mark.parametrize("status", [None, *STATUSES])
@pytest.mark.parametrize(
    "user_id",
    [None, FORMER, CURRENT, UNKNOWN],
    ids=["all-users", "former-user", "current-user", "unknown-user"],
)
@pytest.mark.parametrize(
    "times",
    [
        {},
        {"created_from": BEGIN + timedelta(seconds=500)},
        {"created_from": BEGIN + timedelta(seconds=OLD + 500)},
        {"created_before": BEGIN + timedelta(seconds=OLD - 500)},
        {
            "created_from": BEGIN + timedelta(seconds=500),
            "created_before": BEGIN + timedelta(seconds=5_000),
        },
    ],
    ids=["", "from", "from-recent", "before", "from-and-before"],
)
def test_a_list_reads_one_page_from_an_index(
    session: Session, user_id: UUID | None, status: str | None, times: dict[str, datetime]
) -> None:
    """Check the first two pages. A list of a user merges one index scan for each status."""
    given: dict[str, Any] = {"user_id": user_id, "status": status, **times}
    filters = {name: value for name, value in given.items() if value is not None}
    scans = len(STATUSES) if user_id is not None and status is None else 1
    after = None

    for _ in range(2):

        def read(after: tuple[datetime, UUID] | None = after) -> Any:
            return read_page(session, limit=LIMIT, filters=filters, after=after)

        page = read()
        assert most_rows(session, read) <= scans * (LIMIT + 1)
        if not page.more:
            break
        after = (page.orders[-1].created_at, page.orders[-1].id)


def test_the_orders_of_a_user_are_newest_first_across_statuses(session: Session) -> None:
    before = BEGIN + timedelta(seconds=OLD + 5)
    plain = text(
        "SELECT id FROM orders WHERE user_id = :user_id AND created_at < :before"
        " ORDER BY created_at DESC, id DESC LIMIT 20"
    )

    page = read_page(
        session,
        limit=20,
        filters={"user_id": CURRENT, "created_before": before},
    )

    expected = session.scalars(plain, {"user_id": CURRENT, "before": before}).all()
    assert [row.id for row in page.orders] == expected
    assert {row.status for row in page.orders} == set(STATUSES)
