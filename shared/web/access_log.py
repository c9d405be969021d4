"""One log line for each request, with its status and duration.

One thread of each process writes the lines, several at a time. If each request wrote its own line,
its thread would lose the interpreter to another thread during the write, and wait to get it back
(benchmarks/README.md).
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from datetime import UTC, datetime
from functools import cache, partial

from settle_outbox.event import format_time
from settle_outbox.log import write_together
from settle_outbox.runtime.threads import repeat

# Maximum delay of a line, and maximum number of lines that wait. If there are more, the oldest are
# dropped.
_GATHER_S = 0.1
_WAITING_MAX = 10_000


class AccessLogWriter:
    """Writes the lines of a process in a thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, datetime, dict[str, object]]] = deque(maxlen=_WAITING_MAX)
        self._has_lines = threading.Event()
        self._write_lock = threading.Lock()
        write_lines = partial(repeat, self._write_next, failed_event="web.access_log_failed")
        threading.Thread(target=write_lines, name="access-log", daemon=True).start()
        atexit.register(self._write_all)

    def write(self, level: int, values: dict[str, object]) -> None:
        """Write a line within `_GATHER_S`."""
        self._waiting.append((level, datetime.now(UTC), values))
        if not self._has_lines.is_set():
            self._has_lines.set()

    def _write_next(self) -> None:
        self._has_lines.wait()
        time.sleep(_GATHER_S)
        self._has_lines.clear()
        self._write_all()

    def _write_all(self) -> None:
        with self._write_lock:
            taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
            write_together(
                "web.request",
                ((level, {**values, "at": format_time(moment)}) for level, moment, values in taken),
            )


@cache
def writer() -> AccessLogWriter:
    """Return the writer of this process."""
    return AccessLogWriter()
