"""What a client would rather have: the header Prefer (RFC 7240).

Preferences are hints. One that is unknown, or whose value makes no sense, is ignored, and so is a
header that is malformed; no request fails for it. What was honoured stands in Preference-Applied.
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

# RFC 7240, section 2, over RFC 9110, section 5.6. Possessive: whatever is sent, it is read once.
_TCHARS = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_WORD = rf'{_TCHARS}|"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t -~])*+"'
_PAIR = rf"(?:{_TCHARS})(?:[ \t]*+=[ \t]*+(?:{_WORD})?)?"
_PREFERENCE = re.compile(
    rf"(?P<name>{_TCHARS})(?:[ \t]*+=[ \t]*+(?P<value>{_WORD})?+)?+"
    rf"(?:[ \t]*+;[ \t]*+(?:{_PAIR})?+)*+[ \t]*+(?=,|\Z)"
)
_BETWEEN = re.compile(r"[ \t,]*+")
_SECONDS = re.compile(r"0*+([0-9]++)?")
_SECONDS_DIGITS = 3  # enough for any wait that is not cut to the most


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preferences of a request that are known here.

    Args:
        returned: `representation` or `minimal`; None when neither is preferred.
        wait_s: how long the client would wait for the result, cut to `WAIT_MAX_S`; None when it
            does not say.
    """

    returned: str | None = None
    wait_s: int | None = None


def read(text: str | None) -> Preferences:
    """Read the header; several in one request come joined by commas (RFC 9110, section 5.3)."""
    values = _values(text) if text else {}
    returned = {value.lower() for value in values.get("return", ())} & {REPRESENTATION, MINIMAL}
    return Preferences(
        # Who asks for both is taken to have asked for neither (RFC 7240, section 4.2).
        returned=returned.pop() if len(returned) == 1 else None,
        wait_s=_seconds(values["wait"][0]) if "wait" in values else None,
    )


def preferences() -> Preferences:
    """The preferences of the request."""
    return read(request.headers.get(HEADER))


def headers(*, returned: str | None = None, wait_s: int | None = None) -> dict[str, str]:
    """The headers of an answer that depends on Prefer, also when nothing was preferred.

    Args:
        returned: that was honoured, or None.
        wait_s: that was honoured, or None.
    """
    honoured = [] if returned is None else [f"return={returned}"]
    honoured += [] if wait_s is None else [f"wait={wait_s}"]
    return {"Vary": HEADER} | ({APPLIED: ", ".join(honoured)} if honoured else {})


def _values(text: str) -> dict[str, list[str]]:
    """Every value of each preference, in the order sent; of nothing when it is malformed."""
    found: dict[str, list[str]] = {}
    place = _BETWEEN.match(text).end()  # type: ignore[union-attr]  # it always matches
    while place < len(text):
        preference = _PREFERENCE.match(text, place)
        if preference is None:
            return {}
        value = preference["value"] or ""
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found.setdefault(preference["name"].lower(), []).append(value)
        place = _BETWEEN.match(text, preference.end()).end()  # type: ignore[union-attr]
    return found


def _seconds(value: str) -> int | None:
    digits = _SECONDS.fullmatch(value) if value else None
    if digits is None:
        return None
    significant = digits[1] or "0"
    return WAIT_MAX_S if len(significant) > _SECONDS_DIGITS else min(int(significant), WAIT_MAX_S)


def parameter(*further: str, example: str) -> dict[str, Any]:
    """Describe the header for a call that takes it, in OpenAPI.

    Args:
        further: a sentence on each preference beside `wait`.
        example: of the header.
    """
    sentences = [
        "What the client would rather have (RFC 7240), separated by commas.",
        f"`wait=N`: the answer when the order is final, or after N seconds, at most {WAIT_MAX_S}.",
        *further,
        "What is unknown or malformed is ignored.",
    ]
    return {
        "in": "header",
        "name": HEADER,
        "description": " ".join(sentences),
        "schema": {"type": "string", "examples": [example]},
    }


def described(example: str) -> dict[str, Any]:
    """Describe the headers of an answer that depends on Prefer, in OpenAPI."""
    return {
        APPLIED: {
            "description": "Which preferences were honoured; missing when none was.",
            "schema": {"type": "string"},
            "example": example,
        },
        "Vary": {
            "description": "What the answer depends on.",
            "schema": {"type": "string"},
            "example": HEADER,
        },
    }
