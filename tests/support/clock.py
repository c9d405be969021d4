"""A clock that advances when the code under test waits, or when the test advances it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from settle_outbox.runtime.process import Stop

if TYPE_CHECKING:
    from collections.abc import Callable

# Maximum time that may pass on a test's clock, in waits and by `advance` together. More passes only
# if the test waits for something that does not happen. Then the test fails.
MAX_ADVANCE_S = 3600.0


class TimeIsUpError(BaseException):
    """The test waited too long. As a BaseException, it is caught by no loop of `settle_outbox`."""


class Clock:
    """A replacement for the module `time`, for modules that use only its function `monotonic`."""

    def __init__(self) -> None:
        self._began = self._now = 1_000.0

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Advance the clock by `seconds`."""
        self._now += seconds
        if self._now > self._began + MAX_ADVANCE_S:
            raise TimeIsUpError("the test waited too long")


class StopWithClock(Stop):
    """A `Stop` whose `wait` returns at once, and advances a clock by the time of the wait.

    Attributes:
        on_wait: Called with the seconds of each wait.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.on_wait: Callable[[float], object] = lambda _: None

    def wait(self, seconds: float, *_files: Any) -> list[Any]:
        self.on_wait(seconds)
        self._clock.advance(seconds)
        return []  # no file ever becomes readable
