"""Read records with odd headers and schemas of any kind, and compute fingerprints."""

from __future__ import annotations

import gc
import json
import tracemalloc
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from marshmallow import Schema, fields
from pydantic import BaseModel
from uuid_utils.compat import uuid7

from services.payments.service import SERVICE
from settle_outbox.consume.dead_letters import fingerprint
from settle_outbox.consume.records import Parsed, parse
from settle_outbox.service import Subscription
from settle_outbox.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
SUBSCRIPTIONS = {(each.topic, each.type): each for each in SERVICE.subscriptions}
EVENT_ID = uuid7()


@dataclass(frozen=True)
class Received:
    """The parts of kafka-python's ConsumerRecord that are read."""

    headers: Any = (
        ("ce_id", str(EVENT_ID).encode()),
        ("ce_type", b"order.created"),
        ("ce_source", b"/orders"),
        ("ce_specversion", b"1.0"),
    )
    value: bytes | None = f'{{"order_id": "{USER}", "user_id": "{USER}", "amount": 1}}'.encode()
    key: bytes | None = b"key"
    topic: str = "orders.events"
    partition: int = 0
    offset: int = 7
    timestamp: int = 1


def parse_with(schema: Any, data: str = '{"number": 1, "more": 2}') -> Parsed:
    subscription = Subscription("orders.events", "order.created", schema, lambda *_: None)
    return parse(Received(value=data.encode()), {subscription.key: subscription})


class Number(BaseModel):
    """The data of an event, as a model of pydantic."""

    number: int


class StrictNumberSchema(Schema):
    """The same data as a schema of marshmallow, which refuses unknown fields by default."""

    number = fields.Integer(required=True, strict=True)


class LibraryError(Exception):
    """An error that derives from Exception, like those of marshmallow and jsonschema."""


def raising(error: Exception) -> Callable[[Mapping[str, Any]], NoReturn]:
    def schema(_: Mapping[str, Any]) -> NoReturn:
        raise error

    return schema


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (Number.model_validate, Number(number=1)),
        (StrictNumberSchema(), {"number": 1}),
        (dict, {"number": 1, "more": 2}),
        (itemgetter("number"), 1),
    ],
)
def test_a_schema_is_anything_that_takes_the_data(schema: Any, expected: object) -> None:
    parsed = parse_with(schema)

    assert parsed.event is not None
    assert parsed.event.data == expected


@pytest.mark.parametrize(
    ("schema", "detail"),
    [
        (
            Number.model_validate,
            "number: Input should be a valid integer, unable to parse string as an integer.",
        ),
        (StrictNumberSchema(), "{'number': ['Not a valid integer.']}."),
        (raising(LibraryError("no number")), "no number."),
        (raising(ValueError("no number")), "no number."),
        (raising(json.JSONDecodeError("no number", "", 0)), "no number: line 1 column 1 (char 0)."),
        (raising(ExceptionGroup("no", [TypeError("x")])), "no (1 sub-exception)."),
    ],
)
def test_data_that_a_schema_refuses_is_invalid(schema: Any, detail: str) -> None:
    parsed = parse_with(schema, '{"number": "x"}')

    assert parsed.invalid is not None
    assert parsed.invalid.reason == "invalid_data"
    assert parsed.invalid.detail.startswith(f"The data does not fit order.created: {detail}")


def test_the_detail_of_invalid_data_has_no_values_of_the_data() -> None:
    parsed = parse_with(Number.model_validate, '{"number": "4111 1111 1111 1111"}')

    assert parsed.invalid is not None
    assert "number" in parsed.invalid.detail
    assert "4111" not in parsed.invalid.detail


def test_a_method_named_errors_of_another_library_is_not_called() -> None:
    error = LibraryError("no number")
    error.errors = lambda: ["no number"]  # type: ignore[attr-defined]

    parsed = parse_with(raising(error))

    assert parsed.invalid is not None
    assert parsed.invalid.detail == "The data does not fit order.created: no number."


@pytest.mark.parametrize(
    "schema",
    [
        raising(AttributeError("no such attribute")),
        raising(RecursionError("too deep")),
        raising(ConnectionError("not reachable")),
        raising(UnprintableError()),
        itemgetter("amount"),
        StrictNumberSchema,  # the class instead of an instance
    ],
)
def test_an_error_of_a_schemas_code_is_kept_for_the_circuit_breaker(schema: Any) -> None:
    parsed = parse_with(schema)

    assert parsed.invalid is None
    assert parsed.failure is not None


def test_an_event_has_the_key_and_the_headers_of_its_record() -> None:
    headers = [*Received.headers, ("x", None), ("x", b"\xff")]

    parsed = parse(Received(headers=headers), SUBSCRIPTIONS)

    assert parsed.event is not None
    assert (parsed.event.key, parsed.event.headers) == (b"key", tuple(headers))


def test_an_event_without_optional_headers_is_read() -> None:
    parsed = parse(Received(), SUBSCRIPTIONS)
    assert parsed.event is not None
    assert (parsed.event.id, parsed.event.time, parsed.event.trace) == (EVENT_ID, None, Trace())
    assert parsed.event.data["amount"] == 1


@pytest.mark.parametrize("name", ["ce_id", "ce_type", "ce_source", "ce_specversion"])
def test_a_header_without_a_value_is_invalid(name: str) -> None:
    headers = [(key, None if key == name else value) for key, value in Received.headers]
    parsed = parse(Received(headers=headers), SUBSCRIPTIONS)
    assert parsed.invalid is not None
    assert parsed.invalid.reason == "invalid_header"
    assert name in parsed.invalid.detail


def test_invalid_informative_headers_are_accepted() -> None:
    headers = [
        *Received.headers,
        ("ce_time", b"yesterday"),
        ("ce_requestid", b"not an id'; --"),
        ("x", None),
        ("x", b"\xff"),
    ]
    parsed = parse(Received(headers=headers), SUBSCRIPTIONS)
    assert parsed.event is not None
    assert (parsed.event.time, parsed.event.trace.request_id) == (None, None)


def test_a_record_without_headers_is_invalid() -> None:
    parsed = parse(Received(headers=None), SUBSCRIPTIONS)
    assert parsed.invalid is not None
    assert parsed.invalid.reason == "missing_header"


def test_each_part_of_a_record_makes_another_fingerprint() -> None:
    record = Received()
    others = [
        replace(record, offset=8),
        replace(record, partition=1),
        replace(record, timestamp=2),
        replace(record, topic="payments.events"),
        replace(record, key=None),
        replace(record, key=b""),
        replace(record, value=None),
        replace(record, value=b""),
        replace(record, headers=()),
        # Bytes that move from one part to the next must change the fingerprint.
        replace(record, key=b"key{", value=record.value and record.value[1:]),
    ]
    assert len({fingerprint(each) for each in [record, *others]}) == 1 + len(others)
    assert fingerprint(Received()) == fingerprint(record)


def test_an_error_does_not_keep_the_parsed_data() -> None:
    """Parsed data takes up to 30 times the memory of the value, and a poll has many records."""
    value = b'{"x":[' + b",".join([b"{}"] * 50_000) + b"]}"
    tracemalloc.start()

    parsed = [parse(Received(value=value), SUBSCRIPTIONS) for _ in range(3)]

    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {each.invalid.reason for each in parsed if each.invalid} == {"invalid_data"}
    assert kept < 1_000_000


def test_an_error_of_a_schema_does_not_keep_the_parsed_data() -> None:
    class Defective(Schema):
        def load(self, data: Any, **_: Any) -> Any:
            raise RuntimeError(len(data))

    (subscription,) = SUBSCRIPTIONS.values()
    defective = {("orders.events", "order.created"): replace(subscription, schema=Defective())}
    value = b'{"x":[' + b",".join([b"{}"] * 50_000) + b"]}"
    tracemalloc.start()

    parsed = parse(Received(value=value), defective)

    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(parsed.failure, RuntimeError)
    assert kept < 1_000_000


def test_a_long_detail_is_cut() -> None:
    headers = [*Received.headers, ("content-type", b"\xc2\x80" * 1_000)]

    parsed = parse(Received(headers=headers), SUBSCRIPTIONS)

    assert parsed.invalid is not None
    assert len(parsed.invalid.detail) == 2_000
