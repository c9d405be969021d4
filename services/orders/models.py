"""The table of orders. `alembic/orders` creates it; a test compares the two."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Index, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DESCRIPTION_MAX = 10_000
FAILURE_REASON_MAX = 200

CREATED = "created"
SUCCESS = "success"
FAILED = "failed"
STATUSES = (CREATED, SUCCESS, FAILED)


class Base(DeclarativeBase):
    """Maps Python's types to the columns' types."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own form
        int: BigInteger,
        str: Text,
        datetime: DateTime(timezone=True),
    }


class Order(Base):
    """An order. A trigger allows only the change from `created` to a final status."""

    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    amount: Mapped[int]
    description: Mapped[str]
    status: Mapped[str]
    failure_reason: Mapped[str | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    __table_args__ = (
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


# One index per list. All columns of an index have the same direction, because a query compares
# whole rows: (status, created_at, id) < (...). PostgreSQL reads an index in both directions.
Index("orders_newest", Order.created_at.desc(), Order.id.desc())
Index("orders_by_status", Order.status, Order.created_at, Order.id)
Index("orders_by_user", Order.user_id, Order.status, Order.created_at, Order.id)
