"""Operations for a service's migrations: the table of the idempotency keys.

A released operation never changes. A change of the table is a new operation.
"""

from __future__ import annotations

from alembic import op

# `key` is the first column of the primary key, so that an operator can look a row up by key alone.
# A row is inserted when its request begins, and updated with the answer. The fillfactor keeps space
# for the update on the same page.
_KEYS_V1 = """
CREATE TABLE idempotency_keys (
    caller      text NOT NULL,
    method      text NOT NULL,
    path        text NOT NULL,
    key         text NOT NULL,
    fingerprint bytea NOT NULL,
    status      smallint,
    headers     json,
    body        bytea,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key, path, method, caller),
    CONSTRAINT idempotency_keys_key_length CHECK (char_length(key) BETWEEN 1 AND 255),
    CONSTRAINT idempotency_keys_status_success CHECK (status BETWEEN 200 AND 299),
    CONSTRAINT idempotency_keys_answer_whole
        CHECK (num_nulls(status, headers, body) IN (0, 3))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);
COMMENT ON TABLE idempotency_keys IS
    'Requests that came with an Idempotency-Key, and their answers; written with their effect.';
COMMENT ON COLUMN idempotency_keys.fingerprint IS
    'SHA-256 of the body''s meaning: the same key with another is refused.';
COMMENT ON COLUMN idempotency_keys.headers IS
    'Of the answer, in their order: [name, value].';
"""

_CREATED_IDS_V2 = """
ALTER TABLE idempotency_keys ADD COLUMN created_id uuid;
COMMENT ON COLUMN idempotency_keys.created_id IS
    'Id of what the request created, for what follows the answer. Null: nothing follows.';
"""


def create_v1() -> None:
    """Create the table."""
    op.execute(_KEYS_V1)


def drop_v1() -> None:
    """Drop the table with the keys."""
    op.execute("DROP TABLE idempotency_keys")


def create_v2() -> None:
    """Add a column for the id of the thing that a request created."""
    op.execute(_CREATED_IDS_V2)


def drop_v2() -> None:
    """Drop the column that `create_v2` adds."""
    op.execute("ALTER TABLE idempotency_keys DROP COLUMN created_id")
