"""Read a record as a CloudEvent, or state why it is not one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from settle_outbox.consume.inbox import key_text
from settle_outbox.consume.partition_reader import Unreadable
from settle_outbox.errors import SettleError
from settle_outbox.event import ReceivedEvent
from settle_outbox.kafka.header_text import HEADER_TEXT
from settle_outbox.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka.consumer.fetcher import ConsumerRecord

    from settle_outbox.service import Subscription

# The reason of a dead letter whose data does not fit its schema.
INVALID_DATA = "invalid_data"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# A schema may report many errors.
_DETAIL_MAX_LENGTH = 2_000
_REQUIRED = ("ce_id", "ce_type", "ce_source", "ce_specversion")


class InvalidRecordError(SettleError):
    """A record is not a valid event.

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
    """A record, with either its event or the reason why it has none.

    Args:
        record: from the consumer.
        event: the event. Its data is validated, or empty without a subscription or after a failure.
        subscription: of the event's type, or None.
        invalid: why the record is not a valid event.
        failure: the error to raise in place of the handler's call. The schema's code may have a
            defect, or the record killed the process (`ProcessDiedError`).
    """

    record: ConsumerRecord
    event: ReceivedEvent | None = None
    subscription: Subscription | None = None
    invalid: InvalidRecordError | None = None
    failure: Exception | None = None


def event_of(item: Parsed) -> ReceivedEvent:
    """Return the event of a record that is valid."""
    if item.event is None:
        raise AssertionError("a record without an event was not parked")
    return item.event


def log_context(item: Parsed) -> dict[str, Any]:
    """Return what every log line about a record has: the event's ids, and the record's place."""
    event, record = item.event, item.record
    return {
        "event_id": str(event.id) if event else None,
        "type": event.type if event else None,
        "aggregate_id": key_text(record.key),
        "request_id": event.trace.request_id if event else None,
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
    }


def parse(record: ConsumerRecord, subscriptions: Mapping[tuple[str, str], Subscription]) -> Parsed:
    """Read a record in the binary mode of CloudEvents.

    Args:
        record: from the consumer.
        subscriptions: by topic and type.
    """
    if isinstance(record, Unreadable):
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
        # Drop the traceback. Its frames keep the decoded data, which may take much memory.
        return Parsed(record, invalid=InvalidRecordError(error.reason, error.detail))
    if failure is not None:
        clear_frames(failure.__traceback__)  # likewise
    return Parsed(record, event=event, subscription=subscription, failure=failure)


def _headers(record: ConsumerRecord) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in record.headers or ():
        if not name.startswith("ce_") and name not in ("content-type", "traceparent"):
            continue
        if value is None and name not in _REQUIRED:
            continue
        if name == "traceparent" and name in headers:
            continue  # keep the first one; a tracing agent may have added another
        if name in headers:
            _raise_invalid("doubled_header", f"The record has the header {name} twice.")
        headers[name] = _header_text(name, value)
    for name in _REQUIRED:
        if name not in headers:
            _raise_invalid("missing_header", f"The header {name} is missing.")
    version = headers["ce_specversion"]
    if version != "1.0":
        _raise_invalid("wrong_specversion", f"ce_specversion is {version!r}, not '1.0'.")
    return headers


def _header_text(name: str, value: bytes | None) -> str:
    try:
        decoded = (value or b"").decode()
    except UnicodeDecodeError:
        _raise_invalid("invalid_header", f"The header {name} is not UTF-8.")
    if not HEADER_TEXT.fullmatch(decoded):
        _raise_invalid(
            "invalid_header",
            f"The header {name} is empty, has control characters, or is too long.",
        )
    return decoded


def _event_id(header: str) -> UUID:
    try:
        return UUID(header)
    except ValueError:
        _raise_invalid("invalid_id", f"ce_id {header!r} is not a UUID.")


def _time(header: str | None) -> datetime | None:
    """Return the time, or None if it cannot be read. Nothing depends on it."""
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
        _raise_invalid(
            "wrong_content_type", f"content-type is {content_type!r}, not application/json."
        )
    if record.value is None:
        _raise_invalid("no_value", "The record has no value (a tombstone).")
    try:
        return json.loads(
            record.value.decode(), object_pairs_hook=_object, parse_constant=_not_json
        )
    except UnicodeDecodeError:
        _raise_invalid("not_utf8", "The value is not UTF-8.")
    except (ValueError, RecursionError) as error:
        _raise_invalid("not_json", f"The value is not JSON: {error}.")


def _read_data(
    record: ConsumerRecord, headers: Mapping[str, str], subscription: Subscription | None
) -> tuple[Any, Exception | None]:
    """Return the validated data and None, or empty data and an error that may be a defect's."""
    if subscription is None:
        return {}, None
    data = _data(record, headers)
    if not isinstance(data, dict):
        _raise_invalid("not_an_object", f"The value is a {type(data).__name__}, not an object.")
    try:
        return subscription.validate(data), None
    except Exception as error:  # noqa: BLE001 - it makes a dead letter, or counts as a failure
        if _may_be_defect(error):
            return {}, error
        problems = "; ".join(_problems(error))
        _raise_invalid(INVALID_DATA, f"The data does not fit {subscription.type}: {problems}.")


def _problems(error: Exception) -> list[str]:
    """Return the problems that a schema found, if possible without the values of the data.

    The text of pydantic's ValidationError quotes the values, which may be personal data. So only
    the place and the message of each problem are taken.
    """
    list_errors = getattr(error, "errors", None)
    if callable(list_errors):
        try:
            problems = list_errors(include_input=False, include_context=False, include_url=False)
            return [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems]
        except (TypeError, KeyError):
            pass  # another library's method
    return [line.strip() for line in str(error).splitlines()]


def _may_be_defect(error: Exception) -> bool:
    """Return whether an error of a schema may come from a defect in its code; see `Schema`.

    Validation libraries raise a ValueError, an ExceptionGroup, or their own exception class
    that derives from Exception directly.
    """
    try:
        str(error)
    except Exception:  # noqa: BLE001 - the error's own code has a defect
        return True
    builtin = next(base for base in type(error).__mro__ if base.__module__ == "builtins")
    return builtin is not Exception and not isinstance(error, ValueError | ExceptionGroup)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. A name must not occur twice in it (RFC 7493, section 2.3)."""
    json_object = dict(pairs)
    if len(json_object) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return json_object


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _raise_invalid(reason: str, detail: str) -> NoReturn:
    raise InvalidRecordError(reason, detail.replace("\x00", "\\x00")[:_DETAIL_MAX_LENGTH])
