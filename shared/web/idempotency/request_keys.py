"""Requests that may be sent again: the header Idempotency-Key, and what becomes of it.

By draft-ietf-httpapi-idempotency-key-header-07. The key is taken, the request has its effect and
its answer is kept in one transaction: a process that is killed leaves all of it or nothing. An
answer that is no success leaves nothing either, so its key may be used again.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial, wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Response, current_app, g, request

from settle_outbox.runtime.failpoints import failpoint
from shared.web.idempotency.key_store import (
    Answer,
    KeyInUseError,
    KeyReusedError,
    Scope,
    claim,
    keep,
)
from shared.web.problems import problem_types
from shared.web.problems.documents import InvalidInputError, ProblemError
from shared.web.sessions import outer_transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from flask import Flask

    from shared.settings import WebSettings

    View = Callable[..., Response]

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
KEY_MAX = 255

# A string (RFC 9651, section 3.3.3), as the draft has it; or the same bare, as many clients send
# it. A comma is what two headers in one request look like here.
_QUOTED = r'(?:[ !#-\[\]-~]|\\["\\])'
_BARE = r"[!#-+\--~]"
_FORM = re.compile(f'"{_QUOTED}+"|{_BARE}+')
_ESCAPED = re.compile(r'\\(["\\])')

# For the description; the same, with the length.
PATTERN = f'^(?:"{_QUOTED}{{1,{KEY_MAX}}}"|{_BARE}{{1,{KEY_MAX}}})$'

# Of the framework's making, anew for each answer.
_NOT_KEPT = {"content-length"}

_EXTENSION = "settle-idempotency-retention"
_CREATED_ID = "settle_created_id"


def register(app: Flask, settings: WebSettings) -> None:
    """Have an app keep its keys as long as the setting IDEMPOTENCY_RETENTION_S says."""
    app.extensions[_EXTENSION] = settings.idempotency_retention_s
    app.before_request(_check_key)


def _check_key() -> None:
    """Refuse a malformed key at once: the body need not arrive for that."""
    given = request.headers.get(HEADER)
    if given is not None and request.method == "POST" and request.routing_exception is None:
        read_key(given)


def idempotent(view: View) -> View:
    """Have a view act once for each key, however often a request comes.

    It takes the body as the schema has loaded it, and the answer as it is sent. The view's
    transactions become parts of one, that ends with the view; what must come after the commit, such
    as a wait, belongs around this decorator.
    """

    @wraps(view)
    def act_once(body: Mapping[str, Any], *arguments: Any, **path: Any) -> Response:
        given = request.headers.get(HEADER)
        act = partial(view, body, *arguments, **path)
        return act() if given is None else _once(read_key(given), body, act)

    return act_once


def note_created(created_id: UUID) -> None:
    """Note the id of what the request creates, for what follows its commit.

    It is kept with the answer for the Idempotency-Key, so it is there for a replay as well.
    """
    setattr(g, _CREATED_ID, created_id)


def created_id() -> UUID | None:
    """Return the id of what the request created, now or when it came first."""
    found: UUID | None = g.get(_CREATED_ID)
    return found


def caller() -> str:
    """Whose requests a key is for. Everybody is one caller, as long as nobody has to log in."""
    return "anonymous"


def read_key(text: str) -> str:
    """Read a key from the header: in double quotes (a string of RFC 9651) or bare.

    Raises:
        InvalidInputError: it has another form, or another length than 1 to `KEY_MAX` characters.
    """
    if not _FORM.fullmatch(text):
        raise _refused(
            "Must be a string in double quotes, of printable ASCII characters (RFC 9651, section"
            " 3.3.3), or the same without quotes, spaces and commas; and one header, not two."
        )
    key = _ESCAPED.sub(r"\1", text[1:-1]) if text.startswith('"') else text
    if len(key) > KEY_MAX:
        raise _refused(f"Must be of 1 to {KEY_MAX} characters; this one has {len(key)}.")
    return key


def _refused(detail: str) -> InvalidInputError:
    return InvalidInputError([{"header": HEADER, "detail": detail}])


def fingerprint_of(body: Mapping[str, Any]) -> bytes:
    """A hash of what a body means: of its values as loaded, in whatever order and spelling."""
    canonical = json.dumps(body, default=str, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()


def _once(key: str, body: Mapping[str, Any], act: Callable[[], Response]) -> Response:
    scope = Scope(caller(), request.method, _path(), key)
    try:
        with outer_transaction() as session:
            retention_s: int = current_app.extensions[_EXTENSION]
            kept = claim(session, scope, fingerprint_of(body), retention_s=retention_s)
            if kept is not None:
                session.rollback()  # there is nothing to commit
                return _replay(kept)
            failpoint("web.claimed")
            response = act()
            if not HTTPStatus.OK <= response.status_code < HTTPStatus.MULTIPLE_CHOICES:
                session.rollback()
                return response
            keep(session, scope, _answer(response))
            failpoint("web.kept")
    except KeyInUseError as error:
        raise ProblemError(problem_types.IDEMPOTENCY_KEY_IN_USE, str(error)) from error
    except KeyReusedError as error:
        raise ProblemError(problem_types.IDEMPOTENCY_KEY_REUSED, str(error)) from error
    failpoint("web.committed")
    return response


def _path() -> str:
    """The request's path, its variable parts in one spelling: an id may come in any case."""
    if not request.view_args or request.url_rule is None:
        return request.path
    built = request.url_rule.build(request.view_args)
    return request.path if built is None else built[1]


def _answer(response: Response) -> Answer:
    headers = [(name, value) for name, value in response.headers if name.lower() not in _NOT_KEPT]
    return Answer(response.status_code, headers, response.get_data(), created_id())


def _replay(answer: Answer) -> Response:
    response = Response(answer.body, answer.status, list(answer.headers))
    response.headers[REPLAYED] = "true"
    if answer.created_id is not None:
        note_created(answer.created_id)
    return response
