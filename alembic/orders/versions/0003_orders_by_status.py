"""Orders by status.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from shared import migrations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make a list of the orders with a rare status cost no more than others."""
    # One of user and status as well made writing an order half as dear again; a user's own orders
    # are few enough to look through.
    migrations.create_index("orders_newest_of_status", "orders (status, created_at DESC, id DESC)")


def downgrade() -> None:
    """Drop the index."""
    migrations.drop_index("orders_newest_of_status")
