"""The Prefer header (RFC 7240): known preferences are used, and all others are ignored."""

from __future__ import annotations

import time

import pytest

from shared.web.waiting import prefer_header
from shared.web.waiting.prefer_header import Preferences

NOTHING = Preferences()
WHOLE = Preferences(returned="representation")


@pytest.mark.parametrize(
    ("text", "preferences"),
    [
        ("", NOTHING),
        ("return=representation", WHOLE),
        ("return=minimal", Preferences(returned="minimal")),
        ("Return = REPRESENTATION", WHOLE),
        ('return="representation"', WHOLE),
        ('return="repre\\sentation"', WHOLE),
        ("return=representation; foo", WHOLE),
        ('return=representation; foo="a, b; c"; bar = 1 ;', WHOLE),
        ("wait=10", Preferences(wait_s=10)),
        ('wait="10"', Preferences(wait_s=10)),
        ("wait\t=\t10", Preferences(wait_s=10)),
        ("wait=0", Preferences(wait_s=0)),
        ("wait=00010", Preferences(wait_s=10)),
        ("wait=30", Preferences(wait_s=30)),
        ("wait=31", Preferences(wait_s=30)),
        ("wait=" + "9" * 8000, Preferences(wait_s=30)),
        ("return=representation, wait=10", Preferences("representation", 10)),
        (" ,, wait=10 ,, return=minimal ,", Preferences("minimal", 10)),
        ('respond-async, foo="return=minimal", wait=5', Preferences(wait_s=5)),
        # The first of several waits counts. Values of return that exclude each other are ignored.
        ("wait=5, wait=10", Preferences(wait_s=5)),
        ("wait=x, wait=10", NOTHING),
        ("return=minimal, return=representation", NOTHING),
        ("return=representation, RETURN=representation", WHOLE),
        # Invalid values.
        ("wait", NOTHING),
        ("wait=", NOTHING),
        ('wait=""', NOTHING),
        ("wait=-1", NOTHING),
        ("wait=1.5", NOTHING),
        ("wait=1e1", NOTHING),
        ("wait=1O", NOTHING),
        ("return", NOTHING),
        ("return=everything", NOTHING),
        ("return=everything, wait=5", Preferences(wait_s=5)),
        # A malformed header is ignored as a whole.
        ("wait=5 return=minimal", NOTHING),
        ("wait=5, =", NOTHING),
        ("wait=5; =x", NOTHING),
        ("=5", NOTHING),
        ("wait==5", NOTHING),
        ("wait=5, @", NOTHING),
        ('wait="5', NOTHING),
        ('wait=5, foo="\x00"', NOTHING),
        ("wait=\u0665", NOTHING),
        ("wait=5\n", NOTHING),
        ("\xff=\xff", NOTHING),
    ],
)
def test_known_preferences_are_read(text: str, preferences: Preferences) -> None:
    assert prefer_header.parse_preferences(text) == preferences


@pytest.mark.parametrize("text", ["a;" + " " * 8000 + "@", "a=" + '"' * 8000, ",\t" * 4000 + "@",
                                  "a" + ";b" * 4000 + "@", 'a="' + "\\" * 8000])  # fmt: skip
def test_no_header_takes_long_to_read(text: str) -> None:
    """The header is about as large as the server accepts. Backtracking would take minutes."""
    began = time.process_time()
    assert prefer_header.parse_preferences(text) == NOTHING
    assert time.process_time() - began < 1


def test_applied_preferences_are_reported() -> None:
    assert prefer_header.response_headers() == {"Vary": "Prefer"}
    assert prefer_header.response_headers(returned="minimal") == {
        "Vary": "Prefer",
        "Preference-Applied": "return=minimal",
    }
    assert prefer_header.response_headers(returned="representation", wait_s=30)[
        "Preference-Applied"
    ] == ("return=representation, wait=30")
