"""Print text from outside, such as a client's, without letting it control the terminal."""

from __future__ import annotations

import io
from typing import TextIO


def printable(text: str) -> str:
    """Escape the characters that could control a terminal, such as ESC and text direction marks.

    Args:
        text: one line. Tabs stay.
    """
    return "".join(
        character
        if character.isprintable() or character == "\t"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def never_fail_to_print(stream: TextIO) -> None:
    """Escape the characters that the stream's encoding lacks, as stderr does by default."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
