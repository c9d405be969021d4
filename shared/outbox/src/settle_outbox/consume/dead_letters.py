"""Dead letters: records that could not be applied, kept whole with the reason, and their states."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from kafka.consumer.fetcher import ConsumerRecord
from sqlalchemy import text

from settle_outbox.consume.inbox import storable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, RowMapping
    from sqlalchemy.orm import Session

    from settle_outbox.event import ReceivedEvent


class State(StrEnum):
    """What became of a dead letter."""

    OPEN = "open"
    RETRIED = "retried"  # applied since
    DISCARDED = "discarded"  # not to be applied; may be restored


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Chooses dead letters; each condition that is not None must hold.

    Args:
        ids: only these.
        state: in this state.
        reason: with this reason, such as ``handler_failed``.
        type: of events of this type.
        key: of records with this key.
        since: that became dead letters at this time or later.
        until: that became dead letters before this time.
        error: whose detail contains this text.
    """

    ids: Sequence[int] | None = None
    state: State | None = None
    reason: str | None = None
    type: str | None = None
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None


_INSERT = text(
    """
    INSERT INTO dead_letters (fingerprint, event_id, type, topic, partition, "offset",
                              timestamp_ms, key, value, headers, requestid, reason, detail)
    VALUES (:fingerprint, :event_id, :type, :topic, :partition, :offset, :timestamp_ms, :key,
            :value, CAST(:headers AS json), :requestid, :reason, :detail)
    ON CONFLICT (fingerprint) DO NOTHING
    """
)

_CHOSEN = """
    (CAST(:ids AS bigint[]) IS NULL OR letter.id = ANY(CAST(:ids AS bigint[])))
    AND (CAST(:state AS text) IS NULL OR letter.state = :state)
    AND (CAST(:reason AS text) IS NULL OR letter.reason = :reason)
    AND (CAST(:type AS text) IS NULL OR letter.type = :type)
    AND (CAST(:key AS bytea) IS NULL OR letter.key = CAST(:key AS bytea))
    AND (CAST(:since AS timestamptz) IS NULL OR letter.parked_at >= :since)
    AND (CAST(:until AS timestamptz) IS NULL OR letter.parked_at < :until)
    AND (CAST(:error AS text) IS NULL OR position(CAST(:error AS text) IN letter.detail) > 0)
"""

_NEWEST = text(
    f"""
    SELECT letter.id, letter.parked_at, letter.state, letter.closed_at, letter.reason,
           letter.detail, letter.topic, letter.partition, letter."offset", letter.timestamp_ms,
           letter.event_id, letter.type, letter.requestid AS request_id, letter.key, letter.value,
           letter.headers, repairs.attempts, last.answer AS last_answer,
           last.detail AS last_detail, last.answered_at AS last_at, last.requested_by AS last_by,
           last.note AS last_note
    FROM dead_letters AS letter
    CROSS JOIN LATERAL (
        SELECT count(*) AS attempts FROM dead_letter_requests
        WHERE dead_letter_id = letter.id AND action = 'retry' AND answer IN ('done', 'failed')
    ) AS repairs
    LEFT JOIN LATERAL (
        SELECT answer, detail, answered_at, requested_by, note FROM dead_letter_requests
        WHERE dead_letter_id = letter.id AND answer IS NOT NULL ORDER BY id DESC LIMIT 1
    ) AS last ON true
    WHERE {_CHOSEN}
    ORDER BY letter.id DESC LIMIT :limit
    """  # noqa: S608 - our own text
)

_GROUPS = text(
    f"""
    SELECT letter.reason, letter.topic, letter.type, letter.state, count(*) AS count,
           min(letter.parked_at) AS first_at, max(letter.parked_at) AS last_at,
           min(letter.id) AS first_id
    FROM dead_letters AS letter WHERE {_CHOSEN}
    GROUP BY letter.reason, letter.topic, letter.type, letter.state
    ORDER BY count(*) DESC, letter.reason, letter.topic, letter.type
    """  # noqa: S608 - our own text
)

# Oldest first: the events of a key are retried in their order.
_IDS = text(
    f"SELECT letter.id FROM dead_letters AS letter WHERE {_CHOSEN} ORDER BY letter.id"  # noqa: S608
)

# Limited, because there may be many after the retention was shortened.
_DELETE_CLOSED = text(
    """
    DELETE FROM dead_letters WHERE id IN (
        SELECT id FROM dead_letters AS letter
        WHERE closed_at < now() - make_interval(secs => :retention_s) AND NOT EXISTS (
            SELECT FROM dead_letter_requests
            WHERE dead_letter_id = letter.id AND answered_at IS NULL
        )
        ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    """
)
_DELETED_AT_ONCE = 1_000


def write_dead_letter(
    session: Session, record: ConsumerRecord, event: ReceivedEvent | None, reason: str, detail: str
) -> None:
    """Write a complete record to the dead letters, unless it is already there.

    Args:
        session: of the transaction.
        record: from the consumer.
        event: the event in the record, or None if it is not valid.
        reason: a stable short name, such as ``handler_failed``.
        detail: a sentence.
    """
    session.execute(
        _INSERT,
        {
            "fingerprint": fingerprint(record),
            "event_id": event.id if event else None,
            "type": event.type if event else None,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp,
            "key": record.key,
            "value": record.value,
            "headers": json.dumps(
                [[name, text_or_base64(value)] for name, value in record.headers or ()]
            ),
            "requestid": event.trace.request_id if event else None,
            "reason": storable(reason),
            "detail": storable(detail),
        },
    )


def read_newest(
    connection: Connection, chosen: DeadLetterFilter, *, limit: int
) -> Iterator[RowMapping]:
    """Return the newest dead letters, newest first, each with its last answered repair request.

    Each is read only when the caller takes it, because it may have a megabyte.
    """
    one_by_one = _NEWEST.execution_options(yield_per=1)
    parameters = _parameters(chosen) | {"limit": limit}
    yield from connection.execute(one_by_one, parameters).mappings()


def read_groups(connection: Connection, chosen: DeadLetterFilter) -> list[RowMapping]:
    """Count dead letters by reason, topic, type and state; the largest group first."""
    return list(connection.execute(_GROUPS, _parameters(chosen)).mappings())


def read_ids(connection: Connection, chosen: DeadLetterFilter) -> list[int]:
    """Return the ids of dead letters, oldest first."""
    return list(connection.execute(_IDS, _parameters(chosen)).scalars())


def delete_closed(session: Session, retention_s: int) -> bool:
    """Delete closed dead letters after the retention. Keep those with an unanswered request.

    Args:
        session: in a transaction.
        retention_s: how long dead letters are kept after they were closed, in seconds.

    Returns:
        Whether there may be more.
    """
    deleted = session.connection().execute(
        _DELETE_CLOSED, {"retention_s": retention_s, "limit": _DELETED_AT_ONCE}
    )
    return deleted.rowcount >= _DELETED_AT_ONCE


def record_of(row: RowMapping) -> ConsumerRecord:
    """Return the record in a dead letter, as it came from Kafka.

    Args:
        row: with the columns topic, partition, offset, timestamp_ms, key, value and headers.
    """
    key = None if row["key"] is None else bytes(row["key"])
    value = None if row["value"] is None else bytes(row["value"])
    return ConsumerRecord(
        topic=row["topic"],
        partition=row["partition"],
        leader_epoch=-1,
        offset=row["offset"],
        timestamp=row["timestamp_ms"],
        timestamp_type=0,
        key=key,
        value=value,
        headers=[(name, bytes_of(kept)) for name, kept in row["headers"]],
        checksum=None,
        serialized_key_size=-1 if key is None else len(key),
        serialized_value_size=-1 if value is None else len(value),
        serialized_header_size=-1,
    )


def fingerprint(record: ConsumerRecord) -> bytes:
    """Return the SHA-256 of a record and its place. Each part is hashed after its length."""
    digest = hashlib.sha256()
    parts: list[bytes | None] = [
        f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp}".encode(),
        record.key,
        record.value,
    ]
    for name, value in record.headers or ():
        parts += [name.encode(errors="surrogatepass"), value]
    for part in parts:
        digest.update(b"-" if part is None else b"%d:" % len(part) + part)
    return digest.digest()


def _parameters(chosen: DeadLetterFilter) -> dict[str, Any]:
    return {
        **asdict(chosen),
        "ids": None if chosen.ids is None else list(chosen.ids),
        "key": None if chosen.key is None else chosen.key.encode(),
    }


def text_or_base64(value: bytes | None) -> str | dict[str, str] | None:
    """Return bytes for JSON: as a text if they are UTF-8, otherwise in Base64."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def bytes_of(kept: str | dict[str, str] | None) -> bytes | None:
    """Reverse `text_or_base64`."""
    if isinstance(kept, dict):
        return base64.b64decode(kept["base64"])
    return None if kept is None else kept.encode()
