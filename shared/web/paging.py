"""Keyset paging: a page begins after the last row of the previous page.

New rows do not move the pages, and every page costs the same, because an index leads to its first
row. A list parses its query with `read_paging`, selects the rows after `Paging.after`, and answers
with `Paging.link`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from flask import Flask, current_app, request
from itsdangerous import BadData, URLSafeSerializer
from marshmallow import ValidationError, fields

from shared import cursor_secrets
from shared.web.problems.documents import InvalidInputError
from shared.web.sessions import transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shared.settings import WebSettings

LIMIT_MAX = 1000
LIMIT_DEFAULT = 100

_DIGITS = re.compile(r"[0-9]{1,4}")
# The format of itsdangerous: the payload, after a dot if it is compressed, and the HMAC-SHA256.
_CURSOR = re.compile(r"\.?[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}")
_EXTENSION = "settle-cursor-secret"
_REFUSED = "Must be a cursor from a next link of this list, with the same filters."


class CursorField(fields.String):
    """The cursor of a query, from a `next` link. `read_paging` reads it."""

    def __init__(self) -> None:
        super().__init__(
            metadata={
                "description": "Where the page begins: the opaque cursor of a `next` link. It is"
                " valid for the same list and filters only."
            }
        )


class Limit(fields.Integer):
    """The maximum number of rows of a page, in decimal digits."""

    def __init__(self) -> None:
        super().__init__(
            load_default=LIMIT_DEFAULT,
            metadata={
                "description": "The maximum number of entries.",
                "minimum": 1,
                "maximum": LIMIT_MAX,
            },
        )

    def _deserialize(self, value: object, *_: object, **__: object) -> int:
        limit = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else 0
        if not 1 <= limit <= LIMIT_MAX:
            raise ValidationError(f"Must be an integer from 1 to {LIMIT_MAX}.")
        return limit


@dataclass(frozen=True, slots=True)
class Paging:
    """The requested page of a list.

    `filters` is the query without `limit` and `cursor`. `after` is the sort key of the last row of
    the previous page, or None for the first page.
    """

    limit: int
    filters: Mapping[str, Any]
    after: tuple[Any, ...] | None

    def link(self, *last: object) -> dict[str, str]:
        """Return the header with the address of the next page (RFC 8288).

        Args:
            last: sort key of this page's last row. The converters of `read_paging` must accept the
                `str` of each part.
        """
        query = {name: request.args[name] for name in self.filters if name in request.args}
        query["limit"] = str(self.limit)
        query["cursor"] = _serializer(self.filters).dumps([str(part) for part in last])
        address = request.root_path + request.path
        # Not werkzeug's `base_url`, which decodes Punycode, or fails. For an invalid Host (RFC
        # 3986), for example with an underscore, `request.host` is empty: the address is relative.
        if request.host and request.scheme in {"http", "https"}:
            address = f"{request.scheme}://{request.host}{address}"
        return {"Link": f'<{address}?{urlencode(query)}>; rel="next"'}


def register(app: Flask, settings: WebSettings) -> None:
    """Sign an app's cursors with CURSOR_SECRET, or with the secret in the database."""
    app.extensions[_EXTENSION] = settings.cursor_secret


def read_paging(query: Mapping[str, Any], *converters: Callable[[str], Any]) -> Paging:
    """Return the page that a request asks for, after checking the signature of its cursor.

    Args:
        query: loaded by a schema with a `Limit` named `limit` and a `CursorField` named `cursor`.
            The other fields are the list's filters.
        converters: parse the parts of the list's sort key, in their order.

    Raises:
        InvalidInputError: the cursor was not made by this service for this list and filters.
    """
    filters = {name: value for name, value in query.items() if name not in {"limit", "cursor"}}
    cursor = query.get("cursor")
    after = None
    if cursor is not None:
        parts = _open(cursor, filters)
        after = tuple(convert(part) for convert, part in zip(converters, parts, strict=True))
    return Paging(query["limit"], filters, after)


def _open(text: str, filters: Mapping[str, Any]) -> list[str]:
    if not _CURSOR.fullmatch(text):  # without a query for the secret
        raise _refused()
    serializer = _serializer(filters)
    try:
        parts: list[str] = serializer.loads(text)
    except BadData as error:
        raise _refused() from error
    # Several Base64 texts decode to one value. Only the canonical one is accepted.
    if serializer.dumps(parts) != text:
        raise _refused()
    return parts


def _serializer(filters: Mapping[str, Any]) -> URLSafeSerializer:
    """Return the serializer that signs and checks the cursors of this list with these filters."""
    scope = json.dumps([request.path, filters], default=str, sort_keys=True)
    signed_with = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    return URLSafeSerializer(_secret(), salt=scope, signer_kwargs=signed_with)


def _secret() -> str:
    """Return the secret. If it is in the database, it is read once per process."""
    secret: str | None = current_app.extensions[_EXTENSION]
    if secret is None:
        with transaction() as session:
            secret = cursor_secrets.read(session)
        current_app.extensions[_EXTENSION] = secret
    return secret


def _refused() -> InvalidInputError:
    return InvalidInputError([{"parameter": "cursor", "detail": _REFUSED}])
