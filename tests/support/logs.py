"""Log lines that a test has captured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def events(lines: Iterable[Mapping[str, Any]], area: str) -> list[str]:
    """Return the events of an area, such as ``relay``, in their order.

    Captured are the lines of the whole process: an API of an earlier test may still write its
    access log.
    """
    return [line["event"] for line in lines if line["event"].startswith(f"{area}.")]
