"""The table of orders. `alembic/orders` creates it; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    MetaData,
    Table,
    Text,
    Uuid,
)

DESCRIPTION_MAX = 10_000
FAILURE_REASON_MAX = 200

CREATED = "created"
SUCCESS = "success"
FAILED = "failed"
STATUSES = (CREATED, SUCCESS, FAILED)

metadata = MetaData()

# A trigger keeps what identifies an order, and a final status, as they are.
orders = Table(
    "orders",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("description", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("failure_reason", Text),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    CheckConstraint(
        "user_id <> '00000000-0000-0000-0000-000000000000'", name="orders_user_id_not_nil"
    ),
    CheckConstraint("amount >= 1", name="orders_amount_positive"),
    CheckConstraint(
        f"char_length(description) <= {DESCRIPTION_MAX}", name="orders_description_length"
    ),
    CheckConstraint("status IN ('created', 'success', 'failed')", name="orders_status_known"),
    CheckConstraint(
        "(status = 'failed') = (failure_reason IS NOT NULL)", name="orders_reason_of_failures"
    ),
    CheckConstraint(
        f"char_length(failure_reason) BETWEEN 1 AND {FAILURE_REASON_MAX}",
        name="orders_failure_reason_length",
    ),
)

# One for each list. The columns of an index have the same direction, because a query compares whole
# rows: (status, created_at, id) < (...). PostgreSQL reads an index in both directions.
Index("orders_newest", orders.c.created_at.desc(), orders.c.id.desc())
Index("orders_by_status", orders.c.status, orders.c.created_at, orders.c.id)
Index("orders_by_user", orders.c.user_id, orders.c.status, orders.c.created_at, orders.c.id)
