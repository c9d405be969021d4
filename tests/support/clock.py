"""Time that passes only when somebody waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from settle_outbox.runtime.process import Stop

if TYPE_CHECKING:
    from collections.abc import Callable

# A test that waits for longer waits for something that does not come.
LONGEST_S = 3600.0


class TimeIsUpError(BaseException):
    """No loop of the engine catches it."""


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self._began = self._now = 1_000.0

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
        if self._now > self._began + LONGEST_S:
            raise TimeIsUpError("what the test waits for does not come")


class InstantStop(Stop):
    """A stop whose waits take no time but that of a clock.

    Attributes:
        on_wait: called with the seconds of each wait.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.on_wait: Callable[[float], object] = lambda _: None

    def wait(self, seconds: float, *_others: Any) -> list[Any]:
        self.on_wait(seconds)
        self._clock.advance(seconds)
        return []
