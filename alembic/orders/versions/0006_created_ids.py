"""The id of what a request created, kept with its answer.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from shared.web.idempotency import migrations

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    migrations.create_v2()


def downgrade() -> None:
    """Drop it."""
    migrations.drop_v2()
