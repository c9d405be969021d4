"""The tables of payments. `alembic/payments` creates them; a test compares the two.

Money is double entry: each transfer moves an amount from one account to another, so the sum over
all accounts is always zero. A user's balance is the stored sum of their transfers. The system
accounts `WORLD` (source of deposits) and `SALES` (target of charges) have no stored balance: all
deposits or charges would wait for one row.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Text,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Maximum of an amount and of a balance, in minor units: the maximum of an int64.
AMOUNT_MAX = 2**63 - 1

WORLD = "world"
SALES = "sales"

DEPOSIT = "deposit"
CHARGE = "charge"


class Base(DeclarativeBase):
    """Maps Python's types to the columns' types."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own form
        int: BigInteger,
        str: Text,
        datetime: DateTime(timezone=True),
    }


class Account(Base):
    """The account of a user, with a balance, or a system account, with a name."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    user_id: Mapped[UUID | None] = mapped_column(unique=True)
    name: Mapped[str | None] = mapped_column(unique=True)
    balance: Mapped[int | None]

    __table_args__ = (
        CheckConstraint("num_nonnulls(user_id, name) = 1", name="accounts_user_or_system"),
        CheckConstraint("(balance IS NULL) = (user_id IS NULL)", name="accounts_balance_of_users"),
        CheckConstraint("balance >= 0", name="accounts_balance_not_negative"),
        CheckConstraint(
            "user_id <> '00000000-0000-0000-0000-000000000000'", name="accounts_user_id_not_nil"
        ),
    )


class Transfer(Base):
    """A moved amount. Append-only: a trigger refuses UPDATE, DELETE and TRUNCATE."""

    __tablename__ = "transfers"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    from_account_id: Mapped[int] = mapped_column(ForeignKey(Account.id))
    to_account_id: Mapped[int] = mapped_column(ForeignKey(Account.id))
    amount: Mapped[int]
    kind: Mapped[str]
    order_id: Mapped[UUID | None] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint("amount > 0", name="transfers_amount_positive"),
        CheckConstraint("kind IN ('deposit', 'charge')", name="transfers_kind_known"),
        CheckConstraint(
            "(kind = 'charge') = (order_id IS NOT NULL)", name="transfers_order_of_charges"
        ),
        CheckConstraint("from_account_id <> to_account_id", name="transfers_between_two"),
    )


# The statement of an account reads both indexes.
Index(
    "transfers_deposits_of_account",
    Transfer.to_account_id,
    Transfer.id,
    postgresql_where=text("kind = 'deposit'"),
)
Index(
    "transfers_charges_of_account",
    Transfer.from_account_id,
    Transfer.id,
    postgresql_where=text("kind = 'charge'"),
)


class Payment(Base):
    """The decision on an order. It is made once.

    An order that comes again, even with another event id, is neither charged again nor revived.
    Append-only like the transfers.
    """

    __tablename__ = "payments"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    amount: Mapped[int]
    status: Mapped[str]
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint("amount > 0", name="payments_amount_positive"),
        CheckConstraint("status IN ('succeeded', 'failed')", name="payments_status_known"),
        CheckConstraint(
            "(status = 'failed') = (reason IS NOT NULL)", name="payments_reason_of_failures"
        ),
    )
