"""Counts of events that the service does not subscribe to.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from settle_outbox.storage import migrations

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the engine's table of its third version."""
    migrations.create_v3()


def downgrade() -> None:
    """Drop it, with what is in it."""
    migrations.drop_v3()
