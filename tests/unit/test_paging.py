"""Cursors and limits: what a `next` link gives is read back exactly, and nothing else is."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from marshmallow import ValidationError

from shared.web import Cursor, CursorField, Limit, next_link


@pytest.mark.parametrize(
    "created_at",
    [
        datetime(2025, 6, 17, 20, 55, 35, 806222, UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
    ],
)
def test_a_cursor_survives_its_way_as_text(created_at: datetime) -> None:
    cursor = Cursor(created_at, uuid4())
    assert Cursor.decode(cursor.encode()) == cursor
    assert CursorField().deserialize(cursor.encode()) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "=" * 32,
        "A" * 31,
        "A" * 33,
        "A" * 36,
        "+/" * 16,
        "ü" * 32,
        " " + "A" * 32,
        "A" * 32 + "\n",
        base64.urlsafe_b64encode(b"\x7f" + b"\xff" * 23).decode(),  # beyond the year 9999
        base64.urlsafe_b64encode(b"\x80" + b"\x00" * 23).decode(),  # before the year 1
    ],
)
def test_a_malformed_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        CursorField().deserialize(text)


@pytest.mark.parametrize(("text", "limit"), [("1", 1), ("1000", 1000), ("0020", 20)])
def test_a_limit_is_read_from_digits(text: str, limit: int) -> None:
    assert Limit().deserialize(text) == limit


@pytest.mark.parametrize(
    "text", ["", "0", "1001", "-1", "+1", " 1", "1 ", "1.0", "1e2", "1_0", "٣", "x", "9" * 5000]
)
def test_a_limit_out_of_its_range_or_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Limit().deserialize(text)


def test_a_next_link_escapes_its_query() -> None:
    assert next_link("/orders", {"limit": 2, "cursor": "a&b"}) == {
        "Link": '</orders?limit=2&cursor=a%26b>; rel="next"'
    }
