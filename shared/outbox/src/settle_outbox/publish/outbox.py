"""Adding events to the outbox, inside the caller's transaction."""

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
from settle_outbox.kafka.header_text import HEADER_TEXT
from settle_outbox.notifications.notify import wake_relay_after_commit
from settle_outbox.storage.database import AGGREGATETYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from settle_outbox.event import Event

# A broker takes records of up to 1 MiB unless told otherwise (message.max.bytes); the rest is
# room for the headers and the batch around the record.
PAYLOAD_MAX_BYTES = 900_000
KEY_MAX_LENGTH = 10_000


class InvalidEventError(SettleError):
    """An event can never be sent as it is."""


class EventTooLargeError(InvalidEventError):
    """An event's payload is larger than a broker takes."""


class UndeclaredAggregateTypeError(InvalidEventError):
    """The service does not declare the aggregatetype of an event, so no relay would send it."""


_ADD = text(
    """
    WITH added AS (
        INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, requestid, traceparent)
        SELECT id, aggregatetype, aggregateid, type, payload, requestid, traceparent
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:aggregatetypes AS text[]), CAST(:aggregateids AS text[]),
            CAST(:types AS text[]), CAST(:payloads AS bytea[]), CAST(:requestids AS text[]),
            CAST(:traceparents AS text[])
        ) WITH ORDINALITY AS event (
            id, aggregatetype, aggregateid, type, payload, requestid, traceparent, position
        )
        ORDER BY position
        RETURNING shard, seq, id
    )
    INSERT INTO outbox_pending (shard, seq, id) SELECT shard, seq, id FROM added
    """
)


def add(session: Session, event: Event) -> None:
    """Add an event to the outbox. It is sent if, and only if, the caller's transaction commits.

    A use case that locks its aggregate adds its event after taking the lock: events of one key
    are sent in the order in which they were added.

    Raises:
        InvalidEventError: the event can never be sent: its data is not JSON and holds nothing that
            is converted (see `Event`), or one of its texts has a character that cannot be stored.
            Nothing was added, and the transaction can go on.
        EventTooLargeError: the payload is over `PAYLOAD_MAX_BYTES`.
        UndeclaredAggregateTypeError: the session's service does not declare the aggregatetype.
    """
    add_all(session, [event])


def add_all(session: Session, events: Sequence[Event]) -> None:
    """Add events in their order, by one statement: all or none. See `add`."""
    if not events:
        return
    for event in events:
        _check(session, event)
    session.execute(
        _ADD,
        {
            "ids": [str(event.id) for event in events],
            "aggregatetypes": [event.aggregatetype for event in events],
            "aggregateids": [event.aggregateid for event in events],
            "types": [event.type for event in events],
            "payloads": [encode_data(event) for event in events],
            "requestids": [header_or_none(event.trace.request_id) for event in events],
            "traceparents": [header_or_none(event.trace.traceparent) for event in events],
        },
    )
    wake_relay_after_commit(session)


def _check(session: Session, event: Event) -> None:
    """Refuse an event that no relay could send."""
    if not isinstance(event.id, UUID):
        raise InvalidEventError(f"{_name(event)} cannot be added: its id is not a UUID.")
    for name in ("aggregatetype", "aggregateid", "type"):
        text: object = getattr(event, name)
        if not isinstance(text, str) or "\0" in text or not _is_unicode(text):
            raise InvalidEventError(
                f"{_name(event)} cannot be added: its {name} is {text!r}. It must be a str without"
                " NUL and lone surrogates."
            )
    if not HEADER_TEXT.fullmatch(event.type):
        raise InvalidEventError(
            f"{_name(event)} cannot be added: its type must have 1 to 1,000 characters, none of"
            " them a control character."
        )
    if len(event.aggregateid) > KEY_MAX_LENGTH:
        raise EventTooLargeError(
            f"{_name(event)} cannot be added: its aggregateid has more than {KEY_MAX_LENGTH}"
            " characters."
        )
    declared: frozenset[str] | None = session.info.get(AGGREGATETYPES)
    if declared is not None and event.aggregatetype not in declared:
        raise UndeclaredAggregateTypeError(
            f"{_name(event)} has the aggregatetype {event.aggregatetype!r}, which its service does"
            f" not declare, so no relay would send it. Declared:"
            f" {', '.join(sorted(declared)) or 'none'}. Add it to Service.aggregatetypes."
        )


def encode_data(event: Event) -> bytes:
    """Return the JSON of an event's data.

    Raises:
        InvalidEventError: see `add`.
    """
    try:
        payload = json.dumps(
            _json_value(event.data, "data"), ensure_ascii=False, separators=(",", ":")
        ).encode()
    except RecursionError as error:
        raise InvalidEventError(
            f"{_name(event)} cannot be added: its data is nested too deeply, or holds itself."
        ) from error
    except ValueError as error:
        raise InvalidEventError(f"{_name(event)} cannot be added: {error}.") from error
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise EventTooLargeError(
            f"{_name(event)} has a payload of {len(payload)} bytes; at most {PAYLOAD_MAX_BYTES} can"
            " be sent."
        )
    return payload


def header_or_none(text: str | None) -> str | None:
    """Return the text of an optional header, or None if a consumer would refuse it."""
    return text if text is not None and HEADER_TEXT.fullmatch(text) else None


def _name(event: Event) -> str:
    return f"Event {event.id} ({str(event.type)[:100]!r}, key {str(event.aggregateid)[:100]!r})"


def _json_value(value: object, place: str) -> object:
    """Return what JSON holds for a value of an event's data; see `Event` for what is converted.

    Raises:
        ValueError: there is no such thing; it names the place in the data.
    """
    if isinstance(value, str):
        return _json_text(value, place)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {
            _json_key(key, place): _json_value(each, f"{place}.{key}")
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_json_value(each, f"{place}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, float | Decimal):
        return _json_number(value, place)
    return _converted(value, place)


def _json_key(key: object, place: str) -> str:
    if isinstance(key, str):
        return _json_text(key, f"a key of {place}")
    raise ValueError(f"{place} has the key {key!r}; the keys of a JSON object are of type str")


def _json_text(text: str, place: str) -> str:
    if _is_unicode(text):
        return text
    raise ValueError(f"{place} has a lone surrogate, which UTF-8 does not have")


def _json_number(number: float | Decimal, place: str) -> float | str:
    if not math.isfinite(number):
        raise ValueError(f"{place} is {number}, which JSON does not have")
    # As a JSON number, most readers would round a Decimal to a float.
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
    """Return whether UTF-8 can hold a text: it has no lone surrogates."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
