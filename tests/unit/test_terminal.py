"""Text from outside, such as a record's header, cannot control the terminal."""

from __future__ import annotations

import io

import pytest

from settle_outbox.cli.terminal import never_fail_to_print, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b31mred", "\\x9b31mred"),  # the CSI as one character
        ("user\u202egpj", "user\\u202egpj"),  # shows the rest from right to left
        ("a\rb\nc", "a\\rb\\nc"),
        ("a\tb ü 日本", "a\tb ü 日本"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_character_that_the_encoding_lacks_is_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")

    never_fail_to_print(stream)

    stream.write("ü 日")
    stream.flush()
    assert raw.getvalue() == b"\xfc \\u65e5"
