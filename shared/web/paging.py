"""Paging by keyset: a page begins after the last row of the one before, whatever came since."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import UUID

from marshmallow import ValidationError, fields

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT_MAX = 1000
LIMIT_DEFAULT = 100

_DIGITS = re.compile(r"[0-9]{1,4}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME_BYTES = 8
_CURSOR_BYTES = _TIME_BYTES + 16


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place of a row among rows by (created_at, id).

    As text it is opaque: microseconds since 1970 in 8 bytes and the UUID in 16, in Base64 for
    URLs (RFC 4648, section 5).
    """

    created_at: datetime
    id: UUID

    def encode(self) -> str:
        """The cursor as text."""
        microseconds = (self.created_at - _EPOCH) // _MICROSECOND
        packed = microseconds.to_bytes(_TIME_BYTES, signed=True) + self.id.bytes
        return base64.urlsafe_b64encode(packed).decode()

    @staticmethod
    def decode(text: str) -> Cursor:
        """Read a cursor.

        Raises:
            ValueError: it is none that `encode` made.
        """
        try:
            packed = base64.b64decode(text, altchars=b"-_", validate=True)
        except binascii.Error as error:
            raise ValueError("not Base64") from error
        if len(packed) != _CURSOR_BYTES:
            raise ValueError("not a cursor's length")
        microseconds = int.from_bytes(packed[:_TIME_BYTES], signed=True)
        try:
            created_at = _EPOCH + microseconds * _MICROSECOND
        except OverflowError as error:
            raise ValueError("not a cursor's time") from error
        return Cursor(created_at, UUID(bytes=packed[_TIME_BYTES:]))


class CursorField(fields.String):
    """A cursor in a query, as a `next` link gave it."""

    def __init__(self) -> None:
        super().__init__(
            metadata={"description": "Where the page begins, as a `next` link has it; opaque."}
        )

    def _deserialize(
        self,
        value: object,
        attr: str | None,  # noqa: ARG002  # the signature is marshmallow's
        data: Mapping[str, Any] | None,  # noqa: ARG002
        **_: object,
    ) -> Any:  # a Cursor, where the base class says str
        try:
            return Cursor.decode(str(value))
        except ValueError as error:
            raise ValidationError("Must be a cursor from a next link.") from error


class Limit(fields.Integer):
    """How many rows a page has at most, in decimal digits."""

    def __init__(self) -> None:
        super().__init__(
            load_default=LIMIT_DEFAULT,
            metadata={
                "description": "How many there are at most.",
                "minimum": 1,
                "maximum": LIMIT_MAX,
            },
        )

    def _deserialize(
        self,
        value: object,
        attr: str | None,  # noqa: ARG002  # the signature is marshmallow's
        data: Mapping[str, Any] | None,  # noqa: ARG002
        **_: object,
    ) -> int:
        if not isinstance(value, str) or not _DIGITS.fullmatch(value):
            raise ValidationError(f"Must be an integer from 1 to {LIMIT_MAX}.")
        limit = int(value)
        if not 1 <= limit <= LIMIT_MAX:
            raise ValidationError(f"Must be an integer from 1 to {LIMIT_MAX}.")
        return limit


def next_link(path: str, query: Mapping[str, object]) -> dict[str, str]:
    """The header that leads to the next page (RFC 8288), relative to this one.

    Args:
        path: of the list.
        query: of the next page.
    """
    return {"Link": f'<{path}?{urlencode(query)}>; rel="next"'}
