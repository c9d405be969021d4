"""Decide what becomes of events that the handler failed for.

An event that failed alone becomes a dead letter, waits for another attempt, or stops its
subscription. Errors that the database causes are raised instead: they pass without a change of the
event.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import structlog
from sqlalchemy.exc import DBAPIError, IntegrityError

from settle_outbox.consume import circuit_breaker
from settle_outbox.consume.dead_letters import write_dead_letter
from settle_outbox.consume.inbox import count_attempt, forget_attempts, record_new
from settle_outbox.consume.records import INVALID_DATA
from settle_outbox.errors import SettleError, describe_error
from settle_outbox.service import RETRY_WAIT_MAX_S, Outcome, Retry
from settle_outbox.storage.sequences import generated_key_behind
from settle_outbox.storage.sqlstate import (
    UNIQUE_VIOLATION,
    is_transient,
    is_unreachable,
    sqlstate_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session, sessionmaker

    from settle_outbox.consume.circuit_breaker import SubscriptionKey
    from settle_outbox.consume.handler_guard import HandlerRun
    from settle_outbox.consume.records import Parsed
    from settle_outbox.event import ReceivedEvent
    from settle_outbox.service import Subscription

log = structlog.get_logger(__name__)

# Waits between two attempts at an event that took too long, and between two probes of a stopped
# subscription, in seconds; they double.
_TIMEOUT_WAIT_S = 1.0
_PROBE_FIRST_S = 1.0
_PROBE_MAX_S = 60.0
_DOUBLINGS_MAX = 30  # keeps 2 ** n from overflowing


@dataclass(frozen=True, slots=True)
class HandlerLimits:
    """What a handler may use up.

    Args:
        pause_s: time between two of its statements, in seconds; the database ends the transaction
            then (`idle_in_transaction_session_timeout`).
        total_s: time in all, in seconds; then the connection is cut
            (`settle_outbox.storage.deadlines`).
        retry_attempts: attempts before an event whose handler raises `Retry` becomes a dead letter.
        timeout_attempts: attempts before an event that exceeds the times, alone, becomes one.
        brake_failures: how many events may fail in a row with one error before their subscription
            stops.
    """

    pause_s: float
    total_s: float
    retry_attempts: int
    brake_failures: int
    timeout_attempts: int = 3


class Wait(NamedTuple):
    """Why and how long a partition must wait.

    Args:
        wait_s: how long, in seconds.
        detail: why, for the process's health.
        subscription: the stopped subscription that it waits for, if that is why.
    """

    wait_s: float
    detail: str
    subscription: SubscriptionKey | None = None


class HandlerTimeoutError(SettleError):
    """A handler took so long that the engine's timeouts ended its transaction."""


class TransientDatabaseError(SettleError):
    """The transaction failed for a reason that passes without a change of the event."""


class KeyCollisionError(TransientDatabaseError):
    """A generated key collided, because its sequence is behind its table."""


@dataclass(slots=True)
class _Probe:
    """When a stopped subscription may try its next event.

    Args:
        wait_s: after the next failure, in seconds.
        at: by the monotonic clock.
        partition: of the last event that was tried.
    """

    wait_s: float
    at: float = 0.0
    partition: int | None = None


class FailureHandling:
    """Counts failures, and decides what becomes of each event that failed alone.

    Args:
        sessions: makes sessions of the service's database.
        limits: what the handlers may use up.
    """

    def __init__(self, sessions: sessionmaker[Session], limits: HandlerLimits) -> None:
        self._sessions = sessions
        self._limits = limits
        self._probes: dict[SubscriptionKey, _Probe] = {}

    def refresh_stopped(self) -> set[SubscriptionKey]:
        """Read which subscriptions are stopped, and forget the probes of all others."""
        with self._sessions.begin() as session:
            found = {
                (stopped.topic, stopped.type)
                for stopped in circuit_breaker.stopped_subscriptions(session.connection())
            }
        for key in self._probes.keys() - found:
            del self._probes[key]
        return found

    def may_probe(self, subscription: Subscription) -> bool:
        """Return whether a stopped subscription may try its next event now."""
        probe = self._probes.setdefault(subscription.key, _Probe(_PROBE_FIRST_S))
        return time.monotonic() >= probe.at

    def last_probed(self, subscription: Subscription) -> int | None:
        """Return the partition of the last event that a stopped subscription tried."""
        probe = self._probes.get(subscription.key)
        return None if probe is None else probe.partition

    def wait_for_probe(self, subscription: Subscription, error: str) -> Wait:
        """Return how long a stopped subscription has to wait for its next probe."""
        wait_s = max(0.0, self._probes[subscription.key].at - time.monotonic())
        return Wait(wait_s, f"{subscription.type} is stopped: {error}", subscription.key)

    def succeeded(self, subscription: Subscription, *, was_stopped: bool) -> None:
        """Note that a handler that failed last has succeeded."""
        self._probes.pop(subscription.key, None)
        if was_stopped:
            log.info(
                "consumer.subscription_resumed", topic=subscription.topic, type=subscription.type
            )

    def decide(self, item: Parsed, error: BaseException) -> Wait | None:
        """Decide what becomes of a record that failed alone.

        Args:
            item: the record.
            error: that the handler raised, or `HandlerTimeoutError`.

        Returns:
            How long its partition waits, for another attempt or because its subscription is
            stopped. None when the record is in the dead letters now.
        """
        event, subscription = item.event, item.subscription
        stopped = False
        with self._sessions.begin() as session:
            # Without a subscription there is no handler to retry or to stop.
            if event is not None and subscription is not None:
                wait = self._next_attempt(session, event, error)
                if wait is not None:
                    return wait
                stopped = circuit_breaker.count_failure(
                    session,
                    subscription.key,
                    error=_kind_of(error),
                    detail=f"event {event.id}: {describe_error(error)}",
                    limit=self._limits.brake_failures,
                )
            if not stopped:
                _park(session, item, error)
        if subscription is not None and stopped:
            return self._stop(subscription, item, error)
        _log_failure("consumer.handler_failed", item, error)
        return None

    def _next_attempt(
        self, session: Session, event: ReceivedEvent, error: BaseException
    ) -> Wait | None:
        """Count a failed attempt; return how long to wait for the next one, if there is one."""
        if isinstance(error, Retry):
            limit, first_s = self._limits.retry_attempts, _wait_of(error)
        elif isinstance(error, HandlerTimeoutError):
            limit, first_s = self._limits.timeout_attempts, _TIMEOUT_WAIT_S
        else:
            return None
        attempt = count_attempt(session, event.id, reason_of(error), describe_error(error))
        if attempt >= limit:
            return None
        wait_s: float = min(RETRY_WAIT_MAX_S, first_s * 2 ** min(attempt - 1, _DOUBLINGS_MAX))
        log.warning(
            "consumer.event_waits",
            id=str(event.id),
            type=event.type,
            requestid=event.trace.request_id,
            attempt=attempt,
            of=limit,
            wait_s=wait_s,
            error=describe_error(error),
        )
        return Wait(wait_s, f"event {event.id} waits for attempt {attempt + 1} of {limit}")

    def _stop(self, subscription: Subscription, item: Parsed, error: BaseException) -> Wait:
        """Let a stopped subscription wait for its next probe, longer each time."""
        # `may_probe` adds the entry, so a missing one means that this failure stopped it.
        is_new = subscription.key not in self._probes
        probe = self._probes.setdefault(subscription.key, _Probe(_PROBE_FIRST_S))
        probe.at = time.monotonic() + probe.wait_s
        probe.wait_s = min(_PROBE_MAX_S, probe.wait_s * 2)
        probe.partition = item.record.partition
        _log_failure(
            "consumer.subscription_stopped" if is_new else "consumer.probe_failed", item, error
        )
        return self.wait_for_probe(subscription, _kind_of(error))


def raise_if_database_failed(error: BaseException, run: HandlerRun) -> None:
    """Raise the transient database error in the cause chain of a handler's error, if there is one.

    A handler may catch a lost connection and raise an error of its own, or go on and fail later.
    Errors of another database are the handler's own: it raises `Retry` for them.

    Args:
        error: what the handler raised.
        run: of the handler.

    Raises:
        SQLAlchemyError: the error, or one that caused it, is transient.
        TransientDatabaseError: likewise, for an error of the driver.
    """
    transient = [each for each in run.errors if is_transient(each)]
    for cause in _causes(error):
        if isinstance(cause, DBAPIError) and any(cause.orig is each for each in transient):
            raise cause
        if any(cause is each for each in transient):
            raise TransientDatabaseError(describe_error(cause)) from cause
    if transient and run.is_broken:
        raise TransientDatabaseError(describe_error(transient[0])) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return an error and all that led to it, each once: chains may be circular."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [cause.__context__, cause.__cause__]
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions


def raise_key_collision(session: Session, error: BaseException) -> None:
    """Raise KeyCollisionError if a unique violation comes from a sequence behind its table.

    Args:
        session: the session whose transaction failed; it is rolled back.
        error: the error that it failed with.

    Raises:
        KeyCollisionError: the sequence is behind.
    """
    if not isinstance(error, IntegrityError) or sqlstate_of(error) != UNIQUE_VIOLATION:
        return
    session.rollback()
    diagnostics = error.orig.diag  # type: ignore[union-attr]  # psycopg2's errors have one
    try:
        with session.begin():
            behind = generated_key_behind(session.connection(), diagnostics)
    except DBAPIError as failure:
        if is_unreachable(failure):
            raise
        return  # the role may not look, or there is no such table: the event is to blame
    if behind:
        raise KeyCollisionError(
            f"A generated key of {diagnostics.table_name} exists already"
            f" ({diagnostics.constraint_name}): its sequence is behind the table. settle doctor"
            " shows how to correct it."
        ) from error


def _park(session: Session, item: Parsed, error: BaseException) -> None:
    """Record the event, so that it is not tried again, and keep its record whole.

    An event that its schema refused is not recorded: the same event, sent right, is applied.
    """
    if item.failure is not None:
        write_dead_letter(session, item.record, item.event, INVALID_DATA, describe_error(error))
        return
    if item.event is not None:
        record_new(session, [item.event], {item.event.id: Outcome.PARKED})
        forget_attempts(session, [item.event.id])
    write_dead_letter(session, item.record, item.event, reason_of(error), describe_error(error))


def _wait_of(error: Retry) -> float:
    """Return how long a handler wants to wait; a subclass of `Retry` may have set anything."""
    wait_s: object = error.after_s
    if isinstance(wait_s, int | float) and 0 <= wait_s <= RETRY_WAIT_MAX_S:
        return float(wait_s)
    return Retry.after_s


def reason_of(error: BaseException) -> str:
    """Return the reason of the dead letter of an event that the handler failed for."""
    if isinstance(error, Retry):
        return "retries_exhausted"
    return "handler_timeout" if isinstance(error, HandlerTimeoutError) else "handler_failed"


def _kind_of(error: BaseException) -> str:
    """Return what failures of one cause have in common: the class and, if any, the SQLSTATE."""
    raised = getattr(error, "orig", None) or error
    name = f"{type(raised).__module__}.{type(raised).__qualname__}"
    code = sqlstate_of(error)
    return f"{name} ({code})" if code else name


def _log_failure(name: str, item: Parsed, error: BaseException) -> None:
    log.error(
        name,
        id=str(item.event.id) if item.event else None,
        type=item.event.type if item.event else None,
        requestid=item.event.trace.request_id if item.event else None,
        exc_info=error,
    )
