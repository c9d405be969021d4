"""The table of the idempotency keys. `migrations` creates it."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import JSON

metadata = MetaData()

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("caller", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("status", SmallInteger),
    Column("headers", JSON),
    Column("body", LargeBinary),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("created_id", Uuid),
    PrimaryKeyConstraint("key", "path", "method", "caller"),
    CheckConstraint("char_length(key) BETWEEN 1 AND 255", name="idempotency_keys_key_length"),
    CheckConstraint("status BETWEEN 200 AND 299", name="idempotency_keys_status_success"),
    CheckConstraint(
        "num_nulls(status, headers, body) IN (0, 3)", name="idempotency_keys_answer_whole"
    ),
)

Index("idempotency_keys_created_at", idempotency_keys.c.created_at)
