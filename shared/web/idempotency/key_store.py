"""Claims a key for a request, stores the answer, and deletes both after their retention."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import structlog
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from settle_outbox.errors import SettleError
from settle_outbox.storage.sqlstate import LOCK_NOT_AVAILABLE, sqlstate_of
from shared.settings import read_idempotency_retention_s

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

# Keys deleted in one transaction, and maximum number of transactions in a row. Both are small,
# because the relay sends no events meanwhile.
BATCH = 500
BATCHES_MAX = 4

log = structlog.get_logger(__name__)

# The next three statements are executed without SQLAlchemy's text(), which takes twice the time.

# If a transaction in progress has the key, this waits for its end, at most lock_timeout. An expired
# key is taken over. Any other existing key is unchanged, but locked, so that it still exists when
# `_READ` runs.
_CLAIM = """
    INSERT INTO idempotency_keys AS known (caller, method, path, key, fingerprint)
    VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (key, path, method, caller) DO UPDATE
    SET fingerprint = excluded.fingerprint, status = NULL, headers = NULL, body = NULL,
        created_id = NULL, created_at = excluded.created_at
    WHERE known.created_at <= now() - make_interval(secs => %s)
"""

_READ = """
    SELECT fingerprint, status, headers, body, created_id FROM idempotency_keys
    WHERE caller = %s AND method = %s AND path = %s AND key = %s
"""

_STORE = """
    UPDATE idempotency_keys SET status = %s, headers = %s, body = %s, created_id = %s
    WHERE caller = %s AND method = %s AND path = %s AND key = %s
"""

_EXPIRE = text(
    """
    SET LOCAL statement_timeout = 30000;
    DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM idempotency_keys
        WHERE created_at <= now() - CAST(:retention AS interval)
        ORDER BY created_at LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ))
    """
)


class KeyInUseError(SettleError):
    """Another request with this key is in progress."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Another request with the Idempotency-Key {key} is in progress. Send the request again"
            " shortly, with the same key, to get its answer."
        )


class KeyReusedError(SettleError):
    """This key was used with another body before."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The Idempotency-Key {key} was used with another body before. Send the same body, or"
            " use a new key for a new request."
        )


class Scope(NamedTuple):
    """Where a key is unique: in one caller's requests of one method to one path."""

    caller: str
    method: str
    path: str
    key: str


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The answer of a view to a request, before `after_commit` completes it.

    `created_id` is the id of the thing that the request created, if it is needed after the commit.
    It is None in an answer that an earlier release stored.
    """

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    created_id: UUID | None = None


def claim_key(
    session: Session, scope: Scope, fingerprint: bytes, *, retention_s: int
) -> StoredAnswer | None:
    """Claim a key for a request, before the request has any effect.

    Args:
        session: its transaction holds the key, the effect and the answer.
        scope: of the key.
        fingerprint: of the request's body.
        retention_s: how long a key is kept, in seconds.

    Returns:
        The answer to an earlier request with this key; None for the first request.

    Raises:
        KeyInUseError: another transaction with the key did not end within `lock_timeout`.
        KeyReusedError: the earlier request had another fingerprint.
    """
    connection = session.connection()
    try:
        claimed = connection.exec_driver_sql(_CLAIM, (*scope, fingerprint, retention_s)).rowcount
    except DBAPIError as error:
        if sqlstate_of(error) != LOCK_NOT_AVAILABLE:
            raise
        raise KeyInUseError(scope.key) from error
    if claimed:
        return None
    # A second statement, because its snapshot is taken after the wait of the first one.
    found = connection.exec_driver_sql(_READ, scope).one()
    if bytes(found.fingerprint) != fingerprint:
        raise KeyReusedError(scope.key)
    headers = [(name, value) for name, value in found.headers]
    return StoredAnswer(found.status, headers, bytes(found.body), found.created_id)


def store_answer(session: Session, scope: Scope, answer: StoredAnswer) -> None:
    """Store the answer to a request, in the transaction that claimed its key."""
    stored = (answer.status, json.dumps(list(answer.headers)), answer.body, answer.created_id)
    session.connection().exec_driver_sql(_STORE, (*stored, *scope))


def remove_expired_keys(engine: Engine) -> bool:
    """Delete expired keys, the oldest first. Keys that are in use are skipped.

    It runs at most `BATCHES_MAX` small transactions, so that the caller can go on soon. Several
    processes may run it at the same time.

    Returns:
        Whether more expired keys may exist.

    Raises:
        SettingsError: IDEMPOTENCY_RETENTION_S is invalid.
    """
    parameters = {"retention": timedelta(seconds=read_idempotency_retention_s()), "limit": BATCH}
    for _ in range(BATCHES_MAX):
        with engine.begin() as connection:
            removed = connection.execute(_EXPIRE, parameters).rowcount
        if removed:
            log.info("idempotency.expired", keys=removed)
        if removed < BATCH:
            return False
    return True
