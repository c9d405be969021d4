"""The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07).

One transaction claims the key, has the request's effect and stores its answer. A process that is
killed leaves all three or nothing. An answer other than a success is not stored, so the key can be
used again.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial, wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, current_app, g, request

from settle_outbox.runtime.failpoints import failpoint
from shared.web.idempotency import key_store
from shared.web.problems import problem_types
from shared.web.problems.documents import InvalidInputError
from shared.web.sessions import outer_transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from settle_outbox.errors import SettleError
    from shared.settings import WebSettings

    View = Callable[..., Response]

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
KEY_MAX = 255
_VARIABLE = "HTTP_IDEMPOTENCY_KEY"  # of WSGI

# A string (RFC 9651, section 3.3.3), as the draft requires, or the same without quotes, as many
# clients send it. Without quotes, a comma is refused, because it may have joined two headers.
_QUOTED = r'(?:[ !#-\[\]-~]|\\["\\])'
_BARE = r"[!#-+\--~]"
_FORM = re.compile(f'"{_QUOTED}+"|{_BARE}+')
_ESCAPED = re.compile(r'\\(["\\])')

# For the API description: the same two forms, with the maximum length.
PATTERN = f'^(?:"{_QUOTED}{{1,{KEY_MAX}}}"|{_BARE}{{1,{KEY_MAX}}})$'

PROBLEMS: dict[type[SettleError], problem_types.ProblemType] = {
    key_store.KeyInUseError: problem_types.IDEMPOTENCY_KEY_IN_USE,
    key_store.KeyReusedError: problem_types.IDEMPOTENCY_KEY_REUSED,
}

_EXTENSION = "settle-idempotency-retention"
_CREATED_ID = "settle_created_id"


def register(app: Flask, settings: WebSettings) -> None:
    """Check the keys of an app's requests, and set their retention (IDEMPOTENCY_RETENTION_S)."""
    app.extensions[_EXTENSION] = settings.idempotency_retention_s
    app.before_request(_check_key)


def _check_key() -> None:
    """Refuse the malformed key of a POST request before the body has arrived."""
    given = request.environ.get(_VARIABLE)
    if given is not None and request.method == "POST" and request.routing_exception is None:
        read_key(given)


def idempotent(view: View) -> View:
    """Run a view once per key, however often the request is sent.

    It compares the body as the schema has loaded it, and stores the answer of the view. The
    transactions of the view join one transaction, which ends with the view. What must happen after
    the commit, such as a wait, belongs around this decorator.
    """

    @wraps(view)
    def run_once(body: Mapping[str, Any], *arguments: Any, **path: Any) -> Response:
        given = request.environ.get(_VARIABLE)
        run = partial(view, body, *arguments, **path)
        return run() if given is None else _run_once(read_key(given), body, run)

    return run_once


def note_created(created_id: UUID) -> None:
    """Note the id of the thing that the request creates, for use after the commit.

    It is stored with the answer, so a repeated request has it too.
    """
    setattr(g, _CREATED_ID, created_id)


def created_id() -> UUID | None:
    """Return the id that this request, or the first request with its key, has noted."""
    found: UUID | None = g.get(_CREATED_ID)
    return found


def caller() -> str:
    """Return whose key it is. Without authentication, all requests have the same caller."""
    return "anonymous"


def read_key(text: str) -> str:
    """Parse the header: in double quotes (a string of RFC 9651) or bare.

    Raises:
        InvalidInputError: it has another format, or not 1 to `KEY_MAX` characters.
    """
    if not _FORM.fullmatch(text):
        raise _invalid(
            "Must be a string in double quotes, of printable ASCII characters (RFC 9651, section"
            " 3.3.3), or the same without quotes, spaces and commas. Send one header, not two."
        )
    key = _ESCAPED.sub(r"\1", text[1:-1]) if text.startswith('"') else text
    if len(key) > KEY_MAX:
        raise _invalid(f"Must have 1 to {KEY_MAX} characters, but has {len(key)}.")
    return key


def _invalid(detail: str) -> InvalidInputError:
    return InvalidInputError([{"header": HEADER, "detail": detail}])


def fingerprint_of(body: Mapping[str, Any]) -> bytes:
    """Return a hash of the loaded values of a body. Order and spelling do not change it."""
    canonical = json.dumps(body, default=str, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()


def _run_once(key: str, body: Mapping[str, Any], run: Callable[[], Response]) -> Response:
    scope = key_store.Scope(caller(), request.method, _path(), key)
    retention_s: int = current_app.extensions[_EXTENSION]
    with outer_transaction() as session:
        stored = key_store.claim_key(session, scope, fingerprint_of(body), retention_s=retention_s)
        if stored is not None:
            session.rollback()  # there is nothing to commit
            return _replay(stored)
        failpoint("web.claimed")
        response = run()
        if not HTTPStatus.OK <= response.status_code < HTTPStatus.MULTIPLE_CHOICES:
            session.rollback()
            return response
        key_store.store_answer(session, scope, _to_store(response))
        failpoint("web.kept")
    failpoint("web.committed")
    return response


def _path() -> str:
    """Return the request's path with its ids in lower case."""
    if not request.view_args or request.url_rule is None:
        return request.path
    built = request.url_rule.build(request.view_args)
    return request.path if built is None else built[1]


def _to_store(response: Response) -> key_store.StoredAnswer:
    # The framework sets Content-Length for each answer.
    headers = [each for each in response.headers if each[0].lower() != "content-length"]
    return key_store.StoredAnswer(response.status_code, headers, response.get_data(), created_id())


def _replay(answer: key_store.StoredAnswer) -> Response:
    response = Response(answer.body, answer.status, list(answer.headers))
    response.headers[REPLAYED] = "true"
    if answer.created_id is not None:
        note_created(answer.created_id)
    return response
