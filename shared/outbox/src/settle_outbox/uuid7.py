"""UUIDv7 (RFC 9562, 5.7) as a time: the outbox and the inbox are partitioned and replayed by it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

_TIME_SHIFT = 80  # the first 48 of 128 bits are milliseconds since 1970
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lowest_id(moment: datetime) -> UUID:
    """Return the least UUID of a moment's millisecond. PostgreSQL orders UUIDs by their bytes.

    Args:
        moment: with a time zone. One before 1970 gives the nil UUID, the least of all.
    """
    milliseconds = (moment - _EPOCH) // timedelta(milliseconds=1)
    return UUID(int=max(0, milliseconds) << _TIME_SHIFT)


def moment_of(bound: UUID) -> datetime:
    """Return the moment of an id that is a bound, whatever its form; the reverse of `lowest_id`.

    Args:
        bound: of a time before the year 10000.
    """
    return _EPOCH + timedelta(milliseconds=bound.int >> _TIME_SHIFT)


def time_of(event_id: UUID) -> datetime | None:
    """Return when a UUIDv7 was made, to the millisecond, or None for a UUID of another form."""
    if event_id.version != 7:  # noqa: PLR2004 - the form this module is about
        return None
    try:
        return moment_of(event_id)
    except OverflowError:
        return None  # beyond the year 9999
