"""Which consumer holds which Kafka partition.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from settle_outbox.storage import migrations

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create `inbox_owners`, the table of the partitions that consumers hold."""
    migrations.create_v5()


def downgrade() -> None:
    """Drop `inbox_owners` and its rows."""
    migrations.drop_v5()
