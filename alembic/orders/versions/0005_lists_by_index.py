"""An index for each list of orders.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from shared import migrations

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


# The number of indexes stays the same: every order pays for each of them. The code before this
# revision finds the same orders with these. It lists the orders of a user with very many, or of a
# rare status, more slowly until it is replaced.
def upgrade() -> None:
    """Replace the indexes of the lists by user and by status."""
    migrations.create_index("orders_by_status", "orders (status, created_at, id)")
    migrations.create_index("orders_by_user", "orders (user_id, status, created_at, id)")
    migrations.drop_index("orders_newest_of_status")
    migrations.drop_index("orders_newest_of_user")


def downgrade() -> None:
    """Make the former indexes again."""
    migrations.create_index("orders_newest_of_user", "orders (user_id, created_at DESC, id DESC)")
    migrations.create_index("orders_newest_of_status", "orders (status, created_at DESC, id DESC)")
    migrations.drop_index("orders_by_user")
    migrations.drop_index("orders_by_status")
