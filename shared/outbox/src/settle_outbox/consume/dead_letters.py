"""Dead letters: complete records that could not be applied, with the reason."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING

from sqlalchemy import text

from settle_outbox.consume.inbox import storable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy import Connection, RowMapping
    from sqlalchemy.orm import Session

    from settle_outbox.event import ReceivedEvent

_INSERT = text(
    """
    INSERT INTO dead_letters (fingerprint, event_id, type, topic, partition, "offset",
                              timestamp_ms, key, value, headers, requestid, reason, detail)
    VALUES (:fingerprint, :event_id, :type, :topic, :partition, :offset, :timestamp_ms, :key,
            :value, CAST(:headers AS json), :requestid, :reason, :detail)
    ON CONFLICT (fingerprint) DO NOTHING
    """
)

_NEWEST = text(
    """
    SELECT id, parked_at, reason, detail, topic, partition, "offset", timestamp_ms, event_id,
           type, requestid, key, value, headers
    FROM dead_letters ORDER BY id DESC LIMIT :limit
    """
)


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


def read_newest(connection: Connection, *, limit: int) -> Iterator[RowMapping]:
    """Return the newest dead letters, newest first.

    Each is read when the caller takes it, because one may have a megabyte.
    """
    one_by_one = connection.execution_options(yield_per=1)
    yield from one_by_one.execute(_NEWEST, {"limit": limit}).mappings()


def fingerprint(record: ConsumerRecord) -> bytes:
    """Return the SHA-256 of a record and its place. The length of each part comes before it."""
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


def text_or_base64(value: bytes | None) -> str | dict[str, str] | None:
    """Return bytes for JSON: as a text if they are UTF-8, otherwise in Base64."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
