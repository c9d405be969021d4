"""Parses request bodies as strict JSON, in linear time and memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import accumulate, islice
from math import isinf
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from flask import Flask, Request, request
from gunicorn.http.errors import ParseException
from marshmallow import Schema, ValidationError
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from shared.web.problems import problem_types
from shared.web.problems.documents import InvalidInputError, ProblemError
from shared.web.server.request_reader import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Maximum size of a body. The largest valid one is an order with a description of 10,000 characters,
# each escaped as a surrogate pair (12 bytes).
MAX_BYTES = 128 * 1024
# Maximum nesting of arrays and objects. The body of every call is one flat object.
MAX_DEPTH = 32
NOT_JSON = "The body must be JSON, with Content-Type: application/json. The request has {}."
COMPRESSED = "The body must not be compressed: send it without Content-Encoding."
TOO_DEEP = f"The body is nested too deeply: the maximum is {MAX_DEPTH} levels."

# Limits of an answer that lists faults: their number, and the characters of a pointer and a name.
FAULTS_MAX = 20
POINTER_MAX = 2_000
NAME_MAX = 100

# A string, to its end or to the end of the body. No part is tried twice (the quantifiers are
# possessive), so a search takes linear time.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DEPTH_CHANGES = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

_REPEATED = "The object has this name more than once."


class _ObjectWithRepeatedNames(dict[str, Any]):
    """An object with repeated names."""

    __slots__ = ("repeated",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs)
        self.repeated = [name for name, count in counts.items() if count > 1]


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _ObjectWithRepeatedNames(pairs)


def _parse_finite(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise _invalid(f"The number {text[:40]} is too large.")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise _not_json(f"{name} is not a number in JSON (RFC 8259, section 6).")


_decoder = json.JSONDecoder(
    object_pairs_hook=_make_object, parse_float=_parse_finite, parse_constant=_refuse_constant
)


def read_json(incoming: Request) -> Any:  # anything that JSON can hold
    """Parse a request's body as JSON (RFC 8259), in UTF-8.

    The parameter `charset` of the media type has no effect (section 11).

    Raises:
        ProblemError: the body cannot be read, is compressed, is not JSON, or is nested deeper than
            `MAX_DEPTH`.
        InvalidInputError: an object has repeated names, for which parsers use different values (RFC
            8259, section 4). Or a number is too large for Python to parse.
        RequestEntityTooLarge: the body is larger than `MAX_BYTES`.
        UnsupportedMediaType: the media type is not JSON.
    """
    _check_media_type(incoming)
    body = _read(incoming)
    text = _decode(body)
    # Most bodies have too few brackets to be nested too deeply.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        raise ProblemError(problem_types.NESTED_TOO_DEEPLY, TOO_DEEP)
    try:
        data = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} (line {error.lineno}, column {error.colno}).") from error
    except ValueError as error:
        # Python limits the digits of an integer (sys.set_int_max_str_digits).
        raise _invalid("An integer has too many digits.") from error
    repeated = islice(_find_repeated_names(data, []), FAULTS_MAX)
    if faults := [{"pointer": pointer, "detail": _REPEATED} for pointer in repeated]:
        raise InvalidInputError(faults)
    return data


def _not_json(why: str) -> ProblemError:
    return ProblemError(problem_types.NOT_JSON, f"The body is not JSON: {why}")


def _invalid(detail: str) -> InvalidInputError:
    return InvalidInputError([{"pointer": "#", "detail": detail}])


def _check_media_type(incoming: Request) -> None:
    """Check the headers of a body before it is read."""
    if not incoming.is_json:
        received = incoming.headers.get("Content-Type", "")[:NAME_MAX]
        raise UnsupportedMediaType(NOT_JSON.format(repr(received) if received else "none"))
    coding = incoming.environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if coding not in {"", "identity"}:
        # The answer names the supported codings (RFC 9110, section 12.5.3).
        supported = {"Accept-Encoding": "identity"}
        raise ProblemError(problem_types.UNSUPPORTED_MEDIA_TYPE, COMPRESSED, headers=supported)


def _decode(body: bytes) -> str:
    """Decode a body from UTF-8. If it has another encoding, the error names that encoding."""
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
    """Return the nesting depth of a body without parsing it.

    If the body is not JSON, the depth may be too large. It is never too small for the part that the
    parser reads, which ends at the first error.
    """
    # `sub` gets text with one byte per character, because for bytes it takes ten times the memory.
    rest = _STRING.sub("", body.decode("latin-1")).encode("latin-1")
    brackets = rest.translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_DEPTH_CHANGES.__getitem__, brackets)), default=0)


def _find_repeated_names(data: object, path: list[str | int]) -> Iterator[str]:
    """Yield a pointer to each repeated name in `data`. `path` leads to `data`."""
    if isinstance(data, _ObjectWithRepeatedNames):
        for name in data.repeated:
            yield _pointer([*path, name])
    pairs: Iterable[tuple[str | int, Any]] = ()
    if isinstance(data, dict):
        pairs = data.items()
    elif isinstance(data, list):
        pairs = enumerate(data)
    for key, each in pairs:
        if each and isinstance(each, (dict, list)):
            path.append(key)
            yield from _find_repeated_names(each, path)
            path.pop()


def _pointer(path: list[str | int]) -> str:
    """Make a JSON Pointer as a URI fragment (RFC 6901, section 6).

    Names are cut to `NAME_MAX` characters. A pointer that would be longer than `POINTER_MAX` ends
    at an enclosing value.
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
        raise ProblemError(problem_types.problem_type_of(error.status), str(error)) from error
    except (OSError, ParseException) as error:  # malformed or incomplete chunks
        raise ProblemError(
            problem_types.MALFORMED_REQUEST, "The body cannot be read: its chunks are malformed."
        ) from error
    if len(body) > MAX_BYTES:
        raise RequestEntityTooLarge
    return body


class Parser(FlaskParser):
    """Loads bodies and queries by a marshmallow schema. Errors become problem documents."""

    def parse(  # type: ignore[override]  # webargs has further options, which nothing here uses
        self, argmap: Schema, *, location: str, **_: object
    ) -> Any:
        """Load the body or the query of the current request.

        Args:
            argmap: the schema.
            location: ``json`` for the body, which must be a JSON object, or ``query``.

        Raises:
            InvalidInputError: the schema refuses a value, with the place of each fault.
        """
        is_body = location == "json"
        data = read_json(request) if is_body else request.args
        if is_body and not isinstance(data, dict):
            raise _invalid("Must be a JSON object.")
        try:
            return argmap.load(data)
        except ValidationError as error:
            faults = [
                ({"pointer": f"#/{name}"} if is_body else {"parameter": name}) | {"detail": detail}
                for name, details in error.normalized_messages().items()  # type: ignore[no-untyped-call]
                for detail in details
            ]
            raise InvalidInputError(faults) from error


def register(app: Flask) -> None:
    """Limit the request bodies of an app to `MAX_BYTES`."""
    # werkzeug silently truncates a chunked body at this limit. One byte more shows that the body
    # was larger.
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES + 1
    app.before_request(_refuse_large)


def _refuse_large() -> None:
    """Refuse a large body even if the view does not read it. 404 and 405 take precedence."""
    if (request.content_length or 0) > MAX_BYTES and request.routing_exception is None:
        raise RequestEntityTooLarge
