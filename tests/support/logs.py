"""Log lines that a test has captured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def events(lines: Iterable[Mapping[str, Any]], area: str) -> list[str]:
    """Return the events of an area, such as ``relay``, in order.

    The lines of the whole process are captured. An API of an earlier test may still write access
    log lines.
    """
    return [line["event"] for line in lines if line["event"].startswith(f"{area}.")]
