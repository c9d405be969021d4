"""Reading request bodies: strict JSON, and nothing left unread on the wire."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from math import isinf
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from flask import Response, request
from gunicorn.http.errors import ParseException
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from shared.web import kinds
from shared.web.problems import InvalidInputError, ProblemError
from shared.web.reading import RequestTooSlowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flask import Flask, Request
    from marshmallow import Schema, ValidationError

MAX_BYTES = 1024 * 1024
# Levels of arrays and objects within each other. No call needs more than two.
MAX_DEPTH = 32
TOO_DEEP = f"The body is nested too deeply: {MAX_DEPTH} levels are the most."

# Of an answer that tells repeated names: how many of them, and how many characters of each.
FAULTS_MAX = 20
NAME_MAX = 100

# A client that is still sending when the connection is closed may never see the answer: what it
# sends is read and thrown away, up to this much.
_DRAIN_MAX_BYTES = 64 * 1024 * 1024
_DRAIN_CHUNK_BYTES = 64 * 1024

# What gunicorn raises when the chunks of a body are malformed, or end before the last.
_UNREADABLE = (OSError, ParseException)


class _Repetitive(dict[str, Any]):
    """An object that has a name more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs)
        self.repeated = [name for name, count in counts.items() if count > 1]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repetitive(pairs)


def _finite(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise InvalidInputError([{"pointer": "#", "detail": f"{text[:40]} is too large a number."}])
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ProblemError(
        kinds.NOT_JSON,
        f"The body is not JSON: {name} is no number there (RFC 8259, section 6).",
    )


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant
)


def read_json(incoming: Request) -> Any:  # whatever JSON holds
    """Parse a request's body as JSON (RFC 8259), in UTF-8.

    Raises:
        ProblemError: it is not JSON, or nested beyond `MAX_DEPTH`, or cannot be read.
        InvalidInputError: an object has a name twice: one reader would take the first value,
            another the last (RFC 8259, section 4). Or a number is larger than Python reads.
        RequestEntityTooLarge: it is over `MAX_BYTES`.
        UnsupportedMediaType: it does not say that it is JSON.
    """
    if not incoming.is_json:
        raise UnsupportedMediaType("The body must be JSON, with Content-Type: application/json.")
    try:
        data = _decoder.decode(_read(incoming).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ProblemError(kinds.NOT_JSON, "The body is not JSON: it is not UTF-8.") from error
    except json.JSONDecodeError as error:
        raise ProblemError(
            kinds.NOT_JSON,
            f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
        ) from error
    except RecursionError as error:
        raise ProblemError(kinds.NESTED_TOO_DEEPLY, TOO_DEEP) from error
    except ValueError as error:
        # Python bounds the digits of an integer (sys.set_int_max_str_digits).
        raise InvalidInputError([{"pointer": "#", "detail": "A number is too long."}]) from error
    _check(data)
    return data


def _check(data: Any) -> None:
    """Refuse depth and repeated names, level by level: most bodies have one."""
    faults: list[dict[str, str]] = []
    level = [("#", data)]
    for _ in range(MAX_DEPTH):
        faults += [
            {"pointer": _pointer(pointer, name), "detail": "The object has this name twice."}
            for pointer, each in level
            if isinstance(each, _Repetitive)
            for name in each.repeated
        ]
        level = [inner for pointer, each in level for inner in _nested(pointer, each)]
        if not level:
            break
    else:
        raise ProblemError(kinds.NESTED_TOO_DEEPLY, TOO_DEEP)
    if faults:
        raise InvalidInputError(faults[:FAULTS_MAX])


def _nested(pointer: str, data: Any) -> list[tuple[str, Any]]:
    """The arrays and objects right within one, each with its pointer."""
    if isinstance(data, dict):
        pairs: Iterable[tuple[object, Any]] = data.items()
    elif isinstance(data, list):
        pairs = enumerate(data)
    else:
        return []
    return [
        (_pointer(pointer, name), each) for name, each in pairs if isinstance(each, dict | list)
    ]


def _pointer(outer: str, name: object) -> str:
    """A JSON Pointer one level deeper, as a fragment (RFC 6901, section 6)."""
    escaped = str(name).replace("~", "~0").replace("/", "~1")
    return f"{outer}/{quote(escaped[:NAME_MAX], safe='~', errors='replace')}"


def _read(incoming: Request) -> bytes:
    try:
        body = incoming.get_data(cache=False)
    except RequestTooSlowError as error:
        raise ProblemError(kinds.REQUEST_TOO_SLOW, str(error)) from error
    except _UNREADABLE as error:
        raise ProblemError(
            kinds.MALFORMED_REQUEST, "The body cannot be read: its chunks are malformed."
        ) from error
    if incoming.content_length is None and len(body) >= MAX_BYTES:
        # Of a body without a length, werkzeug gives the first MAX_BYTES and says no more.
        raise RequestEntityTooLarge
    return body


class Parser(FlaskParser):
    """Parses bodies and queries by a marshmallow schema; what is wrong is raised as a problem."""

    def load_json(self, req: Request, schema: Schema) -> Any:  # noqa: ARG002
        """Read the body; it must be a JSON object."""
        data = read_json(req)
        if not isinstance(data, dict):
            raise InvalidInputError([{"pointer": "#", "detail": "Must be a JSON object."}])
        return data

    def handle_error(
        self,
        error: ValidationError,
        req: Request,  # noqa: ARG002  # the signature is webargs's
        schema: Schema,  # noqa: ARG002
        *,
        error_status_code: int | None,  # noqa: ARG002
        error_headers: Mapping[str, str] | None,  # noqa: ARG002
    ) -> NoReturn:
        """Raise what marshmallow found."""
        raise InvalidInputError(
            [
                _fault(location, field, detail)
                for location, messages in _by_location(error).items()
                for field, details in messages.items()
                for detail in details
            ]
        ) from error


def _by_location(error: ValidationError) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = error.normalized_messages()  # type: ignore[no-untyped-call]
    return found


def _fault(location: str, field: str, detail: str) -> dict[str, str]:
    if location == "json":
        return {"pointer": f"#/{field}", "detail": detail}
    if location == "headers":
        return {"header": field, "detail": detail}
    return {"parameter": field, "detail": detail}


def register(app: Flask) -> None:
    """Bound the bodies of an app, and read those that its calls leave unread."""
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES
    app.before_request(_refuse_large)
    app.after_request(_drain)


def _refuse_large() -> None:
    """Refuse a large body also where none is read, as of a GET."""
    if request.routing_exception is None and (request.content_length or 0) > MAX_BYTES:
        raise RequestEntityTooLarge


def _drain(response: Response) -> Response:
    stream = request.environ["wsgi.input"]
    # Only where the server ends the stream at the body's end; else a read could wait for ever.
    if request.environ.get("wsgi.input_terminated", False):
        with suppress(*_UNREADABLE):
            for _ in range(_DRAIN_MAX_BYTES // _DRAIN_CHUNK_BYTES):
                if not stream.read(_DRAIN_CHUNK_BYTES):
                    break
    return response
