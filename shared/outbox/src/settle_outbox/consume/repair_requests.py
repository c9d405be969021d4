"""Requests to repair dead letters: rows that an operator or a console writes, and their answers.

A request is claimed in one transaction and carried out in another (`repairs`). So each request is
tried once. If the process that tries it dies, perhaps because of the record, the request is
answered as failed. The operator may ask again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import text

from settle_outbox.consume.inbox import storable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, RowMapping
    from sqlalchemy.orm import Session

# A process locks a request within seconds after the claim, and keeps the lock until the answer. So
# a request that was claimed longer ago than this, and is not locked, belongs to a process that died
# or was frozen. Until that is known, other requests wait.
ABANDONED_AFTER_S = 15.0


class Action(StrEnum):
    """What to do with a dead letter."""

    RETRY = "retry"  # apply its record
    DISCARD = "discard"  # never apply it
    RESTORE = "restore"  # open a discarded one again


class Answer(StrEnum):
    """What came of a request."""

    DONE = "done"
    FAILED = "failed"  # tried, but the dead letter has not changed
    REFUSED = "refused"  # not tried


class Request(NamedTuple):
    """A request to repair one dead letter."""

    id: int
    dead_letter_id: int
    action: Action
    force: bool
    requested_by: str


class Repair(NamedTuple):
    """What an operator wants done with one or more dead letters.

    Args:
        action: what to do.
        requested_by: who asks.
        note: why, in the operator's words.
        force: retry even if the dead letter's reason forbids it, or an older dead letter of its key
            is open.
    """

    action: Action
    requested_by: str
    note: str | None = None
    force: bool = False


_ADD = text(
    """
    INSERT INTO dead_letter_requests
        (dead_letter_id, action, force, note, requested_by, started_at)
    VALUES (:dead_letter_id, :action, :force, :note, :requested_by, clock_timestamp())
    RETURNING id, dead_letter_id, action, force, requested_by
    """
)

# The lock's number is arbitrary. It is held until the end of the transaction that claims a request.
_CLAIM_LOCK = text("SELECT pg_advisory_xact_lock(7310022)")

# Claims the oldest request, unless a process works on another one. Two processes at once could
# apply the events of a key in the wrong order.
_CLAIM_NEXT = text(
    """
    UPDATE dead_letter_requests SET started_at = clock_timestamp()
    WHERE id = (
        SELECT id FROM dead_letter_requests
        WHERE answered_at IS NULL AND started_at IS NULL ORDER BY id LIMIT 1
    ) AND NOT EXISTS (
        SELECT FROM dead_letter_requests WHERE answered_at IS NULL AND started_at IS NOT NULL
    )
    RETURNING id, dead_letter_id, action, force, requested_by
    """
)

_LOCK = text(
    "SELECT id FROM dead_letter_requests WHERE id = :id AND answered_at IS NULL FOR UPDATE"
)

_ANSWER = text(
    """
    UPDATE dead_letter_requests
    SET answered_at = clock_timestamp(), answer = :answer, detail = :detail
    WHERE id = :id AND answered_at IS NULL
    RETURNING answer, detail
    """
)

_READ_ANSWER = text("SELECT answer, detail FROM dead_letter_requests WHERE id = :id")

_ADD_FOR_CONSUMER = text(
    """
    INSERT INTO dead_letter_requests (dead_letter_id, action, force, note, requested_by)
    SELECT wanted, :action, :force, :note, :requested_by
    FROM unnest(CAST(:ids AS bigint[])) AS wanted ORDER BY wanted
    """
)

_ANSWER_ABANDONED = text(
    """
    UPDATE dead_letter_requests
    SET answered_at = clock_timestamp(), answer = 'failed',
        detail = 'The process that tried it died, or lost its database.'
    WHERE id IN (
        SELECT id FROM dead_letter_requests
        WHERE answered_at IS NULL
            AND started_at < clock_timestamp() - make_interval(secs => :abandoned_after_s)
        FOR UPDATE SKIP LOCKED
    )
    RETURNING id, dead_letter_id
    """
)

_OF_DEAD_LETTER = text(
    """
    SELECT id, action, force, note, requested_by, requested_at, answered_at, answer, detail
    FROM dead_letter_requests WHERE dead_letter_id = :dead_letter_id ORDER BY id
    """
)


def add_claimed_request(session: Session, dead_letter_id: int, repair: Repair) -> Request:
    """Add a request, which the caller carries out, for a dead letter that exists."""
    row = session.execute(_ADD, {"dead_letter_id": dead_letter_id, **repair._asdict()}).one()
    return Request(row.id, row.dead_letter_id, Action(row.action), row.force, row.requested_by)


def add_requests(connection: Connection, dead_letter_ids: Sequence[int], repair: Repair) -> None:
    """Add requests that a consumer carries out, in the order of the dead letters."""
    parameters = {"ids": list(dead_letter_ids), **repair._asdict()}
    connection.execute(_ADD_FOR_CONSUMER, parameters)


def read_requests(connection: Connection, dead_letter_id: int) -> list[RowMapping]:
    """Return all requests for a dead letter, oldest first."""
    rows = connection.execute(_OF_DEAD_LETTER, {"dead_letter_id": dead_letter_id})
    return list(rows.mappings())


def claim_next(session: Session) -> Request | None:
    """Claim the oldest request that nobody has claimed.

    Returns:
        The request, or None if there is none or a process works on another one.
    """
    session.execute(_CLAIM_LOCK)
    row = session.execute(_CLAIM_NEXT).one_or_none()
    if row is None:
        return None
    return Request(row.id, row.dead_letter_id, Action(row.action), row.force, row.requested_by)


def lock(session: Session, request: Request) -> bool:
    """Lock a claimed request until the transaction ends; return False if it is answered."""
    return session.execute(_LOCK, {"id": request.id}).one_or_none() is not None


def write_answer(
    session: Session, request: Request, answer: Answer, detail: str
) -> tuple[Answer, str]:
    """Answer a request.

    Returns:
        The stored answer. It is not the given one if the request was answered before: by another
        process as abandoned, or by this one in a commit whose response was lost.
    """
    given = {"id": request.id, "answer": answer, "detail": storable(detail)}
    row = session.execute(_ANSWER, given).one_or_none()
    if row is None:
        row = session.execute(_READ_ANSWER, {"id": request.id}).one()
    return Answer(row.answer), row.detail


def answer_abandoned(session: Session) -> list[tuple[int, int]]:
    """Answer abandoned requests as failed: the process that claimed them died or was frozen.

    Returns:
        The ids of each request and its dead letter.
    """
    rows = session.execute(_ANSWER_ABANDONED, {"abandoned_after_s": ABANDONED_AFTER_S})
    return [(row.id, row.dead_letter_id) for row in rows]
