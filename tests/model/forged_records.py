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
    """Return the content of a record, or `fault` if it is known to have none."""
    place = (record.topic, record.partition, record.offset)
    if fault is not None:
        return Message(place, "", "", {}, fault)
    headers = {name: value.decode() for name, value in record.headers}
    data = json.loads(record.value) if headers["ce_type"] != UNKNOWN_TYPE else {}
    return Message(place, headers["ce_id"], headers["ce_type"], data)


UNKNOWN_TYPE = "order.dreamt_of"


def changed(record: ConsumerRecord, name: str, value: bytes | None) -> Headers:
    """Return a record's headers, with another value for one of them."""
    return [(each, value if each == name else old) for each, old in record.headers]


def _without(name: str) -> Callable[[ConsumerRecord], Forged]:
    return lambda record: (
        record.value,
        [(each, value) for each, value in record.headers if each != name],
    )


def _with(name: str, value: bytes | None) -> Callable[[ConsumerRecord], Forged]:
    return lambda record: (record.value, changed(record, name, value))


def _doubled(record: ConsumerRecord) -> Forged:
    return record.value, [*record.headers, *record.headers[:1]]


def _of_value(value: bytes | None) -> Callable[[ConsumerRecord], Forged]:
    return lambda record: (value, record.headers)


def _with_datum(name: str, value: Any) -> Callable[[ConsumerRecord], Forged]:
    return lambda record: (
        json.dumps(json.loads(record.value) | {name: value}).encode(),
        record.headers,
    )


# By the change to a valid record: the reason of the dead letter, and the function that makes it.
FAULTS: dict[str, tuple[str, Callable[[ConsumerRecord], Forged]]] = {
    "tombstone": ("no_value", _of_value(None)),
    "empty": ("not_json", _of_value(b"")),
    "cut off": ("not_json", _of_value(b'{"order_id": "')),
    "not a number": ("not_json", _of_value(b'{"amount": NaN}')),
    "not UTF-8": ("not_utf8", _of_value(b'{"order_id": "\xff"}')),
    "null": ("not_an_object", _of_value(b"null")),
    "array": ("not_an_object", _of_value(b"[{}]")),
    "no fields": ("invalid_data", _of_value(b"{}")),
    "amount float": ("invalid_data", _with_datum("amount", 1.0)),
    "amount string": ("invalid_data", _with_datum("amount", "1")),
    "amount bool": ("invalid_data", _with_datum("amount", value=True)),
    "amount zero": ("invalid_data", _with_datum("amount", 0)),
    "amount negative": ("invalid_data", _with_datum("amount", -1)),
    "amount too large": ("invalid_data", _with_datum("amount", 2**63)),
    "order of another form": ("invalid_data", _with_datum("order_id", "7")),
    "nobody": ("invalid_data", _with_datum("user_id", "00000000-0000-0000-0000-000000000000")),
    "no id": ("missing_header", _without("ce_id")),
    "no type": ("missing_header", _without("ce_type")),
    "id twice": ("doubled_header", _doubled),
    "id of another form": ("invalid_id", _with("ce_id", b"7")),
    "source null": ("invalid_header", _with("ce_source", None)),
    "type not UTF-8": ("invalid_header", _with("ce_type", b"\xff")),
    "other version": ("wrong_specversion", _with("ce_specversion", b"0.3")),
    "other content": ("wrong_content_type", _with("content-type", b"text/plain")),
}
