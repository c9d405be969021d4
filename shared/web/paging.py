"""Paging by keyset: a page begins after the last row of the one before, whatever came since.

A page costs the same wherever it begins: an index leads to its first row. A list reads its query
with `read_paging`, gives its rows from `Paging.after` on, and answers with `Paging.link`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from flask import current_app, request
from itsdangerous import BadData, URLSafeSerializer
from marshmallow import ValidationError, fields

from shared import cursor_secrets
from shared.web.problems.documents import InvalidInputError
from shared.web.sessions import transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flask import Flask

    from shared.settings import WebSettings

LIMIT_MAX = 1000
LIMIT_DEFAULT = 100
# A page ends before the row with which it would be larger, whatever its limit; its first row it has
# in any case. A list whose rows hold text of the clients goes by it.
PAGE_BYTES_MAX = 512 * 1024

_DIGITS = re.compile(r"[0-9]{1,4}")
# As itsdangerous writes it: what it says, compressed after a leading dot, and the HMAC-SHA256.
_CURSOR = re.compile(r"\.?[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}")
_EXTENSION = "settle-cursor-secret"
_REFUSED = "Must be a cursor from a next link of this list, with the same filters as there."


class CursorField(fields.String):
    """A cursor in a query, as a `next` link gave it; `read_paging` reads it."""

    def __init__(self) -> None:
        super().__init__(
            metadata={
                "description": "Where the page begins, as a `next` link has it; opaque. It holds"
                " for the list and the filters that it was given for."
            }
        )


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


@dataclass(frozen=True, slots=True)
class Paging:
    """Which page of a list a request asks for.

    Args:
        limit: how many rows at most.
        filters: which rows: what the query holds beside `limit` and `cursor`.
        after: the sort key of the row before the first; None for the first page.
    """

    limit: int
    filters: Mapping[str, Any]
    after: tuple[Any, ...] | None

    def link(self, *last: object) -> dict[str, str]:
        """The header that leads to the next page (RFC 8288), by its whole address where it can.

        Args:
            last: the sort key of this page's last row; what `str` makes of each part must be what
                the converters of `read_paging` read.
        """
        query = {name: request.args[name] for name in self.filters if name in request.args}
        query["limit"] = str(self.limit)
        query["cursor"] = _serializer(self.filters).dumps([str(part) for part in last])
        address = request.root_path + request.path
        # Of what was received: werkzeug's `base_url` decodes names from Punycode, or fails to. A
        # Host that cannot be in an address (RFC 3986), one with an underscore say, is empty here.
        if request.host and request.scheme in {"http", "https"}:
            address = f"{request.scheme}://{request.host}{address}"
        return {"Link": f'<{address}?{urlencode(query)}>; rel="next"'}


def register(app: Flask, settings: WebSettings) -> None:
    """Sign an app's cursors with the setting CURSOR_SECRET, or with the database's own secret."""
    app.extensions[_EXTENSION] = settings.cursor_secret


def read_paging(query: Mapping[str, Any], *converters: Callable[[str], Any]) -> Paging:
    """Read which page a request asks for, and make sure that its cursor is ours.

    Args:
        query: as a schema with a `Limit` called `limit` and a `CursorField` called `cursor` has
            loaded it; the rest of it are the list's filters.
        converters: read the parts of the list's sort key from text, in their order.

    Raises:
        InvalidInputError: the cursor was not made here, for this list and these filters.
    """
    filters = {name: value for name, value in query.items() if name not in {"limit", "cursor"}}
    cursor = query.get("cursor")
    after = None
    if cursor is not None:
        parts = _open(cursor, filters)
        after = tuple(convert(part) for convert, part in zip(converters, parts, strict=True))
    return Paging(query["limit"], filters, after)


def _open(text: str, filters: Mapping[str, Any]) -> list[str]:
    if not _CURSOR.fullmatch(text):  # the database is not asked for the secret
        raise _refused()
    serializer = _serializer(filters)
    try:
        parts: list[str] = serializer.loads(text)
    except BadData as error:
        raise _refused() from error
    # Several texts are one value in Base64, and only one of them was given.
    if serializer.dumps(parts) != text:
        raise _refused()
    return parts


def _serializer(filters: Mapping[str, Any]) -> URLSafeSerializer:
    """Return what signs the cursors of this list with these filters, and checks them."""
    scope = json.dumps([request.path, filters], default=str, sort_keys=True)
    signed_with = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    return URLSafeSerializer(_secret(), salt=scope, signer_kwargs=signed_with)


def _secret() -> str:
    """Return the secret; that of the database is read once."""
    secret: str | None = current_app.extensions[_EXTENSION]
    if secret is None:
        with transaction() as session:
            secret = cursor_secrets.read(session)
        current_app.extensions[_EXTENSION] = secret
    return secret


def _refused() -> InvalidInputError:
    return InvalidInputError([{"parameter": "cursor", "detail": _REFUSED}])
