"""The id of what a request created, kept with its answer.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from shared.web.idempotency import migrations

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    migrations.create_v2()


def downgrade() -> None:
    """Drop it."""
    migrations.drop_v2()
