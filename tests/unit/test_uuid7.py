"""The time of a UUIDv7."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from uuid_utils.compat import uuid7

from settle_outbox.uuid7 import lowest_id, time_of


def test_a_uuid_lies_between_its_millisecond_and_the_next() -> None:
    for _ in range(100):
        event_id = uuid7()
        moment = time_of(event_id)
        assert moment is not None
        assert lowest_id(moment) <= event_id < lowest_id(moment + timedelta(milliseconds=1))
        assert abs(moment - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_uuid_of_another_version_or_of_the_far_future_has_no_time() -> None:
    assert time_of(UUID("3f2b8c1e-7d7a-4c39-9d0e-6a0f5f4f9b11")) is None
    assert time_of(UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")) is None  # after the year 9999
