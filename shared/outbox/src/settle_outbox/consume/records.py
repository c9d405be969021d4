"""Reading a record of a topic as a CloudEvent, and saying exactly why it is none."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from settle_outbox.consume.partition_reader import Refused
from settle_outbox.errors import SettleError
from settle_outbox.event import ReceivedEvent
from settle_outbox.kafka.header_text import HEADER_TEXT
from settle_outbox.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka.consumer.fetcher import ConsumerRecord

    from settle_outbox.service import Subscription

# The reason of a dead letter whose data its schema refused.
INVALID_DATA = "invalid_data"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Errors of a schema may be many.
_DETAIL_MAX_LENGTH = 2_000
_REQUIRED = ("ce_id", "ce_type", "ce_source", "ce_specversion")


class InvalidRecordError(SettleError):
    """A record that is no event of ours.

    Args:
        reason: a stable short name, such as ``not_json``.
        detail: a sentence.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record, and the event in it or why there is none; exactly one of the two.

    Args:
        record: as it came.
        event: its data validated when its type is subscribed to, else empty.
        subscription: None for a type that nobody here knows.
        invalid: why it is no event.
        failure: what the schema of its subscription raised, if that may be a fault in its code.
    """

    record: ConsumerRecord
    event: ReceivedEvent | None = None
    subscription: Subscription | None = None
    invalid: InvalidRecordError | None = None
    failure: Exception | None = None


def parse(record: ConsumerRecord, subscriptions: Mapping[tuple[str, str], Subscription]) -> Parsed:
    """Read a record in CloudEvents' binary mode.

    Args:
        record: from the consumer.
        subscriptions: by topic and type.
    """
    if isinstance(record, Refused):
        return Parsed(record, invalid=InvalidRecordError(record.reason, record.detail))
    try:
        headers = _headers(record)
        subscription = subscriptions.get((record.topic, headers["ce_type"]))
        data, failure = _read_data(record, headers, subscription)
        event = ReceivedEvent(
            id=_event_id(headers["ce_id"]),
            type=headers["ce_type"],
            source=headers["ce_source"],
            time=_time(headers.get("ce_time")),
            trace=_trace(headers),
            data=data,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key,
            headers=tuple(record.headers or ()),
        )
    except InvalidRecordError as error:
        # Without the traceback, whose frames hold the whole data: up to 30 times the value's bytes.
        return Parsed(record, invalid=InvalidRecordError(error.reason, error.detail))
    if failure is not None:
        clear_frames(failure.__traceback__)  # of the whole data
    return Parsed(record, event=event, subscription=subscription, failure=failure)


def _headers(record: ConsumerRecord) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in record.headers or ():
        if not name.startswith("ce_") and name not in ("content-type", "traceparent"):
            continue
        if value is None and name not in _REQUIRED:
            continue
        if name == "traceparent" and name in found:
            continue  # a tracing agent added one
        if name in found:
            _refuse("doubled_header", f"The header {name} stands twice.")
        found[name] = _header_text(name, value)
    for name in _REQUIRED:
        if name not in found:
            _refuse("missing_header", f"The header {name} is missing.")
    if found["ce_specversion"] != "1.0":
        _refuse("wrong_specversion", f"ce_specversion is {found['ce_specversion']!r}, not '1.0'.")
    return found


def _header_text(name: str, value: bytes | None) -> str:
    try:
        decoded = (value or b"").decode()
    except UnicodeDecodeError:
        _refuse("invalid_header", f"The header {name} is not UTF-8.")
    if not HEADER_TEXT.fullmatch(decoded):
        _refuse(
            "invalid_header",
            f"The header {name} is empty, has control characters, or is too long.",
        )
    return decoded


def _event_id(header: str) -> UUID:
    try:
        return UUID(header)
    except ValueError:
        _refuse("invalid_id", f"ce_id {header!r} is not a UUID.")


def _time(header: str | None) -> datetime | None:
    """Informative only: a time that cannot be read is no reason to refuse the event."""
    try:
        return datetime.fromisoformat(header) if header else None
    except ValueError:
        return None


def _trace(headers: Mapping[str, str]) -> Trace:
    request_id = headers.get("ce_requestid")
    if request_id is not None and not _REQUEST_ID.fullmatch(request_id):
        request_id = None
    return Trace(request_id=request_id, traceparent=headers.get("traceparent"))


def _data(record: ConsumerRecord, headers: Mapping[str, str]) -> Any:
    content_type = headers.get("content-type", "application/json")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        _refuse("wrong_content_type", f"content-type is {content_type!r}, not application/json.")
    if record.value is None:
        _refuse("no_value", "The record has no value (a tombstone).")
    try:
        return json.loads(
            record.value.decode(), object_pairs_hook=_object, parse_constant=_not_json
        )
    except UnicodeDecodeError:
        _refuse("not_utf8", "The value is not UTF-8.")
    except (ValueError, RecursionError) as error:
        _refuse("not_json", f"The value is not JSON: {error}.")


def _read_data(
    record: ConsumerRecord, headers: Mapping[str, str], subscription: Subscription | None
) -> tuple[Any, Exception | None]:
    """Return the validated data, or what a fault in the code of the schema raised."""
    if subscription is None:
        return {}, None
    data = _data(record, headers)
    try:
        return _validated(subscription, data), None
    except InvalidRecordError:
        raise
    except Exception as error:  # noqa: BLE001 - a failure of the service's code, as its handler's
        return {}, error


def _validated(subscription: Subscription, data: Any) -> Any:
    if not isinstance(data, dict):
        _refuse("not_an_object", f"The value is a JSON {type(data).__name__}, not an object.")
    try:
        return subscription.validate(data)
    except Exception as error:
        if _may_be_defect(error):
            raise
        lines = "; ".join(line.strip() for line in str(error).splitlines())
        _refuse(INVALID_DATA, f"The data does not fit {subscription.type}: {lines}.")


def _may_be_defect(error: Exception) -> bool:
    """Return whether a schema's error may come from a fault in its code; see `Schema`.

    Validation libraries raise a ValueError, a group of errors, or an exception that derives from
    none of Python's own but Exception itself.
    """
    first_of_python = next(each for each in type(error).__mro__ if each.__module__ == "builtins")
    return first_of_python is not Exception and not isinstance(error, ValueError | ExceptionGroup)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Two readers may understand a doubled name differently.

    RFC 7493, section 2.3.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _refuse(reason: str, detail: str) -> NoReturn:
    raise InvalidRecordError(reason, detail.replace("\x00", "\\x00")[:_DETAIL_MAX_LENGTH])
