"""Create the table `notifications`, and the tables of settle_outbox."""

import sqlalchemy as sa
from alembic import op

from settle_outbox.storage import migrations

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    migrations.create_v1(shards=16)
    migrations.create_v2()
    migrations.create_v3()
    migrations.create_v4()
    migrations.create_v5()
    op.create_table(
        "notifications",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False, index=True),
        sa.Column("text", sa.String, nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
    )
