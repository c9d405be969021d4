"""Decide about events for which the handler failed.

An event that failed alone becomes a dead letter, waits for another attempt, or stops its
subscription. Transient errors of the database are raised instead: the event can be applied later
without a change.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import DBAPIError, IntegrityError

from settle_outbox.consume import circuit_breaker
from settle_outbox.consume.dead_letters import write_dead_letter
from settle_outbox.consume.inbox import count_attempt, delete_attempts, record_new
from settle_outbox.consume.paused_partitions import Pause
from settle_outbox.consume.records import INVALID_DATA, event_of, log_context
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
    from settle_outbox.consume.handler.guard import HandlerRun
    from settle_outbox.consume.records import Parsed
    from settle_outbox.service import Subscription

log = structlog.get_logger(__name__)

# First waits in seconds: between two attempts at an event that took too long, and between two
# probes of a stopped subscription. They double each time.
_TIMEOUT_WAIT_S = 1.0
_PROBE_FIRST_S = 1.0
_PROBE_MAX_S = 60.0
# Reasons of dead letters.
RETRIES_EXHAUSTED = "retries_exhausted"
HANDLER_TIMEOUT = "handler_timeout"
HANDLER_FAILED = "handler_failed"
PROCESS_DIED = "process_died"
FAILURE_REASONS = frozenset({RETRIES_EXHAUSTED, HANDLER_TIMEOUT, HANDLER_FAILED, PROCESS_DIED})
_DOUBLINGS_MAX = 30  # keeps 2 ** n from overflowing


@dataclass(frozen=True, slots=True)
class HandlerLimits:
    """Limits for handlers.

    Args:
        pause_s: maximum time between two statements, in seconds. After that, the database ends the
            transaction (`idle_in_transaction_session_timeout`).
        total_s: maximum time of the transaction, in seconds. After that, its connection is cut
            (`settle_outbox.storage.deadlines`).
        retry_attempts: number of attempts with `Retry`, after which an event becomes a dead letter.
        brake_failures: number of failures in a row with one error, after which the circuit breaker
            stops the subscription.
        timeout_attempts: number of attempts that exceed `pause_s` or `total_s`, after which an
            event becomes a dead letter.
    """

    pause_s: float
    total_s: float
    retry_attempts: int
    brake_failures: int
    timeout_attempts: int = 3


class HandlerTimeoutError(SettleError):
    """A handler took so long that a timeout ended its transaction."""


class ProcessDiedError(SettleError):
    """The process died each time it had a record in hand."""

    def __init__(self, deaths: int) -> None:
        super().__init__(
            f"The consumer's process died {deaths} times in a row while it handled this record"
            " alone. The record is not handled again."
        )


class TransientDatabaseError(SettleError):
    """The database failed, but a later attempt can succeed without a change."""


class KeyCollisionError(TransientDatabaseError):
    """A generated key collided, because its sequence is behind its column."""


@dataclass(slots=True)
class _Probe:
    """The next attempt of a stopped subscription at an event.

    Args:
        wait_s: the wait after the next failure, in seconds.
        at: time of the attempt, by the monotonic clock.
        partition: the partition of the last event that was tried.
    """

    wait_s: float
    at: float = 0.0
    partition: int | None = None


class FailureHandling:
    """Counts failures, and decides about each event that failed alone."""

    def __init__(self, sessions: sessionmaker[Session], limits: HandlerLimits) -> None:
        self._sessions = sessions
        self._limits = limits
        self._probes: dict[SubscriptionKey, _Probe] = {}

    def refresh_stopped(self) -> set[SubscriptionKey]:
        """Read which subscriptions are stopped, and remove the probes of all others."""
        with self._sessions.begin() as session:
            stopped = circuit_breaker.stopped_subscriptions(session)
        for key in self._probes.keys() - stopped:
            del self._probes[key]
        return stopped

    def may_probe(self, subscription: Subscription) -> bool:
        """Return whether a stopped subscription may try an event now."""
        probe = self._probes.setdefault(subscription.key, _Probe(_PROBE_FIRST_S))
        return time.monotonic() >= probe.at

    def last_probed(self, subscription: Subscription) -> int | None:
        """Return the partition of the last event that the subscription tried while stopped."""
        probe = self._probes.get(subscription.key)
        return None if probe is None else probe.partition

    def pause_until_probe(self, item: Parsed, subscription: Subscription, error: str) -> Pause:
        """Return the pause of a record's partition until the next probe of its subscription."""
        wait_s = max(0.0, self._probes[subscription.key].at - time.monotonic())
        detail = f"{subscription.type} is stopped: {error}"
        return Pause(item.record.offset, wait_s, detail, subscription.key)

    def succeeded(self, subscription: Subscription, *, was_stopped: bool) -> None:
        """Record that a handler succeeded after failures."""
        self._probes.pop(subscription.key, None)
        if was_stopped:
            log.info(
                "consumer.subscription_resumed", topic=subscription.topic, type=subscription.type
            )

    def decide(self, item: Parsed, error: BaseException) -> Pause | None:
        """Decide about a record that failed alone, with an error of the handler or a timeout.

        Returns:
            The pause of its partition before another attempt, or until the next probe of a stopped
            subscription. None if the record became a dead letter.
        """
        event, subscription = item.event, item.subscription
        stopped = False
        with self._sessions.begin() as session:
            # Without a subscription there is no handler to retry or to stop.
            if event is not None and subscription is not None:
                pause = self._next_attempt(session, item, error)
                if pause is not None:
                    return pause
                stopped = circuit_breaker.count_failure(
                    session,
                    subscription.key,
                    error=_kind_of(error),
                    detail=f"event {event.id}: {describe_error(error)}",
                    limit=self._limits.brake_failures,
                )
            if not stopped:
                reason = _park(session, item, error)
        if subscription is not None and stopped:
            return self._set_probe(subscription, item, error)
        log.error("consumer.dead_letter", **log_context(item), reason=reason, exc_info=error)
        return None

    def _next_attempt(self, session: Session, item: Parsed, error: BaseException) -> Pause | None:
        """Count a failed attempt. Return the pause before the next, or None if it was the last."""
        if isinstance(error, Retry):
            limit, first_s = self._limits.retry_attempts, _wait_of(error)
        elif isinstance(error, HandlerTimeoutError):
            limit, first_s = self._limits.timeout_attempts, _TIMEOUT_WAIT_S
        else:
            return None
        event = event_of(item)
        attempt = count_attempt(session, event.id, reason_of(error), describe_error(error))
        if attempt >= limit:
            return None
        wait_s: float = min(RETRY_WAIT_MAX_S, first_s * 2 ** min(attempt - 1, _DOUBLINGS_MAX))
        log.warning(
            "consumer.event_waits",
            **log_context(item),
            attempt=attempt,
            of=limit,
            wait_s=wait_s,
            error=describe_error(error),
        )
        detail = f"event {event.id} waits for attempt {attempt + 1} of {limit}"
        return Pause(event.offset, wait_s, detail, None)

    def _set_probe(self, subscription: Subscription, item: Parsed, error: BaseException) -> Pause:
        """Set the time of the next probe. The wait becomes longer each time."""
        # `may_probe` adds the entry. If it is missing, this failure has stopped the subscription.
        is_new = subscription.key not in self._probes
        probe = self._probes.setdefault(subscription.key, _Probe(_PROBE_FIRST_S))
        probe.at = time.monotonic() + probe.wait_s
        probe.wait_s = min(_PROBE_MAX_S, probe.wait_s * 2)
        probe.partition = item.record.partition
        log_event = "consumer.subscription_stopped" if is_new else "consumer.probe_failed"
        log.error(log_event, **log_context(item), exc_info=error)
        return self.pause_until_probe(item, subscription, _kind_of(error))


def raise_if_database_failed(error: BaseException, run: HandlerRun) -> None:
    """Raise the transient database error that caused a handler's error, if there is one.

    A handler may catch an error such as a lost connection, and then raise another one or fail
    later. Only errors of the handler's own transaction count. For errors of another database, a
    handler raises `Retry`.

    Args:
        error: the error of the handler.
        run: of the handler.

    Raises:
        SQLAlchemyError: the error, or one that caused it, is transient.
        TransientDatabaseError: likewise, for an error of psycopg2.
    """
    transient = [caught for caught in run.errors if is_transient(caught)]
    for cause in _causes(error):
        if isinstance(cause, DBAPIError) and any(cause.orig is caught for caught in transient):
            raise cause
        if any(cause is caught for caught in transient):
            raise TransientDatabaseError(describe_error(cause)) from cause
    if transient and run.is_broken:
        raise TransientDatabaseError(describe_error(transient[0])) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return an error and all errors that caused it, each once. Chains may be circular."""
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


def raise_if_key_collision(session: Session, error: BaseException) -> None:
    """Raise KeyCollisionError if a unique violation comes from a sequence behind its column.

    Args:
        session: the session whose transaction failed. This function rolls it back.
        error: the error of the transaction.

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
        return  # no permission, or no such table: the event counts as the cause
    if behind:
        raise KeyCollisionError(
            f"A generated key of {diagnostics.table_name} already exists"
            f" ({diagnostics.constraint_name}), because its sequence is behind the table. settle"
            " doctor shows how to correct it."
        ) from error


def _park(session: Session, item: Parsed, error: BaseException) -> str:
    """Write the dead letter, and record the event in the inbox so that it is not tried again.

    If the schema failed, the event is not recorded, so that it can be sent again with correct data.

    Returns:
        The reason of the dead letter.
    """
    schema_failed = item.failure is not None and not isinstance(item.failure, ProcessDiedError)
    reason = INVALID_DATA if schema_failed else reason_of(error)
    if not schema_failed and item.event is not None:
        record_new(session, [item.event], Outcome.PARKED)
        delete_attempts(session, [item.event.id])
    write_dead_letter(session, item.record, item.event, reason, describe_error(error))
    return reason


def _wait_of(error: Retry) -> float:
    """Return the wait that a handler asks for. A subclass of `Retry` may have set any value."""
    wait_s: object = error.after_s
    if isinstance(wait_s, int | float) and 0 <= wait_s <= RETRY_WAIT_MAX_S:
        return float(wait_s)
    return Retry.after_s


def reason_of(error: BaseException) -> str:
    """Return the reason of the dead letter for an error of the handler."""
    if isinstance(error, Retry):
        return RETRIES_EXHAUSTED
    if isinstance(error, ProcessDiedError):
        return PROCESS_DIED
    return HANDLER_TIMEOUT if isinstance(error, HandlerTimeoutError) else HANDLER_FAILED


def _kind_of(error: BaseException) -> str:
    """Return the text that failures with the same cause share: the class and the SQLSTATE."""
    raised = getattr(error, "orig", None) or error
    name = f"{type(raised).__module__}.{type(raised).__qualname__}"
    code = sqlstate_of(error)
    return f"{name} ({code})" if code else name
