"""Add events to the outbox, in the caller's transaction."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from settle_outbox.errors import SettleError
from settle_outbox.event import format_time
from settle_outbox.kafka.header_text import HEADER_MAX_LENGTH, HEADER_TEXT
from settle_outbox.notifications.notify import wake_relay_after_commit
from settle_outbox.storage.database import AGGREGATETYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from settle_outbox.event import Event

# By default, a broker accepts batches of up to 1 MiB (message.max.bytes), even of one record. The
# difference leaves space for the key, the headers and the fields of the batch.
PAYLOAD_MAX_BYTES = 900_000
KEY_MAX_LENGTH = 10_000


class InvalidEventError(SettleError):
    """An event can never be sent, because of its content."""


class EventTooLargeError(InvalidEventError):
    """The payload or the key of an event is too large for a broker."""


class UndeclaredAggregateTypeError(InvalidEventError):
    """The service does not declare the aggregatetype of an event, so no relay would send it."""


_ADD = """
    WITH added AS (
        INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, requestid, traceparent)
        {rows}
        RETURNING shard, seq, id
    )
    INSERT INTO outbox_pending (shard, seq, id) SELECT shard, seq, id FROM added
"""
_ADD_ALL = text(
    _ADD.format(
        rows="""
        SELECT id, aggregatetype, aggregateid, type, payload, requestid, traceparent
        FROM unnest(
            CAST(:id AS uuid[]), CAST(:aggregatetype AS text[]), CAST(:aggregateid AS text[]),
            CAST(:type AS text[]), CAST(:payload AS bytea[]), CAST(:requestid AS text[]),
            CAST(:traceparent AS text[])
        ) WITH ORDINALITY AS event (
            id, aggregatetype, aggregateid, type, payload, requestid, traceparent, position
        )
        ORDER BY position
        """
    )
)
# For a single event, VALUES costs PostgreSQL less than `unnest` (benchmarks/README.md).
_ADD_ONE = text(
    _ADD.format(
        rows="""
        VALUES (:id, :aggregatetype, :aggregateid, :type, :payload, :requestid, :traceparent)
        """
    )
)


def add(session: Session, event: Event) -> None:
    """Add an event to the outbox. It is sent if, and only if, the caller's transaction commits.

    Events of one key are sent in the order in which they were added. So a use case that locks its
    aggregate must add the event after it has taken the lock.

    Raises:
        InvalidEventError: the event can never be sent. Its data cannot be converted to JSON (see
            `Event`), its id is not a UUID, or one of its texts is not valid. Nothing was added, and
            the transaction can continue.
        EventTooLargeError: its data is over `PAYLOAD_MAX_BYTES`, or its key over `KEY_MAX_LENGTH`.
        UndeclaredAggregateTypeError: the session's service does not declare the aggregatetype.
    """
    session.execute(_ADD_ONE, _row(session, event))
    wake_relay_after_commit(session)


def add_all(session: Session, events: Sequence[Event]) -> None:
    """Add events in their order, all of them in one statement. See `add`."""
    if not events:
        return
    rows = [_row(session, event) for event in events]
    session.execute(_ADD_ALL, {name: [row[name] for row in rows] for name in rows[0]})
    wake_relay_after_commit(session)


def _row(session: Session, event: Event) -> dict[str, str | bytes | None]:
    _check(session, event)
    return {
        "id": str(event.id),
        "aggregatetype": event.aggregatetype,
        "aggregateid": event.aggregateid,
        "type": event.type,
        "payload": encode_data(event),
        "requestid": header_or_none(event.trace.request_id),
        "traceparent": header_or_none(event.trace.traceparent),
    }


def _check(session: Session, event: Event) -> None:
    """Raise an error for an event that no relay could send."""
    if not isinstance(event.id, UUID):
        raise InvalidEventError(f"{_not_added(event)} its id is not a UUID.")
    for field in ("aggregatetype", "aggregateid", "type"):
        text: object = getattr(event, field)
        if not isinstance(text, str) or "\0" in text or not _is_unicode(text):
            raise InvalidEventError(
                f"{_not_added(event)} its {field} is {text!r}. It must be a str without NUL"
                " characters and lone surrogates."
            )
    if not HEADER_TEXT.fullmatch(event.type):
        raise InvalidEventError(
            f"{_not_added(event)} its type must have 1 to {HEADER_MAX_LENGTH} characters and no"
            " control characters."
        )
    if len(event.aggregateid) > KEY_MAX_LENGTH:
        raise EventTooLargeError(
            f"{_not_added(event)} its aggregateid has more than {KEY_MAX_LENGTH} characters."
        )
    declared: frozenset[str] | None = session.info.get(AGGREGATETYPES)
    if declared is not None and event.aggregatetype not in declared:
        raise UndeclaredAggregateTypeError(
            f"{_name(event)} has the aggregatetype {event.aggregatetype!r}, which its service does"
            " not declare, so no relay would send it. Add it to Service.aggregatetypes. Declared:"
            f" {', '.join(sorted(declared)) or 'none'}."
        )


def encode_data(event: Event) -> bytes:
    """Return the JSON of an event's data.

    Raises:
        InvalidEventError: see `add`.
    """
    try:
        data = _json_value(event.data, "data")
        payload = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    except RecursionError as error:
        raise InvalidEventError(
            f"{_not_added(event)} its data is nested too deeply, or contains itself."
        ) from error
    except ValueError as error:
        raise InvalidEventError(f"{_not_added(event)} {error}.") from error
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise EventTooLargeError(
            f"{_name(event)} has a payload of {len(payload)} bytes. The maximum is"
            f" {PAYLOAD_MAX_BYTES}."
        )
    return payload


def header_or_none(text: str | None) -> str | None:
    """Return the text of an optional header, or None if the text is not valid in a header."""
    return text if text is not None and HEADER_TEXT.fullmatch(text) else None


def _not_added(event: Event) -> str:
    return f"{_name(event)} cannot be added:"


def _name(event: Event) -> str:
    return f"Event {event.id} ({str(event.type)[:100]!r}, key {str(event.aggregateid)[:100]!r})"


def _json_value(value: object, place: str) -> object:
    """Convert a value of an event's data to what `json.dumps` accepts; see `Event`.

    Raises:
        ValueError: the value has no form in JSON. The message names its place in the data.
    """
    if isinstance(value, str):
        return value if value.isascii() else _json_text(value, place)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {
            _json_key(key, place): _json_value(item, f"{place}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float | Decimal):
        return _json_number(value, place)
    return _converted(value, place)


def _json_key(key: object, place: str) -> str:
    if isinstance(key, str):
        return key if key.isascii() else _json_text(key, f"a key of {place}")
    raise ValueError(f"{place} has the key {key!r}; the keys of a JSON object are of type str")


def _json_text(text: str, place: str) -> str:
    if _is_unicode(text):
        return text
    raise ValueError(f"{place} has a lone surrogate, which UTF-8 cannot encode")


def _json_number(number: float | Decimal, place: str) -> float | str:
    if not math.isfinite(number):
        raise ValueError(f"{place} is {number}, which JSON does not have")
    # Most readers would round the JSON number of a Decimal to a float.
    return str(number) if isinstance(number, Decimal) else number


def _converted(value: object, place: str) -> object:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, date):
        return _json_date(value, place)
    if isinstance(value, Enum):
        return _json_value(value.value, place)
    raise ValueError(
        f"{place} is of type {type(value).__name__}, which has no form in JSON; convert it first"
    )


def _json_date(value: date, place: str) -> str:
    if not isinstance(value, datetime):
        return value.isoformat()
    if value.utcoffset() is None:
        raise ValueError(f"{place} is a datetime without a time zone; give it one")
    try:
        return format_time(value)
    except OverflowError:
        raise ValueError(f"{place} is a datetime outside the years 1 to 9999 in UTC") from None


def _is_unicode(text: str) -> bool:
    """Return whether UTF-8 can encode a text: it can if there are no lone surrogates."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
