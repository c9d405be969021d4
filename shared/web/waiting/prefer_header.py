"""The header Prefer (RFC 7240): what a client would like, if possible.

Preferences are hints. A preference that is unknown or invalid is ignored, and so is a malformed
header: no request fails because of them. Preference-Applied lists the honoured preferences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from flask import request

HEADER = "Prefer"
APPLIED = "Preference-Applied"
WAIT_MAX_S = 30

REPRESENTATION = "representation"
MINIMAL = "minimal"

# RFC 7240, section 2, with RFC 9110, section 5.6. The quantifiers are possessive, so the time to
# read any header is linear.
_TCHARS = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_WORD = rf'{_TCHARS}|"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t -~])*+"'
_PAIR = rf"(?:{_TCHARS})(?:[ \t]*+=[ \t]*+(?:{_WORD})?)?"
_PREFERENCE = re.compile(
    rf"(?P<name>{_TCHARS})(?:[ \t]*+=[ \t]*+(?P<value>{_WORD})?+)?+"
    rf"(?:[ \t]*+;[ \t]*+(?:{_PAIR})?+)*+[ \t]*+(?=,|\Z)"
)
_BETWEEN = re.compile(r"[ \t,]*+")


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preferences of a request that the services know.

    Args:
        returned: `representation`, `minimal`, or None for no preference.
        wait_s: how long the client would wait for the result, at most `WAIT_MAX_S`; None for no
            preference.
    """

    returned: str | None = None
    wait_s: int | None = None


_NONE = Preferences()


def requested_preferences() -> Preferences:
    """Return the preferences of the current request."""
    text = request.environ.get("HTTP_PREFER")
    return parse_preferences(text) if text else _NONE


def parse_preferences(text: str) -> Preferences:
    """Parse the header. Several headers are joined by commas (RFC 9110, section 5.3)."""
    values = _values(text)
    returned = {value.lower() for value in values.get("return", ())} & {REPRESENTATION, MINIMAL}
    return Preferences(
        # The two exclude each other. If both are sent, neither counts (RFC 7240, section 4.2).
        returned=returned.pop() if len(returned) == 1 else None,
        wait_s=_seconds(values["wait"][0]) if "wait" in values else None,
    )


def response_headers(*, returned: str | None = None, wait_s: int | None = None) -> dict[str, str]:
    """Return the headers of an answer that depends on Prefer, with the honoured preferences."""
    honoured = [] if returned is None else [f"return={returned}"]
    honoured += [] if wait_s is None else [f"wait={wait_s}"]
    return {"Vary": HEADER} | ({APPLIED: ", ".join(honoured)} if honoured else {})


def _values(text: str) -> dict[str, list[str]]:
    """Return the values of each preference, in their order. A malformed header has none."""
    found: dict[str, list[str]] = {}
    position = _BETWEEN.match(text).end()  # type: ignore[union-attr]  # it always matches
    while position < len(text):
        preference = _PREFERENCE.match(text, position)
        if preference is None:
            return {}
        value = preference["value"] or ""
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found.setdefault(preference["name"].lower(), []).append(value)
        position = _BETWEEN.match(text, preference.end()).end()  # type: ignore[union-attr]
    return found


def _seconds(value: str) -> int | None:
    if not (value.isascii() and value.isdigit()):
        return None
    # Three digits are enough: a longer number is above the maximum.
    return min(int(value.lstrip("0")[:3] or "0"), WAIT_MAX_S)


def describe_parameter(*further: str, example: str) -> dict[str, Any]:
    """Return the OpenAPI description of the header, with sentences about further preferences."""
    sentences = [
        "Preferences of the client (RFC 7240), separated by commas.",
        f"`wait=N`: answer when the order is final, or after N seconds, at most {WAIT_MAX_S}.",
        *further,
        "Unknown and malformed preferences are ignored.",
    ]
    return {
        "in": "header",
        "name": HEADER,
        "description": " ".join(sentences),
        "schema": {"type": "string", "examples": [example]},
    }


def describe_headers(example: str) -> dict[str, Any]:
    """Return the OpenAPI description of the headers of an answer that depends on Prefer."""
    return {
        APPLIED: {
            "description": "The preferences that were honoured. Absent if there are none.",
            "schema": {"type": "string"},
            "example": example,
        },
        "Vary": {
            "description": "The request headers that the answer depends on.",
            "schema": {"type": "string"},
            "example": HEADER,
        },
    }
