"""Accounts, transfers and payments; the delivery engine's tables.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from alembic import op

from settle_outbox.storage import migrations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ACCOUNTS = """
CREATE TABLE accounts (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id uuid UNIQUE,
    name    text UNIQUE,
    balance bigint,
    CONSTRAINT accounts_user_or_system CHECK (num_nonnulls(user_id, name) = 1),
    CONSTRAINT accounts_balance_of_users CHECK ((balance IS NULL) = (user_id IS NULL)),
    CONSTRAINT accounts_balance_not_negative CHECK (balance >= 0),
    CONSTRAINT accounts_user_id_not_nil
        CHECK (user_id <> '00000000-0000-0000-0000-000000000000')
);
COMMENT ON TABLE accounts IS
    'Of users, and two of the system: deposits come from world, charges go to sales.';
COMMENT ON COLUMN accounts.balance IS
    'The sum of the account''s transfers, in minor units; system accounts store none.';
INSERT INTO accounts (name) VALUES ('world'), ('sales');
"""

_TRANSFERS = """
CREATE TABLE transfers (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    from_account_id bigint NOT NULL REFERENCES accounts (id),
    to_account_id   bigint NOT NULL REFERENCES accounts (id),
    amount          bigint NOT NULL,
    kind            text NOT NULL,
    order_id        uuid UNIQUE,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT transfers_amount_positive CHECK (amount > 0),
    CONSTRAINT transfers_kind_known CHECK (kind IN ('deposit', 'charge')),
    CONSTRAINT transfers_order_of_charges CHECK ((kind = 'charge') = (order_id IS NOT NULL)),
    CONSTRAINT transfers_between_two CHECK (from_account_id <> to_account_id)
);
COMMENT ON TABLE transfers IS
    'The ledger: each row moves an amount from one account to another. Append-only.';
"""

_PAYMENTS = """
CREATE TABLE payments (
    order_id   uuid PRIMARY KEY,
    user_id    uuid NOT NULL,
    amount     bigint NOT NULL,
    status     text NOT NULL,
    reason     text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT payments_amount_positive CHECK (amount > 0),
    CONSTRAINT payments_status_known CHECK (status IN ('succeeded', 'failed')),
    CONSTRAINT payments_reason_of_failures CHECK ((status = 'failed') = (reason IS NOT NULL))
);
COMMENT ON TABLE payments IS
    'What became of each order, for good: none is charged twice or revived. Append-only.';
"""

_APPEND_ONLY = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER transfers_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payments_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON payments
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    """Create everything."""
    op.execute(_ACCOUNTS)
    op.execute(_TRANSFERS)
    op.execute(_PAYMENTS)
    op.execute(_APPEND_ONLY)
    migrations.create_v1()


def downgrade() -> None:
    """Drop everything, with the money in it."""
    migrations.drop_v1()
    op.execute("DROP TABLE payments, transfers, accounts")
    op.execute("DROP FUNCTION refuse_change()")
