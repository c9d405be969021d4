"""The tables of payments. `alembic/payments` creates them; a test holds the two together.

Money is double entry: each transfer takes an amount from one account and gives it to another, so
the sum over all accounts is zero by construction. A user's balance is the sum of their transfers,
kept beside them; the system accounts `world` (where deposits come from) and `sales` (where
charges go) have none, since every transaction would queue for that row.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Table,
    Text,
    Uuid,
    func,
    text,
)

# The range of an amount and of a balance, in minor units: a positive int64.
AMOUNT_MAX = 2**63 - 1

WORLD = "world"
SALES = "sales"

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_id", Uuid, unique=True),
    Column("name", Text, unique=True),
    Column("balance", BigInteger),
    CheckConstraint("num_nonnulls(user_id, name) = 1", name="accounts_user_or_system"),
    CheckConstraint("(balance IS NULL) = (user_id IS NULL)", name="accounts_balance_of_users"),
    CheckConstraint("balance >= 0", name="accounts_balance_not_negative"),
    CheckConstraint(
        "user_id <> '00000000-0000-0000-0000-000000000000'", name="accounts_user_id_not_nil"
    ),
)

# Append-only: a trigger refuses UPDATE, DELETE and TRUNCATE.
transfers = Table(
    "transfers",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("from_account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("to_account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("order_id", Uuid, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("amount > 0", name="transfers_amount_positive"),
    CheckConstraint("kind IN ('deposit', 'charge')", name="transfers_kind_known"),
    CheckConstraint(
        "(kind = 'charge') = (order_id IS NOT NULL)", name="transfers_order_of_charges"
    ),
    CheckConstraint("from_account_id <> to_account_id", name="transfers_between_two"),
)

# The statement of a user's account reads both, each in its order.
Index(
    "transfers_deposits_of_account",
    transfers.c.to_account_id,
    transfers.c.id,
    postgresql_where=text("kind = 'deposit'"),
)
Index(
    "transfers_charges_of_account",
    transfers.c.from_account_id,
    transfers.c.id,
    postgresql_where=text("kind = 'charge'"),
)

# What became of each order, for good: an order that comes again, under whatever event id, is
# neither charged again nor revived. Append-only like the transfers.
payments = Table(
    "payments",
    metadata,
    Column("order_id", Uuid, primary_key=True),
    Column("user_id", Uuid, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("reason", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("amount > 0", name="payments_amount_positive"),
    CheckConstraint("status IN ('succeeded', 'failed')", name="payments_status_known"),
    CheckConstraint(
        "(status = 'failed') = (reason IS NOT NULL)", name="payments_reason_of_failures"
    ),
)
