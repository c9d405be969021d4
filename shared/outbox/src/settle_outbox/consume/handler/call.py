"""Call a handler as its contract says, and check the verdicts that it returns; see `Handler`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, overload

from settle_outbox.consume.handler.guard import guarded
from settle_outbox.errors import SettleError
from settle_outbox.service import Outcome, Verdict
from settle_outbox.trace import Trace, current_trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from sqlalchemy.orm import Session

    from settle_outbox.consume.handler.guard import HandlerRun
    from settle_outbox.event import ReceivedEvent
    from settle_outbox.service import Subscription

_VERDICT_OUTCOMES = (Outcome.ANOMALY, Outcome.PARKED)


class WrongVerdictError(SettleError):
    """A handler returned something other than None or verdicts on the events of its batch."""


def call_handler(
    session: Session,
    subscription: Subscription,
    events: Sequence[ReceivedEvent],
    run: HandlerRun,
) -> Mapping[UUID, Verdict]:
    """Call the handler of a subscription.

    Args:
        session: in a transaction that can be guarded.
        subscription: whose handler is called.
        events: of the subscription; at least one.
        run: measures the handler.

    Returns:
        The verdicts, by event id.

    Raises:
        WrongVerdictError: the handler returned something else.
        Exception: any error of the handler; see also `guarded`.
    """
    with guarded(session.connection(), run):
        with _traced(events) as traced_events:
            verdicts = subscription.handle(session, traced_events)
        session.flush()
    if verdicts is None:
        return {}
    if not isinstance(verdicts, Mapping):
        raise WrongVerdictError(
            f"A handler returns None or verdicts by event id, not a {type(verdicts).__name__}."
        )
    return _checked(dict(verdicts), {event.id for event in events})


def _checked(verdicts: dict[UUID, Verdict], event_ids: set[UUID]) -> dict[UUID, Verdict]:
    for event_id, verdict in verdicts.items():
        if event_id not in event_ids:
            raise WrongVerdictError(
                f"The handler returned a verdict on {event_id!r}, which is not in its batch."
            )
        if not _is_valid(verdict):
            raise WrongVerdictError(
                f"The verdict on event {event_id} is {verdict!r}, not a Verdict with the outcome"
                " ANOMALY or PARKED, and with texts as reason and detail."
            )
    return verdicts


def _is_valid(verdict: object) -> bool:
    return (
        isinstance(verdict, Verdict)
        and isinstance(verdict.outcome, Outcome)
        and verdict.outcome in _VERDICT_OUTCOMES
        and isinstance(verdict.reason, str)
        and isinstance(verdict.detail, str)
    )


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
def _traced(events: Sequence[ReceivedEvent]) -> Iterator[Sequence[ReceivedEvent]]:
    """Return the same events. Iterating over them sets the current trace.

    Outside an iteration, the current trace is the trace of all events, or empty if they differ.

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
