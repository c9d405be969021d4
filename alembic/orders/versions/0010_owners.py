"""Which consumer holds which Kafka partition.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

from settle_outbox.storage import migrations

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create what the engine's fifth version adds."""
    migrations.create_v5()


def downgrade() -> None:
    """Drop it, with what is in it."""
    migrations.drop_v5()
