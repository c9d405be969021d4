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
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import structlog
from kafka import TopicPartition
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from settle_outbox.consume import circuit_breaker
from settle_outbox.consume.dead_letters import write_dead_letter
from settle_outbox.consume.event_traces import traced
from settle_outbox.consume.failures import (
    FailureHandling,
    HandlerLimits,
    HandlerTimeoutError,
    TransientDatabaseError,
    Wait,
    raise_if_database_failed,
    raise_key_collision,
)
from settle_outbox.consume.handler_guard import ActiveClock, HandlerRun, guarded
from settle_outbox.consume.inbox import (
    count_skipped,
    forget,
    forget_attempts,
    record_new,
    record_verdict,
)
from settle_outbox.consume.paused_partitions import Pause
from settle_outbox.consume.records import Parsed, parse
from settle_outbox.errors import SettleError
from settle_outbox.runtime.failpoints import failpoint
from settle_outbox.service import Outcome, Verdict
from settle_outbox.storage.sqlstate import is_transient, is_unreachable, sqlstate_of
from settle_outbox.uuid7 import time_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from uuid import UUID

    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy.orm import Session, sessionmaker

    from settle_outbox.consume.circuit_breaker import Breaker, SubscriptionKey
    from settle_outbox.consume.inbox import SkippedType
    from settle_outbox.event import ReceivedEvent
    from settle_outbox.service import Service, Subscription

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
        super().__init__()
        self.cause = cause


class _StoppedError(Exception):
    """The batch has an event of a stopped subscription."""

    def __init__(self, subscription: Subscription, brake: Breaker) -> None:
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


@dataclass(slots=True)
class _Batch:
    """What one transaction applies, and what came of it.

    Args:
        items: the records.
        is_probe: whether events of stopped subscriptions may be handled.
        runs: of the handlers, by subscription.
        fresh: what was new, of the types that the service subscribes to.
        skipped: the events of other types.
        released: the subscriptions that failed before and succeeded now.
        notes: log lines for after the commit.
    """

    items: Sequence[Parsed]
    is_probe: bool
    runs: list[tuple[Subscription, HandlerRun]] = field(default_factory=list)
    fresh: list[Parsed] = field(default_factory=list)
    skipped: list[ReceivedEvent] = field(default_factory=list)
    released: list[tuple[Subscription, Breaker]] = field(default_factory=list)
    notes: list[Callable[[], None]] = field(default_factory=list)


class Applier:
    """Applies records to a service's database, each event exactly once.

    Args:
        service: the service whose handlers are called.
        sessions: makes sessions of its database; the engine was made with
            `handler_guard.GUARDABLE`.
        limits: what the handlers may use up.
        beat: writes a heartbeat; called between transactions, and from another thread while a
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

    def apply(self, records: Iterable[ConsumerRecord]) -> dict[TopicPartition, Pause]:
        """Apply records in their order.

        Returns:
            The partitions that must wait, each with the offset of its first record that was not
            applied. Every record before that is in the inbox or the dead letters.

        Raises:
            SQLAlchemyError: the database is in trouble. Some records may already be applied. It is
                safe to pass all of them again.
            TransientDatabaseError: the same, for example `KeyCollisionError`.
        """
        held: dict[TopicPartition, Pause] = {}
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
                self._apply(_Batch(items, segment.is_probe))
            except _StoppedError as stopped:
                segments.extendleft(reversed(self._around_stop(items, stopped, held)))
            except (SQLAlchemyError, TransientDatabaseError):
                raise
            except Exception as error:  # noqa: BLE001 - kept with the event, or stops the subscription
                cause = error.cause if isinstance(error, _HandlerFailedError) else error
                if len(items) > 1:
                    # Parsed again: the handler may have changed the events' data.
                    again = [parse(item.record, self._subscriptions) for item in items]
                    middle = len(again) // 2
                    segments.extendleft([_Segment(again[middle:]), _Segment(again[:middle])])
                    continue
                wait = self._failures.decide(items[0], cause)
                if wait is not None:
                    _hold(held, items, wait)
        return held

    def refresh_stopped(self) -> set[SubscriptionKey]:
        """Read which subscriptions are stopped."""
        return self._failures.refresh_stopped()

    def _apply(self, batch: _Batch) -> None:
        """Apply a batch in one transaction."""
        try:
            with self._sessions() as session:
                self._transact(session, batch)
        except (SQLAlchemyError, TransientDatabaseError) as error:
            self._blame_slow_handler(batch.runs, error)
            raise
        for note in batch.notes:
            note()
        for subscription, brake in batch.released:
            self._failures.succeeded(subscription, was_stopped=brake.stopped)
        _log_received(batch)

    def _transact(self, session: Session, batch: _Batch) -> None:
        """Record, handle and commit a batch."""
        with self._blaming_events(session):
            failing = self._record(session, batch)
        for subscription, group in groupby(batch.fresh, key=_subscription):
            brake = failing.get(subscription.key)
            if brake is not None and brake.stopped and not batch.is_probe:
                raise _StoppedError(subscription, brake)
            self._handle(session, batch, subscription, list(group))
            if brake is not None:
                circuit_breaker.release(session, subscription.key)
                batch.released.append((subscription, brake))
        if batch.skipped:
            with self._blaming_events(session):
                for skipped in count_skipped(session, batch.skipped):
                    batch.notes.append(partial(_log_skipped, skipped))
        with self._blaming_events(session, of_handler=True):
            session.commit()  # deferred constraints and triggers run here

    def _record(self, session: Session, batch: _Batch) -> dict[SubscriptionKey, Breaker]:
        """Record a batch in the inbox; return the subscriptions whose last events failed."""
        events: dict[UUID, Parsed] = {}
        for item in batch.items:
            if item.invalid is not None:
                _park(session, batch, item, item.invalid.reason, item.invalid.detail)
            elif item.subscription is None:
                batch.skipped.append(_event(item))
            else:
                events.setdefault(_event(item).id, item)
        fresh_ids = record_new(
            session,
            [_event(item) for item in events.values()],
            dict.fromkeys(events, Outcome.APPLIED),
        )
        failpoint("consumer.recorded")
        state = circuit_breaker.read_state(session)
        batch.fresh = [item for event_id, item in events.items() if event_id in fresh_ids]
        if state.has_attempts:
            forget_attempts(session, list(fresh_ids))
        if state.horizon is not None:
            _park_older_than_inbox(session, batch, state.horizon)
        return state.breakers

    def _handle(
        self,
        session: Session,
        batch: _Batch,
        subscription: Subscription,
        items: list[Parsed],
    ) -> None:
        """Run the handler for events of its subscription, and note its verdicts.

        Raises:
            _HandlerFailedError: the handler failed.
            SQLAlchemyError: the database is in trouble.
        """
        events = [_event(item) for item in items]
        run = HandlerRun(self._clock.now)
        batch.runs.append((subscription, run))
        try:
            self._handler_until = self._clock.now() + self._limits.total_s
            _raise_schema_failure(items)
            verdicts = call_handler(session, subscription, events, run)
        except BaseException as error:
            if run.ended_by is None:
                raise_if_database_failed(error, run)
                raise_key_collision(session, error)
            raise _HandlerFailedError(error) from error
        finally:
            self._handler_until = 0.0
        _note(session, batch, items, verdicts)

    def _beat_for_handler(self, now: float) -> None:
        """Write a heartbeat for a handler; one that exceeds its limits writes none."""
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
    def _blaming_events(self, session: Session, *, of_handler: bool = False) -> Iterator[None]:
        """Treat data errors as the events' fault: raise them as a failure of the batch."""
        try:
            yield
        except (DataError, IntegrityError) as error:
            raise_key_collision(session, error)
            raise _HandlerFailedError(error) from error
        except DBAPIError as error:
            code = sqlstate_of(error)
            if code is None or is_transient(error):
                raise
            if of_handler or code.startswith(_RAISED_BY_FUNCTION):
                raise _HandlerFailedError(error) from error
            raise

    def _around_stop(
        self, items: list[Parsed], stop: _StoppedError, held: dict[TopicPartition, Pause]
    ) -> list[_Segment]:
        """Split a batch at the first event of a stopped subscription, to probe it or to wait."""
        subscription = stop.subscription
        # Another partition than last time, if there is one: its events may be good.
        candidates = [
            number for number, item in enumerate(items) if item.subscription is subscription
        ]
        last = self._failures.last_probed(subscription)
        position = next(
            (number for number in candidates if items[number].record.partition != last),
            candidates[0],
        )
        if self._failures.may_probe(subscription):
            first, rest = items[position], items[position + 1 :]
            return [_Segment(items[:position]), _Segment([first], is_probe=True), _Segment(rest)]
        wait = self._failures.wait_for_probe(subscription, stop.brake.error)
        _hold(held, [items[position]], wait)
        return [_Segment(items)]


def call_handler(
    session: Session,
    subscription: Subscription,
    events: Sequence[ReceivedEvent],
    run: HandlerRun,
) -> Mapping[UUID, Verdict]:
    """Call a subscription's handler as its contract says; see `Handler`.

    Args:
        session: in a transaction that can be guarded.
        subscription: whose handler.
        events: of the subscription; not empty.
        run: is measured.

    Returns:
        The verdicts, by event id.

    Raises:
        WrongVerdictError: the handler returned something else.
        Exception: whatever the handler raised; see also `guarded`.
    """
    with guarded(session.connection(), run):
        with traced(events) as traced_events:
            verdicts = subscription.handle(session, traced_events)
        session.flush()
    return _checked(verdicts, events)


def _raise_schema_failure(items: Sequence[Parsed]) -> None:
    """Raise what the code of a schema raised, as a failure of the subscription."""
    for item in items:
        if item.failure is not None:
            raise item.failure


def _is_held(item: Parsed, held: Mapping[TopicPartition, Pause]) -> bool:
    found = held.get(TopicPartition(item.record.topic, item.record.partition))
    return found is not None and item.record.offset >= found.offset


def _hold(held: dict[TopicPartition, Pause], items: Iterable[Parsed], wait: Wait) -> None:
    """Let the partitions of items wait, each at its first of them."""
    for item in items:
        place = TopicPartition(item.record.topic, item.record.partition)
        held.setdefault(place, Pause(item.record.offset, *wait))


def _park_older_than_inbox(session: Session, batch: _Batch, horizon: UUID) -> None:
    """Park the new events of a batch that are older than the inbox; leave the others."""
    old = [item for item in batch.fresh if _is_older(_event(item).id, horizon)]
    forget(session, [_event(item).id for item in old])
    for item in old:
        event_id = _event(item).id
        detail = f"Event {event_id} is older than the inbox, which begins at {horizon}."
        _park(session, batch, item, "older_than_inbox", detail)
    batch.fresh = [item for item in batch.fresh if not _is_older(_event(item).id, horizon)]


def _is_older(event_id: UUID, horizon: UUID) -> bool:
    return event_id < horizon and time_of(event_id) is not None


def _event(item: Parsed) -> ReceivedEvent:
    if item.event is None:
        raise AssertionError("a record without an event was let through")
    return item.event


def _subscription(item: Parsed) -> Subscription:
    if item.subscription is None:
        raise AssertionError("an event that the service does not subscribe to was let through")
    return item.subscription


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
    verdicts = dict(verdicts)
    known = {event.id for event in events}
    for event_id, verdict in verdicts.items():
        if event_id not in known:
            raise WrongVerdictError(
                f"The handler returned a verdict on {event_id!r}, which is not in its batch."
            )
        if not _is_valid(verdict):
            raise WrongVerdictError(
                f"The verdict on event {event_id} is {verdict!r}, not a Verdict with the outcome"
                " ANOMALY or PARKED, and texts as reason and detail."
            )
    return verdicts


def _is_valid(verdict: object) -> bool:
    return (
        isinstance(verdict, Verdict)
        and isinstance(verdict.outcome, Outcome)
        and verdict.outcome in _VERDICTS
        and isinstance(verdict.reason, str)
        and isinstance(verdict.detail, str)
    )


def _note(
    session: Session, batch: _Batch, items: Sequence[Parsed], verdicts: Mapping[UUID, Verdict]
) -> None:
    """Note in inbox and dead letters what the handler did not apply."""
    for item in items:
        event = _event(item)
        verdict = verdicts.get(event.id)
        if verdict is None:
            continue
        record_verdict(session, event, verdict)
        if verdict.outcome is Outcome.PARKED:
            _park(session, batch, item, verdict.reason, verdict.detail)
        else:
            batch.notes.append(partial(_log_anomaly, event, verdict))


def _park(session: Session, batch: _Batch, item: Parsed, reason: str, detail: str) -> None:
    """Put a record into the dead letters."""
    write_dead_letter(session, item.record, item.event, reason, detail)
    batch.notes.append(partial(_log_parked, item, reason, detail))


def _log_skipped(skipped: SkippedType) -> None:
    log.info("consumer.type_not_subscribed", topic=skipped.topic, type=skipped.type)


def _log_anomaly(event: ReceivedEvent, verdict: Verdict) -> None:
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


def _log_received(batch: _Batch) -> None:
    log.info(
        "consumer.received",
        records=len(batch.items),
        new=len(batch.fresh),
        requests=[
            item.event.trace.request_id
            for item in batch.fresh
            if item.event and item.event.trace.request_id
        ],
    )
