"""What only a broker of another make sends, and what a fingerprint tells apart."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import dataclass, replace
from typing import Any

import pytest
from marshmallow import Schema
from uuid_utils.compat import uuid7

from services.payments.service import SERVICE
from settle_outbox.consume.records import fingerprint, parse
from settle_outbox.trace import Trace

USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
SUBSCRIPTIONS = {(each.topic, each.type): each for each in SERVICE.subscriptions}
EVENT_ID = uuid7()


@dataclass(frozen=True)
class Received:
    """The part of kafka-python's ConsumerRecord that is read."""

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


def test_an_event_without_optional_headers_is_read() -> None:
    parsed = parse(Received(), SUBSCRIPTIONS)
    assert parsed.event is not None
    assert (parsed.event.id, parsed.event.time, parsed.event.trace) == (EVENT_ID, None, Trace())
    assert parsed.event.data["amount"] == 1


@pytest.mark.parametrize("name", ["ce_id", "ce_type", "ce_source", "ce_specversion"])
def test_a_header_without_a_value_is_refused(name: str) -> None:
    headers = [(key, None if key == name else value) for key, value in Received.headers]
    parsed = parse(Received(headers=headers), SUBSCRIPTIONS)
    assert parsed.invalid is not None
    assert parsed.invalid.reason == "invalid_header"
    assert name in parsed.invalid.detail


def test_what_only_informs_is_no_reason_to_refuse() -> None:
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


def test_no_headers_at_all_are_refused() -> None:
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
        # What one part loses, another must not make up for.
        replace(record, key=b"key{", value=record.value and record.value[1:]),
    ]
    assert len({fingerprint(each) for each in [record, *others]}) == 1 + len(others)
    assert fingerprint(Received()) == fingerprint(record)


def test_what_was_refused_does_not_keep_the_parsed_data() -> None:
    """It takes up to 30 times the memory of the value, and a poll has many records."""
    value = b'{"x":[' + b",".join([b"{}"] * 50_000) + b"]}"
    tracemalloc.start()

    parsed = [parse(Received(value=value), SUBSCRIPTIONS) for _ in range(3)]

    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {each.invalid.reason for each in parsed if each.invalid} == {"invalid_data"}
    assert kept < 1_000_000


def test_what_a_schema_raised_does_not_keep_the_parsed_data() -> None:
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


def test_a_long_reason_is_cut() -> None:
    headers = [*Received.headers, ("content-type", b"\xc2\x80" * 1_000)]

    parsed = parse(Received(headers=headers), SUBSCRIPTIONS)

    assert parsed.invalid is not None
    assert len(parsed.invalid.detail) == 2_000
