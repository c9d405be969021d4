"""Orders; the delivery engine's tables.

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

_ORDERS = """
CREATE TABLE orders (
    id             uuid PRIMARY KEY,
    user_id        uuid NOT NULL,
    amount         bigint NOT NULL,
    description    text NOT NULL,
    status         text NOT NULL,
    failure_reason text,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    CONSTRAINT orders_user_id_not_nil
        CHECK (user_id <> '00000000-0000-0000-0000-000000000000'),
    CONSTRAINT orders_amount_positive CHECK (amount >= 1),
    CONSTRAINT orders_description_length CHECK (char_length(description) <= 10000),
    CONSTRAINT orders_status_known CHECK (status IN ('created', 'success', 'failed')),
    CONSTRAINT orders_reason_of_failures
        CHECK ((status = 'failed') = (failure_reason IS NOT NULL)),
    CONSTRAINT orders_failure_reason_length CHECK (char_length(failure_reason) BETWEEN 1 AND 200)
);
CREATE INDEX orders_newest ON orders (created_at DESC, id DESC);
CREATE INDEX orders_newest_of_user ON orders (user_id, created_at DESC, id DESC);
COMMENT ON TABLE orders IS 'Orders by a UUIDv7; amounts in minor units.';
"""

_FINAL = """
CREATE FUNCTION refuse_order_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'order % (%): a final status, and what identifies an order, never change',
        OLD.id, OLD.status
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER orders_final BEFORE UPDATE ON orders
    FOR EACH ROW
    WHEN (
        OLD.status <> 'created'
        OR (OLD.id, OLD.user_id, OLD.amount, OLD.description, OLD.created_at)
            IS DISTINCT FROM (NEW.id, NEW.user_id, NEW.amount, NEW.description, NEW.created_at)
    )
    EXECUTE FUNCTION refuse_order_change();
"""


def upgrade() -> None:
    """Create everything."""
    op.execute(_ORDERS)
    op.execute(_FINAL)
    migrations.create_v1()


def downgrade() -> None:
    """Drop everything, with the orders in it."""
    migrations.drop_v1()
    op.execute("DROP TABLE orders")
    op.execute("DROP FUNCTION refuse_order_change()")
