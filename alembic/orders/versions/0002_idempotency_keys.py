"""Idempotency keys.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from shared.web.idempotency import migrations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of the keys."""
    migrations.create_v1()


def downgrade() -> None:
    """Drop it, with the keys in it."""
    migrations.drop_v1()
