"""Records that no relay of Settle sends, and the expected result for each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from model.expected import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka.consumer.fetcher import ConsumerRecord

Headers = list[tuple[str, bytes | None]]
Forged = tuple[bytes | None, Headers]


def read(record: ConsumerRecord, fault: str | None = None) -> Message:
    """Return the event in a record. With a known `fault`, return the place and the fault only."""
    place = (record.topic, record.partition, record.offset)
    if fault is not None:
        return Message(place, "", "", {}, fault)
    headers = {name: value.decode() for name, value in record.headers}
    data = json.loads(record.value) if headers["ce_type"] != UNKNOWN_TYPE else {}
    return Message(place, headers["ce_id"], headers["ce_type"], data)


UNKNOWN_TYPE = "order.dreamt_of"


def changed(record: ConsumerRecord, name: str, value: bytes | None) -> Headers:
    """Return the headers of a record, one of them with another value."""
    return [(each, value if each == name else old) for each, old in record.headers]


def _without_header(name: str) -> Callable[[ConsumerRecord], Forged]:
    return lambda record: (
        record.value,
        [(each, value) for each, value in record.headers if each != name],
    )


def _with_header(name: str, value: bytes | None) -> Callable[[ConsumerRecord], Forged]:
    return lambda record: (record.value, changed(record, name, value))


def _doubled(record: ConsumerRecord) -> Forged:
    return record.value, [*record.headers, *record.headers[:1]]


def _with_value(value: bytes | None) -> Callable[[ConsumerRecord], Forged]:
    return lambda record: (value, record.headers)


def _with_field(name: str, value: Any) -> Callable[[ConsumerRecord], Forged]:
    return lambda record: (
        json.dumps(json.loads(record.value) | {name: value}).encode(),
        record.headers,
    )


# By the name of a change to a valid record: the reason of the dead letter, and the change itself.
FAULTS: dict[str, tuple[str, Callable[[ConsumerRecord], Forged]]] = {
    "tombstone": ("no_value", _with_value(None)),
    "empty": ("not_json", _with_value(b"")),
    "cut off": ("not_json", _with_value(b'{"order_id": "')),
    "not a number": ("not_json", _with_value(b'{"amount": NaN}')),
    "not UTF-8": ("not_utf8", _with_value(b'{"order_id": "\xff"}')),
    "null": ("not_an_object", _with_value(b"null")),
    "array": ("not_an_object", _with_value(b"[{}]")),
    "no fields": ("invalid_data", _with_value(b"{}")),
    "amount float": ("invalid_data", _with_field("amount", 1.0)),
    "amount string": ("invalid_data", _with_field("amount", "1")),
    "amount bool": ("invalid_data", _with_field("amount", value=True)),
    "amount zero": ("invalid_data", _with_field("amount", 0)),
    "amount negative": ("invalid_data", _with_field("amount", -1)),
    "amount too large": ("invalid_data", _with_field("amount", 2**63)),
    "order of another form": ("invalid_data", _with_field("order_id", "7")),
    "nobody": ("invalid_data", _with_field("user_id", "00000000-0000-0000-0000-000000000000")),
    "no id": ("missing_header", _without_header("ce_id")),
    "no type": ("missing_header", _without_header("ce_type")),
    "id twice": ("doubled_header", _doubled),
    "id of another form": ("invalid_id", _with_header("ce_id", b"7")),
    "source null": ("invalid_header", _with_header("ce_source", None)),
    "type not UTF-8": ("invalid_header", _with_header("ce_type", b"\xff")),
    "other version": ("wrong_specversion", _with_header("ce_specversion", b"0.3")),
    "other content": ("wrong_content_type", _with_header("content-type", b"text/plain")),
}
