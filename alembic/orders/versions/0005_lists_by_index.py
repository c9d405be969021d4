"""An index for each list of orders.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The number of indexes stays the same: every order pays for each of them. The code before this
# revision finds the same orders with these. It lists the orders of a user with very many, or of a
# rare status, more slowly until it is replaced.
#
# `IF NOT EXISTS`: on a large table the indexes are built beforehand, while orders are placed; see
# docs/operations.md. DROP comes first, since its lock is the stronger one: a transaction that asks
# for the weaker lock first can deadlock with a consumer.
_UPGRADE = """
DO $$
DECLARE
    broken text := (
        SELECT string_agg(indexrelid::regclass::text, ', ') FROM pg_index
        WHERE indexrelid IN (to_regclass('orders_by_status'), to_regclass('orders_by_user'))
            AND NOT indisvalid
    );
BEGIN
    IF broken IS NOT NULL THEN
        RAISE EXCEPTION 'The index % is invalid, because its making was interrupted.', broken
            USING HINT = 'Run REINDEX INDEX CONCURRENTLY for it, then this migration again.';
    END IF;
END $$;
DROP INDEX orders_newest_of_status;
DROP INDEX orders_newest_of_user;
CREATE INDEX IF NOT EXISTS orders_by_status ON orders (status, created_at, id);
CREATE INDEX IF NOT EXISTS orders_by_user ON orders (user_id, status, created_at, id);
"""

_DOWNGRADE = """
CREATE INDEX orders_newest_of_user ON orders (user_id, created_at DESC, id DESC);
CREATE INDEX orders_newest_of_status ON orders (status, created_at DESC, id DESC);
DROP INDEX orders_by_user;
DROP INDEX orders_by_status;
"""


def upgrade() -> None:
    """Replace the indexes of the lists by user and by status."""
    op.execute(_UPGRADE)


def downgrade() -> None:
    """Make the former indexes again."""
    op.execute(_DOWNGRADE)
