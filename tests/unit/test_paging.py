"""Cursors and limits: only a cursor from a `next` link is accepted."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import pytest
from flask import Flask
from marshmallow import ValidationError

from shared.web import paging
from shared.web.paging import Limit, read_paging
from shared.web.problems.documents import InvalidInputError

if TYPE_CHECKING:
    from shared.settings import WebSettings

SECRET = "0123456789abcdef0123456789abcdef"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def app_with(secret: str) -> Flask:
    app = Flask(__name__)
    paging.register(app, cast("WebSettings", SimpleNamespace(cursor_secret=secret)))
    return app


APP = app_with(SECRET)


def link(path: str, *last: object, app: Flask = APP, base: str = "http://host:8081") -> str:
    """Return the URL of the page after `last` of the list at `path`. Its query has the filters."""
    with app.test_request_context(path, base_url=base):
        filters = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        header = read_paging({"limit": 2, **filters}).link(*last)["Link"]
    found = re.fullmatch('<([^>]+)>; rel="next"', header)
    assert found is not None
    address = found[1]
    return str(address)


def cursor_in(address: str) -> str:
    return parse_qs(urlsplit(address).query)["cursor"][0]


def read(path: str, cursor: str, *converters: Any, app: Flask = APP) -> tuple[Any, ...] | None:
    with app.test_request_context(path):
        filters = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        return read_paging({"limit": 2, **filters, "cursor": cursor}, *converters).after


@pytest.mark.parametrize(
    "created_at",
    [
        datetime(2025, 6, 17, 20, 55, 35, 806222, UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
        datetime(9999, 12, 31, 23, 59, 59, 0, UTC),
    ],
)
def test_a_sort_key_is_read_back_from_a_link(created_at: datetime) -> None:
    key = created_at, uuid4()
    cursor = cursor_in(link("/orders", *key))
    assert read("/orders", cursor, datetime.fromisoformat, UUID) == key


def test_a_cursor_is_read_by_any_process_with_the_secret_and_by_no_other() -> None:
    cursor = cursor_in(link("/orders", 7))
    assert read("/orders", cursor, int, app=app_with(SECRET)) == (7,)
    with pytest.raises(InvalidInputError):
        read("/orders", cursor, int, app=app_with(SECRET[::-1]))


def test_a_cursor_changed_in_any_place_is_refused() -> None:
    """This includes the unused bits of its last character."""
    whole = cursor_in(link("/orders", 12345))
    assert len(whole.rpartition(".")[2]) % 4  # the last character has unused bits
    for place, there in enumerate(whole):
        other = "-" if there == "." else ALPHABET[ALPHABET.index(there) ^ 1]
        with pytest.raises(InvalidInputError) as refused:
            read("/orders", whole[:place] + other + whole[place + 1 :], int)
        assert refused.value.members["errors"][0]["parameter"] == "cursor"


def test_a_longer_or_shorter_cursor_is_refused() -> None:
    whole = cursor_in(link("/orders", 12345))
    for changed in (whole[:-1], whole[1:], whole + "A", whole + "=", whole + "\n", f" {whole}"):
        with pytest.raises(InvalidInputError):
            read("/orders", changed, int)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "=" * 32,
        "A" * 33,
        "+/" * 16,
        "ü" * 32,
        "\0",
        "\udc80",
        base64.urlsafe_b64encode(b"\0" * 16 + b"[" * 100_000).decode(),
    ],
)
def test_a_text_that_is_not_a_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        read("/orders", text, int)


def test_a_cursor_is_valid_only_for_its_list_and_filters() -> None:
    cursor = cursor_in(link("/orders?status=failed&user_id=1", 7))
    assert read("/orders?user_id=1&status=failed", cursor, int) == (7,)
    for other in ("/orders", "/orders?status=failed&user_id=2", "/o?status=failed&user_id=1"):
        with pytest.raises(InvalidInputError):
            read(other, cursor, int)


def test_a_link_is_absolute_and_escapes_its_query() -> None:
    address = link("/orders?user_id=a%26b", 7, base="https://pay.example/api")
    assert address.startswith("https://pay.example/api/orders?user_id=a%26b&limit=2&cursor=")


def test_an_invalid_host_is_left_out_of_a_link() -> None:
    """The Host header may be a container's name, such as orders_api. A relative link works."""
    assert link("/orders", 7, base="http://orders_api:8081").startswith("/orders?limit=2&cursor=")


@pytest.mark.parametrize(("text", "limit"), [("1", 1), ("1000", 1000), ("0020", 20)])
def test_a_limit_is_read_from_digits(text: str, limit: int) -> None:
    assert Limit().deserialize(text) == limit


@pytest.mark.parametrize(
    "text", ["", "0", "1001", "-1", "+1", " 1", "1 ", "1.0", "1e2", "1_0", "٣", "x", "9" * 5000]
)
def test_a_limit_that_is_out_of_range_or_not_a_number_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Limit().deserialize(text)
