"""Which events of a partly failed batch count as acknowledged."""

from __future__ import annotations

from datetime import UTC, datetime

from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from kafka.future import Future
from uuid_utils.compat import uuid7

from settle_outbox.publish.pending import PendingEvent
from settle_outbox.publish.sender import Sent, _collect_acknowledged


def event(seq: int, key: str) -> PendingEvent:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    return PendingEvent(uuid7(), seq, 0, "orders", key, "order.created", b"{}", None, None, now)


def done() -> Future:
    return Future().success(None)


def failed(error: KafkaError) -> Future:
    return Future().failure(error)


def test_events_of_a_key_before_its_first_gap_are_acknowledged() -> None:
    """A later event that arrived is sent again, because its predecessor must come before it."""
    events = [event(1, "a"), event(2, "b"), event(3, "a"), event(4, "b"), event(5, "a")]
    sent = Sent()
    _collect_acknowledged(
        sent, events, [done(), done(), failed(KafkaTimeoutError()), done(), done()]
    )
    assert [each.seq for each in sent.acknowledged] == [1, 2, 4]
    assert isinstance(sent.error, KafkaTimeoutError)


def test_events_that_were_not_sent_are_gaps() -> None:
    sent = Sent()
    _collect_acknowledged(sent, [event(1, "a"), event(2, "a"), event(3, "b")], [done(), Future()])
    assert [each.seq for each in sent.acknowledged] == [1]
    assert "not acknowledged" in str(sent.error)


def test_the_failure_with_the_reason_is_reported() -> None:
    sent = Sent()
    errors = [KafkaTimeoutError(), MessageSizeTooLargeError(), KafkaTimeoutError()]
    _collect_acknowledged(
        sent, [event(n, str(n)) for n in range(3)], [failed(error) for error in errors]
    )
    assert sent.error is errors[1]
