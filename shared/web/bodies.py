"""Reading request bodies: strict JSON, in time and memory linear in their length."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import accumulate, islice
from math import isinf
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from flask import request
from gunicorn.http.errors import ParseException
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from shared.web import kinds
from shared.web.problems import InvalidInputError, ProblemError
from shared.web.reading import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flask import Flask, Request
    from marshmallow import Schema, ValidationError

# The largest call is an order whose description has 10,000 characters, each escaped as a surrogate
# pair (12 bytes).
MAX_BYTES = 128 * 1024
# Levels of arrays and objects within each other. No call needs more than two.
MAX_DEPTH = 32
COMPRESSED = "The body must not be compressed: send it without Content-Encoding."
TOO_DEEP = f"The body is nested too deeply: {MAX_DEPTH} levels are the most."

# Limits of an answer that names repeated names: the number of faults, and the length of a pointer
# and of each name in it, in characters.
FAULTS_MAX = 20
POINTER_MAX = 2_000
NAME_MAX = 100

# A string, to its end or to the end of the body. No part is tried twice (the quantifiers are
# possessive), so a search takes linear time.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_CONTAINERS = (dict, list)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

# What gunicorn raises when the chunks of a body are malformed, or end before the last.
_UNREADABLE = (OSError, ParseException)


class _Repetitive(dict[str, Any]):
    """An object that has a name more than once."""

    __slots__ = ("repeated",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs)
        self.repeated = list(
            islice((name for name, count in counts.items() if count > 1), FAULTS_MAX)
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repetitive(pairs)


def _finite(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise InvalidInputError([{"pointer": "#", "detail": f"{text[:40]} is too large a number."}])
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise _not_json(f"{name} is no number there (RFC 8259, section 6).")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant
)


def read_json(incoming: Request) -> Any:  # whatever JSON holds
    """Parse a request's body as JSON (RFC 8259), in UTF-8.

    The media type has no parameter `charset`: one that is sent has no effect (section 11).

    Raises:
        ProblemError: it is not JSON, or nested beyond `MAX_DEPTH`, or cannot be read.
        InvalidInputError: an object has a name twice: one reader would take the first value,
            another the last (RFC 8259, section 4). Or a number is larger than Python reads.
        RequestEntityTooLarge: it is over `MAX_BYTES`.
        UnsupportedMediaType: it does not say that it is JSON, or it is compressed.
    """
    _check_media_type(incoming)
    body = _read(incoming)
    text = _decode(body)
    if _depth(body) > MAX_DEPTH:
        raise ProblemError(kinds.NESTED_TOO_DEEPLY, TOO_DEEP)
    try:
        data = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} (line {error.lineno}, column {error.colno}).") from error
    except ValueError as error:
        # Python bounds the digits of an integer (sys.set_int_max_str_digits).
        raise InvalidInputError([{"pointer": "#", "detail": "A number is too long."}]) from error
    faults: list[dict[str, str]] = []
    if isinstance(data, _CONTAINERS):
        _find_repeated_names(data, [], faults)
    if faults:
        raise InvalidInputError(faults[:FAULTS_MAX])
    return data


def _not_json(why: str) -> ProblemError:
    return ProblemError(kinds.NOT_JSON, f"The body is not JSON: {why}")


def _check_media_type(incoming: Request) -> None:
    """Refuse a body by its headers, before any of it is read."""
    if not incoming.is_json:
        raise UnsupportedMediaType("The body must be JSON, with Content-Type: application/json.")
    coding = incoming.headers.get("Content-Encoding", "").strip().lower()
    if coding not in {"", "identity"}:
        raise _UnsupportedCodingError


class _UnsupportedCodingError(UnsupportedMediaType):
    """A compressed body; the answer names the codings that are taken (RFC 9110, section 12.5.3)."""

    description = COMPRESSED

    def get_headers(self, *arguments: Any, **options: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*arguments, **options), ("Accept-Encoding", "identity")]


def _decode(body: bytes) -> str:
    """Decode a body from UTF-8.

    A byte order mark is refused: RFC 8259, section 8.1, lets a reader choose.

    Raises:
        ProblemError: it is empty, or in another encoding; the detail says which.
    """
    if not body.strip(b" \t\r\n"):
        raise _not_json("it is only white space." if body else "it is empty.")
    encoding = json.detect_encoding(body)
    if encoding == "utf-8-sig":
        raise _not_json(
            "it begins with a byte order mark (U+FEFF). Leave the mark out (RFC 8259, section 8.1)."
        )
    if encoding != "utf-8":
        raise _not_json(f"it is in {encoding[:6].upper()}, and must be in UTF-8.")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(f"it is not UTF-8 (at byte {error.start + 1}).") from error


def _depth(body: bytes) -> int:
    """Count the levels of arrays and objects in a body, before it is parsed.

    Up to the place where a body stops being JSON, the number is right. A parser goes no further.
    """
    # As text, of one byte a character: to join bytes takes ten times the memory.
    rest = _STRING.sub("", body.decode("latin-1")).encode("latin-1")
    brackets = rest.translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def _find_repeated_names(
    data: dict[str, Any] | list[Any], path: list[str | int], faults: list[dict[str, str]]
) -> None:
    """Collect the faults of a value of at most `MAX_DEPTH` levels, until there are `FAULTS_MAX`.

    Args:
        data: an object or array.
        path: the names and indexes that lead to it; the same afterwards.
        faults: the list to which to add.
    """
    if isinstance(data, _Repetitive):
        faults += [
            {"pointer": _pointer([*path, name]), "detail": "The object has this name twice."}
            for name in data.repeated
        ]
    pairs: Iterable[tuple[str | int, Any]]
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    for name, each in pairs:
        if len(faults) >= FAULTS_MAX:
            return
        if each and isinstance(each, _CONTAINERS):
            path.append(name)
            _find_repeated_names(each, path, faults)
            path.pop()


def _pointer(path: list[str | int]) -> str:
    """Make a JSON Pointer, as a fragment (RFC 6901, section 6).

    Where it would be longer than `POINTER_MAX`, it ends earlier: at a value around the place.
    """
    pointer = "#"
    for name in path:
        escaped = str(name)[:NAME_MAX].replace("~", "~0").replace("/", "~1")
        longer = f"{pointer}/{quote(escaped, safe='~', errors='replace')}"
        if len(longer) > POINTER_MAX:
            break
        pointer = longer
    return pointer


def _read(incoming: Request) -> bytes:
    try:
        body = incoming.get_data(cache=False)
    except RequestError as error:
        raise ProblemError(kinds.kind_of(error.status), str(error)) from error
    except _UNREADABLE as error:
        raise ProblemError(
            kinds.MALFORMED_REQUEST, "The body cannot be read: its chunks are malformed."
        ) from error
    if len(body) > MAX_BYTES:
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
    """Bound the bodies of an app."""
    # werkzeug cuts a body without a length there, and says nothing. The byte beyond the limit shows
    # that there is more.
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES + 1
    app.before_request(_refuse_large)


def _refuse_large() -> None:
    """Refuse a large body also where none is read, as of a GET."""
    if request.routing_exception is None and (request.content_length or 0) > MAX_BYTES:
        raise RequestEntityTooLarge
