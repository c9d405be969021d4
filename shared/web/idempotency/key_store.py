"""Taking a key for a request, keeping its answer, and forgetting both after their retention."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from settle_outbox.errors import SettleError
from settle_outbox.storage.sqlstate import LOCK_NOT_AVAILABLE, sqlstate_of
from shared.settings import read_idempotency_retention_s

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

# Of keys removed in one transaction, and of such transactions in a row: 20 to 50 ms in all, by
# which a relay's events may be later.
BATCH = 500
BATCHES_MAX = 4

log = structlog.get_logger(__name__)

# These three are the driver's own, and as few as can be: they are what a key costs a request.
# Through SQLAlchemy's text() they took twice the time.

# Where another transaction has the key and is not over, this waits for it, as long as lock_timeout
# lets it. A key past its retention is taken over; one that is not stays as it is, but locked, so
# that it is still there when it is read.
_CLAIM = """
    INSERT INTO idempotency_keys AS known (caller, method, path, key, fingerprint)
    VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (key, path, method, caller) DO UPDATE
    SET fingerprint = excluded.fingerprint, status = NULL, headers = NULL, body = NULL,
        created_id = NULL, created_at = excluded.created_at
    WHERE known.created_at <= now() - make_interval(secs => %s)
"""

_FIND = """
    SELECT fingerprint, status, headers, body, created_id FROM idempotency_keys
    WHERE caller = %s AND method = %s AND path = %s AND key = %s
"""

_KEEP = """
    UPDATE idempotency_keys SET status = %s, headers = %s, body = %s, created_id = %s
    WHERE caller = %s AND method = %s AND path = %s AND key = %s
"""

_EXPIRE = text(
    """
    SET LOCAL statement_timeout = 30000;
    DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM idempotency_keys
        WHERE created_at <= now() - CAST(:retention AS interval)
        ORDER BY created_at LIMIT :most
        FOR UPDATE SKIP LOCKED
    ))
    """
)


class KeyInUseError(SettleError):
    """Another request with this key is under way."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Another request with the Idempotency-Key {key} is still under way. Try again shortly,"
            " with the same key, to be told how it ended."
        )


class KeyReusedError(SettleError):
    """This key came with another body before."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The Idempotency-Key {key} came with another body before. Send the same body again,"
            " or take another key for another request."
        )


class Scope(NamedTuple):
    """What a key is a key of: one caller's requests of one method to one path."""

    caller: str
    method: str
    path: str
    key: str


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request was answered.

    Args:
        status: of HTTP.
        headers: in their order.
        body: as it was sent.
        created_id: of what the request created, if something follows the answer that needs it. Also
            None in an answer that an earlier release kept.
    """

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    created_id: UUID | None = None


def claim(session: Session, scope: Scope, fingerprint: bytes, *, retention_s: int) -> Answer | None:
    """Take a key for a request, before it has any effect.

    Args:
        session: its transaction holds the key, the effect and the answer, or none of them.
        scope: of the key.
        fingerprint: of the request's meaning.
        retention_s: how long a key is known.

    Returns:
        How the request was answered when it came before; None when this one is the first.

    Raises:
        KeyInUseError: another transaction with the key did not end within `lock_timeout`.
        KeyReusedError: the request that came before had another fingerprint.
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
    # A second statement: its snapshot is newer than the wait.
    found = connection.exec_driver_sql(_FIND, scope).one()
    if bytes(found.fingerprint) != fingerprint:
        raise KeyReusedError(scope.key)
    headers = [(name, value) for name, value in found.headers]
    return Answer(found.status, headers, bytes(found.body), found.created_id)


def keep(session: Session, scope: Scope, answer: Answer) -> None:
    """Note how the request was answered, in the transaction that took its key."""
    kept = (answer.status, json.dumps(list(answer.headers)), answer.body, answer.created_id)
    session.connection().exec_driver_sql(_KEEP, (*kept, *scope))


def remove_expired(engine: Engine) -> bool:
    """Remove keys past their retention, the oldest first; those that others hold are left.

    In small transactions, and no more than `BATCHES_MAX` of them, so that the caller soon has its
    turn again. Any number may do it at once.

    Returns:
        Whether more may be left.

    Raises:
        SettingsError: IDEMPOTENCY_RETENTION_S is wrong.
    """
    parameters = {"retention": timedelta(seconds=read_idempotency_retention_s()), "most": BATCH}
    for _ in range(BATCHES_MAX):
        with engine.begin() as connection:
            removed = connection.execute(_EXPIRE, parameters).rowcount
        if removed:
            log.info("idempotency.expired", keys=removed)
        if removed < BATCH:
            return False
    return True
