"""Apply a batch of records in one transaction: inbox rows, the handlers' effects, and their events.

1. Write dead letters for invalid records. Record the events in the inbox. Leave out those that the
   inbox already has, because they are duplicates.
2. Call the handlers with the new events: one call for consecutive events of one subscription. Write
   dead letters for the events that a handler parks.
3. Count the events of types without a subscription. They have no inbox rows.
4. Commit.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from settle_outbox.consume import circuit_breaker
from settle_outbox.consume.dead_letters import write_dead_letter
from settle_outbox.consume.failures import (
    HandlerTimeoutError,
    TransientDatabaseError,
    raise_if_database_failed,
    raise_if_key_collision,
)
from settle_outbox.consume.handler.call import call_handler
from settle_outbox.consume.handler.guard import HandlerRun
from settle_outbox.consume.inbox import (
    count_skipped,
    delete_attempts,
    delete_events,
    is_older_than_inbox,
    record_new,
    record_verdict,
)
from settle_outbox.consume.records import event_of, log_context
from settle_outbox.runtime.active_clock import ActiveClock
from settle_outbox.runtime.failpoints import failpoint
from settle_outbox.service import Outcome, Verdict
from settle_outbox.storage.sqlstate import is_transient, is_unreachable, sqlstate_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session, sessionmaker

    from settle_outbox.consume.circuit_breaker import Breaker, SubscriptionKey
    from settle_outbox.consume.failures import HandlerLimits
    from settle_outbox.consume.records import Parsed
    from settle_outbox.event import ReceivedEvent
    from settle_outbox.service import Subscription

log = structlog.get_logger(__name__)

# The SQLSTATE class of errors that PL/pgSQL functions raise, such as a trigger's RAISE EXCEPTION.
_RAISED_BY_FUNCTION = "P0"


class HandlerFailedError(Exception):
    """A handler failed, or the database rejected an event's data. `cause` is the error."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__()
        self.cause = cause


class SubscriptionStoppedError(Exception):
    """The batch has an event of a stopped subscription."""

    def __init__(self, subscription: Subscription, breaker: Breaker) -> None:
        super().__init__(subscription.type)
        self.subscription = subscription
        self.breaker = breaker


@dataclass(slots=True)
class Batch:
    """The records of one transaction, and the results of applying them.

    Args:
        items: the records, in their order.
        is_probe: whether events of stopped subscriptions may be handled.
        runs: the runs of handlers, each with its subscription.
        new: the events that were not in the inbox, of types with a subscription.
        skipped: the events of types without a subscription.
        released: the subscriptions that succeeded after failures, each with its circuit breaker.
        log_lines: functions that write log lines; called after the commit.
    """

    items: Sequence[Parsed]
    is_probe: bool = False
    runs: list[tuple[Subscription, HandlerRun]] = field(default_factory=list)
    new: list[Parsed] = field(default_factory=list)
    skipped: list[ReceivedEvent] = field(default_factory=list)
    released: list[tuple[Subscription, Breaker]] = field(default_factory=list)
    log_lines: list[Callable[[], None]] = field(default_factory=list)


class BatchTransaction:
    """Applies batches, each in a transaction. The arguments are those of `Applier`."""

    def __init__(
        self, sessions: sessionmaker[Session], limits: HandlerLimits, beat: Callable[[], None]
    ) -> None:
        self._sessions = sessions
        self._limits = limits
        self._clock = ActiveClock(beat)

    def run(self, batch: Batch) -> None:
        """Apply a batch.

        Raises:
            HandlerFailedError: a handler failed, or the database rejected an event's data.
            SubscriptionStoppedError: the batch has an event of a stopped subscription.
            SQLAlchemyError: the database failed. It is safe to apply the batch again.
            TransientDatabaseError: likewise.
        """
        try:
            with self._sessions() as session:
                self._transact(session, batch)
        except (SQLAlchemyError, TransientDatabaseError) as error:
            self._raise_handler_timeout(batch.runs, error)
            raise
        for write_line in batch.log_lines:
            write_line()
        log.info(
            "consumer.received",
            records=len(batch.items),
            new=len(batch.new),
            requests=[
                item.event.trace.request_id
                for item in batch.new
                if item.event and item.event.trace.request_id
            ],
        )

    def _transact(self, session: Session, batch: Batch) -> None:
        with self._data_errors_as_failures(session):
            breakers = self._record(session, batch)
        for subscription, group in groupby(batch.new, key=_subscription):
            breaker = breakers.get(subscription.key)
            if breaker is not None and breaker.stopped and not batch.is_probe:
                raise SubscriptionStoppedError(subscription, breaker)
            self._handle(session, batch, subscription, list(group))
            if breaker is not None:
                circuit_breaker.release(session, subscription.key)
                batch.released.append((subscription, breaker))
        if batch.skipped:
            with self._data_errors_as_failures(session):
                for topic, event_type in count_skipped(session, batch.skipped):
                    batch.log_lines.append(
                        partial(
                            log.info, "consumer.type_not_subscribed", topic=topic, type=event_type
                        )
                    )
        with self._data_errors_as_failures(session, of_handler=True):
            session.commit()  # runs deferred constraints and triggers

    def _record(self, session: Session, batch: Batch) -> dict[SubscriptionKey, Breaker]:
        """Record a batch in the inbox. Return the circuit breakers with failures."""
        items: dict[UUID, Parsed] = {}
        for item in batch.items:
            if item.invalid is not None:
                _park(session, batch, item, item.invalid.reason, item.invalid.detail)
            elif item.subscription is None:
                batch.skipped.append(event_of(item))
            else:
                items.setdefault(event_of(item).id, item)
        new_ids = record_new(session, [event_of(item) for item in items.values()], Outcome.APPLIED)
        failpoint("consumer.recorded")
        state = circuit_breaker.read_state(session)
        batch.new = [item for event_id, item in items.items() if event_id in new_ids]
        if state.has_attempts:
            delete_attempts(session, list(new_ids))
        if state.horizon is not None:
            _park_older_than_inbox(session, batch, state.horizon)
        return state.breakers

    def _handle(
        self, session: Session, batch: Batch, subscription: Subscription, items: list[Parsed]
    ) -> None:
        """Call the handler of a subscription, and record its verdicts.

        Raises:
            HandlerFailedError: the handler failed.
            SQLAlchemyError: the database failed.
        """
        run = HandlerRun(self._clock.now)
        batch.runs.append((subscription, run))
        events = [event_of(item) for item in items]
        with self._clock.beating(self._limits.total_s):
            try:
                _raise_failure(items)
                verdicts = call_handler(session, subscription, events, run)
            except BaseException as error:
                if run.ended_by is None:
                    raise_if_database_failed(error, run)
                    raise_if_key_collision(session, error)
                raise HandlerFailedError(error) from error
        _record_verdicts(session, batch, items, verdicts)

    def _raise_handler_timeout(
        self, runs: Sequence[tuple[Subscription, HandlerRun]], error: Exception
    ) -> None:
        """Raise HandlerFailedError if the connection was lost because a handler took too long."""
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
                timeout = HandlerTimeoutError(
                    f"The handler of {subscription.type} took {run.total_s:.1f} s, and up to"
                    f" {run.longest_pause_s:.1f} s between two statements. The limits are"
                    f" {limits.total_s:.0f} s and {limits.pause_s:.0f} s."
                )
                raise HandlerFailedError(timeout) from error

    @contextmanager
    def _data_errors_as_failures(
        self, session: Session, *, of_handler: bool = False
    ) -> Iterator[None]:
        """Raise HandlerFailedError for database errors that the events' data causes.

        Args:
            session: of the transaction.
            of_handler: whether all errors of PostgreSQL count, except transient ones. If not, only
                errors of data, of constraints and of PL/pgSQL functions count.
        """
        try:
            yield
        except (DataError, IntegrityError) as error:
            raise_if_key_collision(session, error)
            raise HandlerFailedError(error) from error
        except DBAPIError as error:
            code = sqlstate_of(error)
            if code is None or is_transient(error):
                raise
            if of_handler or code.startswith(_RAISED_BY_FUNCTION):
                raise HandlerFailedError(error) from error
            raise


def _raise_failure(items: Sequence[Parsed]) -> None:
    """Raise the first error of an item, if there is one, as if the handler had raised it."""
    for item in items:
        if item.failure is not None:
            raise item.failure


def _park_older_than_inbox(session: Session, batch: Batch, horizon: UUID) -> None:
    """Park the new events that are older than the inbox, and remove them from the batch."""
    old = [item for item in batch.new if is_older_than_inbox(event_of(item).id, horizon)]
    delete_events(session, [event_of(item).id for item in old])
    for item in old:
        event_id = event_of(item).id
        detail = f"Event {event_id} is older than the inbox, which begins at {horizon}."
        _park(session, batch, item, "older_than_inbox", detail)
    batch.new = [item for item in batch.new if not is_older_than_inbox(event_of(item).id, horizon)]


def _subscription(item: Parsed) -> Subscription:
    if item.subscription is None:
        raise AssertionError("an event without a subscription was not skipped")
    return item.subscription


def _record_verdicts(
    session: Session, batch: Batch, items: Sequence[Parsed], verdicts: Mapping[UUID, Verdict]
) -> None:
    for item in items:
        event = event_of(item)
        verdict = verdicts.get(event.id)
        if verdict is None:
            continue
        record_verdict(session, event, verdict)
        if verdict.outcome is Outcome.PARKED:
            _park(session, batch, item, verdict.reason, verdict.detail)
        else:
            batch.log_lines.append(
                partial(
                    log.warning,
                    "consumer.anomaly",
                    **log_context(item),
                    reason=verdict.reason,
                    detail=verdict.detail,
                )
            )


def _park(session: Session, batch: Batch, item: Parsed, reason: str, detail: str) -> None:
    write_dead_letter(session, item.record, item.event, reason, detail)
    batch.log_lines.append(
        partial(
            log.warning, "consumer.dead_letter", **log_context(item), reason=reason, detail=detail
        )
    )
