"""A clock that stands still while the process is frozen."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from settle_outbox.runtime.threads import repeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TICK_S = 0.2
# A tick that is late by more than this may mean that the process was frozen. On a busy machine, the
# delay of a tick is shorter.
_FROZEN_S = 1.0


class ActiveClock(threading.Thread):
    """A monotonic clock that stands still while the process is frozen (SIGSTOP, a paused VM).

    Its thread ticks a few times a second. If a tick is late, and the process has used the processor
    for less than half of the delay, the process counts as frozen for the whole delay.

    Args:
        beat: writes a heartbeat; see `beating`.
    """

    def __init__(self, beat: Callable[[], None] = lambda: None) -> None:
        super().__init__(name="active-clock", daemon=True)
        self._beat = beat
        self._beat_until = 0.0
        self._lock = threading.Lock()
        self._frozen_s = 0.0
        self._ticked_at = time.monotonic()
        self._cpu_s = time.process_time()
        self.start()

    def now(self) -> float:
        """Return the seconds since an arbitrary start in which the process was not frozen."""
        now = time.monotonic()
        if now - self._ticked_at < _FROZEN_S:
            return now - self._frozen_s
        return self._record_tick()

    @contextmanager
    def beating(self, limit_s: float) -> Iterator[None]:
        """Write heartbeats while the block runs, for at most `limit_s` seconds."""
        self._beat_until = self.now() + limit_s
        try:
            yield
        finally:
            self._beat_until = 0.0

    def _record_tick(self) -> float:
        with self._lock:
            now, cpu_s = time.monotonic(), time.process_time()
            late_s = now - self._ticked_at - _TICK_S
            if late_s > _FROZEN_S and cpu_s - self._cpu_s < late_s / 2:
                self._frozen_s += late_s
            self._ticked_at, self._cpu_s = now, cpu_s
            return now - self._frozen_s

    def run(self) -> None:
        """Tick until the process ends."""
        repeat(self._tick, failed_event="consumer.clock_failed")

    def _tick(self) -> None:
        time.sleep(_TICK_S)
        if self._record_tick() < self._beat_until:
            self._beat()
