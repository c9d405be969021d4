"""The secret that signs the cursors of lists. A migration generates it in a table of one row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import op
from sqlalchemy import CheckConstraint, Column, MetaData, SmallInteger, Table, Text, select, text

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

metadata = MetaData()

cursor_secrets = Table(
    "cursor_secrets",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False, server_default=text("1")),
    Column("secret", Text, nullable=False),
    CheckConstraint("id = 1", name="cursor_secrets_one"),
    CheckConstraint("char_length(secret) >= 32", name="cursor_secrets_length"),
)

# Two random UUIDs: 244 bits of PostgreSQL's cryptographic generator (pg_strong_random in its
# src/backend/utils/adt/uuid.c). This SQL is frozen: a migration must not change with
# the table above.
_CREATE = """
CREATE TABLE cursor_secrets (
    id     smallint PRIMARY KEY DEFAULT 1,
    secret text NOT NULL,
    CONSTRAINT cursor_secrets_one CHECK (id = 1),
    CONSTRAINT cursor_secrets_length CHECK (char_length(secret) >= 32)
);
COMMENT ON TABLE cursor_secrets IS
    'Signs the cursors of lists, unless CURSOR_SECRET is set. Only the API needs to read it.';
REVOKE ALL ON cursor_secrets FROM PUBLIC;
INSERT INTO cursor_secrets (secret)
    SELECT replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
"""

_READ = select(cursor_secrets.c.secret)


def create() -> None:
    """Create the table and its secret. A migration calls it."""
    op.execute(_CREATE)


def drop() -> None:
    """Drop the table. Issued cursors become invalid. A migration calls it."""
    op.execute("DROP TABLE cursor_secrets")


def read(session: Session) -> str:
    """Return the secret that signs cursors."""
    secret: str = session.execute(_READ).scalar_one()
    return secret
