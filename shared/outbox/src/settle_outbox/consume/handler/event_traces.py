"""Make the trace of each event the current one while a handler iterates over the events."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, overload

from settle_outbox.trace import Trace, current_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from settle_outbox.event import ReceivedEvent


class _TracedEvents(Sequence["ReceivedEvent"]):
    def __init__(self, events: Sequence[ReceivedEvent], common: Trace) -> None:
        self._events = events
        self._common = common

    def __iter__(self) -> Iterator[ReceivedEvent]:
        for event in self._events:
            current_trace.set(event.trace)
            yield event
        current_trace.set(self._common)

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, index: int) -> ReceivedEvent: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ReceivedEvent]: ...
    def __getitem__(self, index: int | slice) -> ReceivedEvent | Sequence[ReceivedEvent]:
        return self._events[index]


@contextmanager
def traced(events: Sequence[ReceivedEvent]) -> Iterator[Sequence[ReceivedEvent]]:
    """Return the same events. Iterating over them sets the current trace.

    Outside an iteration, the current trace is the one that all events share, if they do.

    Args:
        events: at least one.
    """
    first = events[0].trace
    common = first if all(event.trace == first for event in events) else Trace()
    token = current_trace.set(common)
    try:
        yield _TracedEvents(events, common)
    finally:
        current_trace.reset(token)
