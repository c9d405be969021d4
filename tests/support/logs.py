"""Log lines in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def log_plain_tracebacks() -> None:
    """Log tracebacks without variables. By default, structlog takes seconds to format one."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.LogfmtRenderer()]
    )


def events(lines: Iterable[Mapping[str, Any]], area: str) -> list[str]:
    """Return the events of an area, such as ``relay``, among captured lines, in order.

    The lines of the whole process are captured. They may include access log lines of an API from an
    earlier test.
    """
    return [line["event"] for line in lines if line["event"].startswith(f"{area}.")]
