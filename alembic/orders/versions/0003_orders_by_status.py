"""Orders by status.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# One of user and status as well made writing an order half as dear again; a user's own orders are
# few enough to look through.
_INDEX = "CREATE INDEX orders_newest_of_status ON orders (status, created_at DESC, id DESC)"


def upgrade() -> None:
    """Make a list of the orders with a rare status cost no more than others."""
    op.execute(_INDEX)


def downgrade() -> None:
    """Drop the index."""
    op.execute("DROP INDEX orders_newest_of_status")
