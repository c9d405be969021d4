"""Strict fields for HTTP bodies and events.

By default, marshmallow converts values: ``"12"`` and ``12.0`` become integers, and many spellings
become one UUID. Amounts and ids must be exact.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from settle_outbox.event import format_time

INT64_MAX = 2**63 - 1

_NIL = UUID(int=0)
# UUID() also accepts braces, urn:uuid:, and digits without hyphens.
_CANONICAL_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

# RFC 3339, section 5.6: letters in any case, any number of fractional digits.
_MOMENT = re.compile(
    r"(?P<second>[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?:\.(?P<micros>[0-9]{1,6})(?P<finer>[0-9]*))?"
    r"(?P<offset>[Zz]|[+-][0-9]{2}:[0-9]{2})"
)

_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


class OpenSchema(Schema):
    """A schema that ignores unknown fields, so that either side can add some."""

    class Meta:
        """marshmallow's options."""

        unknown = EXCLUDE


class Amount(fields.Integer):
    """An integer of minor units, from 1 to 2^63-1. A float, string or bool is refused."""

    default_error_messages = {"invalid": "Must be an integer, in minor units."}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        metadata = {
            "description": "In minor units, such as cents: an integer from 1 to 2^63-1.",
            "format": "int64",
            "examples": [3900],
        }
        in_range = validate.Range(1, INT64_MAX, error="Must be from {min} to {max}.")
        super().__init__(
            strict=True,
            validate=in_range,
            metadata=metadata | options.pop("metadata", {}),
            **options,
        )


class CanonicalUUID(fields.UUID):
    """A UUID of 36 characters with hyphens, in any case (RFC 9562, section 4)."""

    def _deserialize(self, value: object, *_: object, **__: object) -> UUID:
        if not isinstance(value, str) or not _CANONICAL_UUID.fullmatch(value):
            raise ValidationError("Must be a UUID such as 8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a.")
        return UUID(value)


class UserId(CanonicalUUID):
    """A user's UUID. The nil UUID is refused."""

    def __init__(self, **options: Any) -> None:
        metadata = {
            "description": "A UUID in any case, but not the nil UUID.",
            "not": {"const": str(_NIL)},
            "examples": ["8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"],
        }
        super().__init__(metadata=metadata | options.pop("metadata", {}), **options)

    def _deserialize(self, value: object, *_: object, **__: object) -> UUID:
        user_id = super()._deserialize(value)
        if user_id == _NIL:
            raise ValidationError("Must not be the nil UUID.")
        return user_id


class Text(fields.String):
    """A string without NUL and lone surrogates, which PostgreSQL and UTF-8 cannot store.

    Args:
        max_length: in characters (code points).
        min_length: in characters.
    """

    def __init__(self, *, max_length: int, min_length: int = 0, **options: Any) -> None:
        metadata = {"minLength": min_length, "maxLength": max_length, "pattern": "^[^\\u0000]*$"}
        super().__init__(metadata=metadata | options.pop("metadata", {}), **options)
        self._max_length = max_length
        self._min_length = min_length

    def _deserialize(self, value: object, *_: object, **__: object) -> str:
        if not isinstance(value, str):
            raise ValidationError("Must be a string.")
        if not self._min_length <= len(value) <= self._max_length:
            raise ValidationError(f"Must have {self._min_length} to {self._max_length} characters.")
        if "\0" in value:
            raise ValidationError("Must not contain the NUL character.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValidationError("Must not contain a lone surrogate.") from error
        return value


def parse_time(text: str) -> datetime:
    """Parse a time of RFC 3339, rounded up to a microsecond.

    The times in the database are whole microseconds, so rounding up does not change which of them
    are before the parsed time. A time outside the years 1 to 9999 in UTC becomes the first or last
    time of these years.

    Raises:
        ValueError: the text has another format, or there is no such time.
    """
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError("not a time of RFC 3339")
    micros = (found["micros"] or "").ljust(6, "0")
    offset = "+00:00" if found["offset"] in "Zz" else found["offset"]
    moment = datetime.fromisoformat(f"{found['second'].upper()}.{micros}{offset}")
    finer = timedelta(microseconds=1 if (found["finer"] or "").strip("0") else 0)
    try:
        return moment.astimezone(UTC) + finer
    except OverflowError:
        return _FIRST if moment.year == 1 else _LAST


class Time(fields.DateTime):
    """A time of RFC 3339, formatted by `format_time` and parsed by `parse_time`."""

    def __init__(self, **options: Any) -> None:
        metadata = {"format": "date-time", "examples": ["2025-06-17T20:55:35.806222Z"]}
        super().__init__(metadata=metadata | options.pop("metadata", {}), **options)

    def _serialize(self, value: datetime | None, *_: object, **__: object) -> str | None:
        return None if value is None else format_time(value)

    def _deserialize(self, value: object, *_: object, **__: object) -> datetime:
        try:
            return parse_time(value if isinstance(value, str) else "")
        except ValueError as error:
            raise ValidationError(
                "Must be a time of RFC 3339 with its offset, such as 2025-06-17T20:55:35.806222Z"
                " (in an address, + is written %2B)."
            ) from error
