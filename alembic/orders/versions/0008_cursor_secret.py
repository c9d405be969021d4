"""A random secret for the cursors of lists.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from shared import cursor_secrets

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the secret."""
    cursor_secrets.create()


def downgrade() -> None:
    """Drop it."""
    cursor_secrets.drop()
