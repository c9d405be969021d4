"""A random secret for the cursors of lists.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from shared import cursor_secrets

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the secret."""
    cursor_secrets.create()


def downgrade() -> None:
    """Drop it."""
    cursor_secrets.drop()
