"""Failing events, stopped subscriptions, known clusters.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from settle_outbox.storage import migrations

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the engine's tables of its second version."""
    migrations.create_v2()


def downgrade() -> None:
    """Drop them, with what is in them."""
    migrations.drop_v2()
