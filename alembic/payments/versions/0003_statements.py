"""The transfers of an account.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Each transfer is in one of the two, under the user's account; its other account is the system's.
_INDEXES = """
CREATE INDEX transfers_deposits_of_account ON transfers (to_account_id, id)
    WHERE kind = 'deposit';
CREATE INDEX transfers_charges_of_account ON transfers (from_account_id, id)
    WHERE kind = 'charge';
"""


def upgrade() -> None:
    """Make a page of an account's statement cost the same in whatever ledger."""
    op.execute(_INDEXES)


def downgrade() -> None:
    """Drop the indexes."""
    op.execute("DROP INDEX transfers_deposits_of_account, transfers_charges_of_account")
