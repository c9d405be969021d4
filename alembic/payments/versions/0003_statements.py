"""The transfers of an account.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from shared import migrations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make a page of an account's statement cost the same in whatever ledger."""
    # Each transfer is in one of the two, under the user's account; its other account is the
    # system's.
    migrations.create_index(
        "transfers_deposits_of_account", "transfers (to_account_id, id) WHERE kind = 'deposit'"
    )
    migrations.create_index(
        "transfers_charges_of_account", "transfers (from_account_id, id) WHERE kind = 'charge'"
    )


def downgrade() -> None:
    """Drop the indexes."""
    migrations.drop_index("transfers_deposits_of_account")
    migrations.drop_index("transfers_charges_of_account")
