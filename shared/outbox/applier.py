"""Apply a batch of records: inbox, effects and the events they cause, in one transaction.

When the handler fails, the batch is rolled back and retried in halves until one event fails alone.
That event becomes a dead letter, waits for another attempt, or stops its subscription. Everything
else is applied.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import structlog
from kafka import TopicPartition
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from shared.errors import SettleError
from shared.failpoints import failpoint
from shared.outbox import brakes
from shared.outbox.failures import (
    DatabaseTroubleError,
    FailureHandling,
    HandlerLimits,
    HandlerTimeoutError,
    Wait,
    raise_if_database_failed,
    raise_key_collision,
)
from shared.outbox.handler_guard import ActiveClock, HandlerRun, guarded
from shared.outbox.held import Held
from shared.outbox.inbox import forget, note_verdict, park, record_new
from shared.outbox.records import Parsed, parse
from shared.outbox.service import Outcome, Verdict
from shared.outbox.traced import traced
from shared.outbox.uuid7 import time_of
from shared.sqlstate import is_unreachable, sqlstate_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from uuid import UUID

    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy.orm import Session, sessionmaker

    from shared.outbox.brakes import Brake, SubscriptionKey
    from shared.outbox.event import ReceivedEvent
    from shared.outbox.service import Service, Subscription

log = structlog.get_logger(__name__)

# The class of errors that the database's own functions raise, such as a trigger's RAISE EXCEPTION.
_RAISED_BY_FUNCTION = "P0"
_VERDICTS = (Outcome.ANOMALY, Outcome.PARKED)
# After this time the rest of the records waits for the next poll: a consumer that does not poll
# for max_poll_interval_ms loses its partitions.
APPLY_MAX_S = 60.0


class WrongVerdictError(SettleError):
    """A handler returned something other than None or verdicts on the events it was given."""


class _HandlerFailedError(Exception):
    """The handler failed for the batch; the cause is its error."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _StoppedError(Exception):
    """The batch has an event of a stopped subscription."""

    def __init__(self, subscription: Subscription, brake: Brake) -> None:
        super().__init__(subscription.type)
        self.subscription = subscription
        self.brake = brake


class _Segment(NamedTuple):
    """Records to be applied together.

    Args:
        items: the records, in their order.
        is_probe: whether events of a stopped subscription may be handled.
    """

    items: Sequence[Parsed]
    is_probe: bool = False


class Applier:
    """Applies records to a service's database, each event exactly once.

    Args:
        service: the service whose handlers are called.
        sessions: makes sessions of its database; the engine was made with
            `handler_guard.GUARDABLE`.
        limits: what the handlers may use up.
        beat: gives a sign of life; called between transactions, and from another thread while a
            handler runs within its limits.
    """

    def __init__(
        self,
        service: Service,
        sessions: sessionmaker[Session],
        limits: HandlerLimits,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._sessions = sessions
        self._limits = limits
        self._beat = beat
        self._failures = FailureHandling(sessions, limits)
        self._handler_until = 0.0
        self._clock = ActiveClock(self._beat_for_handler)
        self._subscriptions = {
            subscription.key: subscription for subscription in service.subscriptions
        }

    def apply(self, records: Iterable[ConsumerRecord]) -> dict[TopicPartition, Held]:
        """Apply records in their order.

        Returns:
            The partitions that must wait, each with the offset of its first record that was not
            applied. Every record before that is in the inbox or the dead letters.

        Raises:
            SQLAlchemyError: the database is in trouble. Some records may already be applied. It is
                safe to pass all of them again.
            DatabaseTroubleError: the same, for example `KeyCollisionError`.
        """
        held: dict[TopicPartition, Held] = {}
        give_back_at = time.monotonic() + APPLY_MAX_S
        everything = [parse(record, self._subscriptions) for record in records]
        segments: deque[_Segment] = deque([_Segment(everything)])
        while segments:
            segment = segments.popleft()
            items = [item for item in segment.items if not _is_held(item, held)]
            if not items:
                continue
            self._beat()
            if time.monotonic() > give_back_at:
                _hold(held, items, Wait(0.0, ""))
                continue
            try:
                self._apply(items, is_probe=segment.is_probe)
            except _StoppedError as stopped:
                segments.extendleft(reversed(self._around_stop(items, stopped, held)))
            except _HandlerFailedError as failure:
                if len(items) > 1:
                    middle = len(items) // 2
                    segments.extendleft([_Segment(items[middle:]), _Segment(items[:middle])])
                    continue
                wait = self._failures.decide(items[0], failure.cause)
                if wait is not None:
                    _hold(held, items, wait)
        return held

    def refresh_stopped(self) -> set[SubscriptionKey]:
        """Read which subscriptions are stopped."""
        return self._failures.refresh_stopped()

    def _apply(self, items: Sequence[Parsed], *, is_probe: bool) -> None:
        """Apply a batch in one transaction."""
        runs: list[tuple[Subscription, HandlerRun]] = []
        try:
            fresh, released = self._transact(items, runs, is_probe=is_probe)
        except (SQLAlchemyError, DatabaseTroubleError) as error:
            self._blame_slow_handler(runs, error)
            raise
        for subscription, brake in released:
            self._failures.succeeded(subscription, was_stopped=brake.stopped)
        _log_received(items, fresh)

    def _transact(
        self,
        items: Sequence[Parsed],
        runs: list[tuple[Subscription, HandlerRun]],
        *,
        is_probe: bool,
    ) -> tuple[list[Parsed], list[tuple[Subscription, Brake]]]:
        """Record, handle and commit a batch.

        Args:
            items: the batch.
            runs: receives the run of each handler.
            is_probe: whether events of stopped subscriptions may be handled.

        Returns:
            What was new, and the subscriptions that failed before and succeeded now.
        """
        released = []
        with self._sessions() as session:
            with self._blaming_events(session):
                fresh, failing = self._record(session, items)
            for subscription, group in groupby(fresh, key=lambda item: item.subscription):
                if subscription is None:
                    continue
                brake = failing.get(subscription.key)
                if brake is not None and brake.stopped and not is_probe:
                    raise _StoppedError(subscription, brake)
                self._handle(session, subscription, list(group), runs)
                if brake is not None:
                    brakes.release(session, subscription.key)
                    released.append((subscription, brake))
            with self._blaming_events(session):
                session.commit()  # deferred constraints are checked here
        return fresh, released

    def _record(
        self, session: Session, items: Sequence[Parsed]
    ) -> tuple[list[Parsed], dict[SubscriptionKey, Brake]]:
        """Record a batch in the inbox.

        Returns:
            What of it is new and may be applied; and the subscriptions whose last events failed.
        """
        events: dict[UUID, Parsed] = {}
        for item in items:
            if item.invalid is not None:
                park(session, item.record, None, item.invalid.reason, item.invalid.detail)
                _log_parked(item, item.invalid.reason, item.invalid.detail)
            else:
                events.setdefault(_event(item).id, item)
        fresh_ids = record_new(
            session,
            [_event(item) for item in events.values()],
            {
                event_id: Outcome.APPLIED if item.subscription else Outcome.SKIPPED
                for event_id, item in events.items()
            },
        )
        failpoint("consumer.recorded")
        horizon, failing = brakes.read_state(session)
        fresh = [item for event_id, item in events.items() if event_id in fresh_ids]
        return _park_older_than_inbox(session, fresh, horizon), failing

    def _handle(
        self,
        session: Session,
        subscription: Subscription,
        items: list[Parsed],
        runs: list[tuple[Subscription, HandlerRun]],
    ) -> None:
        """Run the handler for events of its subscription, and note its verdicts.

        Raises:
            _HandlerFailedError: the handler failed.
            SQLAlchemyError: the database is in trouble.
        """
        events = [_event(item) for item in items]
        run = HandlerRun(self._clock)
        runs.append((subscription, run))
        try:
            self._handler_until = self._clock.now() + self._limits.total_s
            with guarded(session.connection(), run):
                with traced(events) as traced_events:
                    verdicts = subscription.handle(session, traced_events)
                session.flush()
            checked = _checked(verdicts, events)
        except (Exception, SystemExit) as error:
            if run.ended_by is None:
                raise_if_database_failed(error)
                raise_key_collision(session, error)
            raise _HandlerFailedError(error) from error
        finally:
            self._handler_until = 0.0
        _note(session, items, checked)

    def _beat_for_handler(self, now: float) -> None:
        """Give a sign of life for a handler; one that exceeds its limits gives none."""
        if now < self._handler_until:
            self._beat()

    def _blame_slow_handler(
        self, runs: Sequence[tuple[Subscription, HandlerRun]], error: Exception
    ) -> None:
        """Raise a lost connection as the handler's failure if the handler exceeded its limits."""
        limits = self._limits
        if not is_unreachable(error):
            return
        for subscription, run in runs:
            if run.exceeded(pause_s=limits.pause_s, total_s=limits.total_s):
                log.warning(
                    "consumer.handler_timeout",
                    type=subscription.type,
                    took_s=round(run.total_s, 1),
                    longest_pause_s=round(run.longest_pause_s, 1),
                )
                raise _HandlerFailedError(
                    HandlerTimeoutError(
                        f"The handler of {subscription.type} took {run.total_s:.1f} s, and up to"
                        f" {run.longest_pause_s:.1f} s between two statements."
                        f" {limits.total_s:.0f} s and {limits.pause_s:.0f} s are allowed."
                    )
                ) from error

    @contextmanager
    def _blaming_events(self, session: Session) -> Iterator[None]:
        """Treat data errors as the events' fault: raise them as a failure of the batch."""
        try:
            yield
        except (DataError, IntegrityError) as error:
            raise_key_collision(session, error)
            raise _HandlerFailedError(error) from error
        except DBAPIError as error:
            if (sqlstate_of(error) or "").startswith(_RAISED_BY_FUNCTION):
                raise _HandlerFailedError(error) from error
            raise

    def _around_stop(
        self, items: list[Parsed], stop: _StoppedError, held: dict[TopicPartition, Held]
    ) -> list[_Segment]:
        """Split a batch at the first event of a stopped subscription, to probe it or to wait."""
        subscription = stop.subscription
        position = next(
            number for number, item in enumerate(items) if item.subscription is subscription
        )
        if self._failures.may_probe(subscription):
            first, rest = items[position], items[position + 1 :]
            return [_Segment(items[:position]), _Segment([first], is_probe=True), _Segment(rest)]
        wait = self._failures.wait_for_probe(subscription, stop.brake.error)
        _hold(held, [items[position]], wait)
        return [_Segment(items)]


def _is_held(item: Parsed, held: Mapping[TopicPartition, Held]) -> bool:
    found = held.get(TopicPartition(item.record.topic, item.record.partition))
    return found is not None and item.record.offset >= found.offset


def _hold(held: dict[TopicPartition, Held], items: Iterable[Parsed], wait: Wait) -> None:
    """Let the partitions of items wait, each at its first of them."""
    for item in items:
        place = TopicPartition(item.record.topic, item.record.partition)
        held.setdefault(place, Held(item.record.offset, *wait))


def _park_older_than_inbox(
    session: Session, fresh: Sequence[Parsed], horizon: UUID | None
) -> list[Parsed]:
    """Park events that are older than the inbox; return the others."""
    if horizon is None:
        return list(fresh)
    old = [item for item in fresh if _is_older(_event(item).id, horizon)]
    forget(session, [_event(item).id for item in old])
    for item in old:
        event = _event(item)
        detail = f"Event {event.id} is older than the inbox, which begins at {horizon}."
        park(session, item.record, event, "older_than_inbox", detail)
        _log_parked(item, "older_than_inbox", detail)
    return [item for item in fresh if not _is_older(_event(item).id, horizon)]


def _is_older(event_id: UUID, horizon: UUID) -> bool:
    return event_id < horizon and time_of(event_id) is not None


def _event(item: Parsed) -> ReceivedEvent:
    if item.event is None:
        raise AssertionError("a record without an event was let through")
    return item.event


def _checked(
    verdicts: Mapping[UUID, Verdict] | None, events: Sequence[ReceivedEvent]
) -> Mapping[UUID, Verdict]:
    """Return a handler's verdicts, if they are what the contract allows.

    Raises:
        WrongVerdictError: they are something else.
    """
    if verdicts is None:
        return {}
    if not isinstance(verdicts, Mapping):
        raise WrongVerdictError(
            f"A handler returns None or verdicts by event id, not a {type(verdicts).__name__}."
        )
    known = {event.id for event in events}
    for event_id, verdict in verdicts.items():
        if event_id not in known:
            raise WrongVerdictError(
                f"The handler returned a verdict on {event_id!r}, which is not in its batch."
            )
        if not isinstance(verdict, Verdict) or verdict.outcome not in _VERDICTS:
            raise WrongVerdictError(
                f"The verdict on event {event_id} is {verdict!r}, not a Verdict with the outcome"
                " ANOMALY or PARKED."
            )
    return verdicts


def _note(session: Session, items: Sequence[Parsed], verdicts: Mapping[UUID, Verdict]) -> None:
    """Note in inbox and dead letters what the handler did not apply."""
    for item in items:
        event = _event(item)
        verdict = verdicts.get(event.id)
        if verdict is None:
            continue
        note_verdict(session, event, verdict)
        if verdict.outcome is Outcome.PARKED:
            park(session, item.record, event, verdict.reason, verdict.detail)
            _log_parked(item, verdict.reason, verdict.detail)
        else:
            log.warning(
                "consumer.anomaly",
                id=str(event.id),
                type=event.type,
                reason=verdict.reason,
                detail=verdict.detail,
                requestid=event.trace.request_id,
            )


def _log_parked(item: Parsed, reason: str, detail: str) -> None:
    log.warning(
        "consumer.parked",
        topic=item.record.topic,
        partition=item.record.partition,
        offset=item.record.offset,
        id=str(item.event.id) if item.event else None,
        reason=reason,
        detail=detail,
        requestid=item.event.trace.request_id if item.event else None,
    )


def _log_received(items: Sequence[Parsed], fresh: Sequence[Parsed]) -> None:
    log.info(
        "consumer.received",
        records=len(items),
        new=len(fresh),
        requests=[
            item.event.trace.request_id
            for item in fresh
            if item.event and item.event.trace.request_id
        ],
    )
