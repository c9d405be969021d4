"""Records that are not valid events, each with one fault."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from support.delivery import headers

INT64_OVER = 2**63
DEEP = b"[" * 100_000


class RawName(str):
    """A header's name that need not be UTF-8. The text ``\\udcff`` stands for the byte 0xff."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return super().encode("utf-8", "surrogateescape")


def invalid_values(data: dict[str, Any]) -> dict[str, tuple[str, bytes | None]]:
    """Return, by name, the reason that the dead letter must have, and `data` with one fault."""

    def changed_data(**changed: Any) -> bytes:
        return json.dumps(data | changed).encode()

    good = changed_data()
    return {
        "not JSON": ("not_json", b"{"),
        "empty": ("not_json", b""),
        "a name twice": ("not_json", good.replace(b"}", b', "amount": 5}')),
        "NaN": ("not_json", changed_data(amount=float("nan"))),
        "infinity": ("not_json", changed_data(amount=float("inf"))),
        "5,000 digits": ("not_json", good.replace(b'"amount": 5', b'"amount": ' + b"9" * 5000)),
        "deep": ("not_json", DEEP),
        "deep in a field": ("not_json", b'{"order_id": ' + DEEP),
        "not UTF-8": ("not_utf8", b'{"order_id": "\xff"}'),
        "tombstone": ("no_value", None),
        "array": ("not_an_object", b"[]"),
        "null": ("not_an_object", b"null"),
        "string": ("not_an_object", b'"x"'),
        "no fields": ("invalid_data", b"{}"),
        "no order": ("invalid_data", changed_data(order_id=None)),
        "order a number": ("invalid_data", changed_data(order_id=7)),
        "order a list": ("invalid_data", changed_data(order_id=[])),
        "order a surrogate": ("invalid_data", changed_data(order_id="\ud800" * 36)),
        "nil user": ("invalid_data", changed_data(user_id=str(UUID(int=0)))),
        "NUL in user": ("invalid_data", changed_data(user_id="\0" * 36)),
        "1e999": ("invalid_data", good.replace(b'"amount": 5', b'"amount": 1e999')),
        "float": ("invalid_data", changed_data(amount=5.0)),
        "exponent": ("invalid_data", good.replace(b'"amount": 5', b'"amount": 5e2')),
        "number in a string": ("invalid_data", changed_data(amount="5")),
        "bool": ("invalid_data", changed_data(amount=True)),
        "zero": ("invalid_data", changed_data(amount=0)),
        "negative": ("invalid_data", changed_data(amount=-5)),
        "2^63": ("invalid_data", changed_data(amount=INT64_OVER)),
        "object": ("invalid_data", changed_data(amount={"$gt": 0})),
    }


def invalid_headers(type_: str) -> dict[str, tuple[str, list[tuple[str, Any]]]]:
    """Return, by name, the reason that the dead letter must have, and headers with one fault."""
    good = headers(type_)
    return {
        "none": ("missing_header", []),
        "no ce_id": ("missing_header", headers(type_, id=None)),
        "no ce_type": ("missing_header", headers(type_, type=None)),
        "no ce_source": ("missing_header", headers(type_, source=None)),
        "no ce_specversion": ("missing_header", headers(type_, specversion=None)),
        "ce_id twice": ("doubled_header", [*good, ("ce_id", str(uuid7()).encode())]),
        "ce_id no UUID": ("invalid_id", headers(type_, id="7")),
        "ce_id empty": ("invalid_header", [("ce_id", b""), *good[1:]]),
        "ce_id not UTF-8": ("invalid_header", headers(type_, id=b"\xff")),
        "ce_id with NUL": ("invalid_header", headers(type_, id=b"\0" * 36)),
        "a name not UTF-8": ("invalid_header", [*good, (RawName("ce_\udcff"), b"\xff")]),
        "ce_type of 2,000": ("invalid_header", headers(type_, type="x" * 2000)),
        "specversion 2.0": ("wrong_specversion", headers(type_, specversion="2.0")),
        "Avro": ("wrong_content_type", [*good[:-1], ("content-type", b"application/avro")]),
    }
