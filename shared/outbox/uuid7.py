"""UUIDv7 (RFC 9562, 5.7) as a time: by it the outbox and the inbox are parted and replayed."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

_TIME_SHIFT = 80  # the first 48 of 128 bits are milliseconds since 1970


def least_id(moment: datetime) -> UUID:
    """The least UUID of that millisecond: PostgreSQL orders UUIDs by their bytes."""
    return UUID(int=int(moment.timestamp() * 1000) << _TIME_SHIFT)


def time_of(event_id: UUID) -> datetime | None:
    """When a UUIDv7 was made, to the millisecond; None for a UUID of another form."""
    if event_id.version != 7:  # noqa: PLR2004 - the form this module is about
        return None
    try:
        return datetime.fromtimestamp((event_id.int >> _TIME_SHIFT) / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None  # beyond the year 9999
