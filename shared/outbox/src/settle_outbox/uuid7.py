"""The time in a UUIDv7 (RFC 9562, 5.7), by which the outbox and the inbox are partitioned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

_TIME_SHIFT = 80  # the first 48 of 128 bits are milliseconds since 1970
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lowest_id(moment: datetime) -> UUID:
    """Return the lowest UUID of a moment's millisecond. PostgreSQL sorts UUIDs by their bytes.

    Args:
        moment: with a time zone. A moment before 1970 gives the nil UUID.
    """
    milliseconds = (moment - _EPOCH) // timedelta(milliseconds=1)
    return UUID(int=max(0, milliseconds) << _TIME_SHIFT)


def moment_of(event_id: UUID) -> datetime:
    """Return the moment in the first 48 bits of any UUID. This function reverses `lowest_id`.

    Raises:
        OverflowError: the moment is after the year 9999.
    """
    return _EPOCH + timedelta(milliseconds=event_id.int >> _TIME_SHIFT)


def time_of(event_id: UUID) -> datetime | None:
    """Return the time in a UUIDv7, to the millisecond, or None for another version of UUID."""
    if event_id.version != 7:  # noqa: PLR2004 - the version that this module is about
        return None
    try:
        return moment_of(event_id)
    except OverflowError:
        return None  # after the year 9999
