"""The base class of this project's errors, and functions that describe an error in a line."""

from __future__ import annotations

_LINE_MAX_LENGTH = 2_000


class SettleError(Exception):
    """An error whose text tells a person what happened and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 2,000 characters."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - __str__ of any class may fail
        return "its text cannot be made"
    return lines[0][:_LINE_MAX_LENGTH] if lines else ""


def describe_error(error: BaseException) -> str:
    """Return the class and the first line of an error: ``ValueError: not a date``."""
    return f"{type(error).__name__}: {first_line(error)}"
