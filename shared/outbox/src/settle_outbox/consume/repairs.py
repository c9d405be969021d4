"""Carry out requests to repair dead letters: retry, discard, restore.

A retry needs neither Kafka nor the service that published the event. The record in the dead letter
goes through the same schema and handler as at first. Its inbox row, its effects, the dead letter's
state and the answer to the request are committed in one transaction.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from settle_outbox.consume import circuit_breaker, repair_requests
from settle_outbox.consume.dead_letters import State, delete_closed, record_of
from settle_outbox.consume.failures import FAILURE_REASONS
from settle_outbox.consume.handler.call import call_handler
from settle_outbox.consume.handler.guard import HandlerRun
from settle_outbox.consume.inbox import (
    delete_attempts,
    is_older_than_inbox,
    key_text,
    record_new,
    record_verdict,
)
from settle_outbox.consume.records import INVALID_DATA, parse
from settle_outbox.consume.repair_requests import Action, Answer, Repair, Request
from settle_outbox.errors import describe_error
from settle_outbox.runtime.active_clock import ActiveClock
from settle_outbox.runtime.failpoints import failpoint
from settle_outbox.runtime.process import TRANSACTION_S
from settle_outbox.service import Outcome
from settle_outbox.uuid7 import time_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import RowMapping
    from sqlalchemy.orm import Session, sessionmaker

    from settle_outbox.event import ReceivedEvent
    from settle_outbox.service import Service, Subscription

log = structlog.get_logger(__name__)

# How long a consumer carries out requests before it reads its topics again, in seconds.
REPAIR_SLICE_S = 0.5
# How often closed dead letters are deleted, in seconds.
DELETE_S = 600.0
TOO_LATE = "Another process has answered the request, because this one took too long."

_LOCK_LETTER = text(
    """
    SELECT id, state, reason, event_id,
           topic, partition, "offset", timestamp_ms, key, value, headers
    FROM dead_letters WHERE id = :id FOR NO KEY UPDATE
    """
)

_OLDER_OPEN = text(
    """
    SELECT min(id) AS oldest, count(*) AS number FROM dead_letters
    WHERE state = 'open' AND topic = :topic AND key = :key AND id < :id
    """
)

# An event whose handler failed has a row in the inbox. It is removed, so that the retry records the
# event again.
_DELETE_PARKED_ROW = text("DELETE FROM inbox WHERE id = :id AND outcome = 'parked' RETURNING id")

_OUTCOME = text("SELECT outcome FROM inbox WHERE id = :id")

_GIVE_UP_EARLY = text("SET LOCAL statement_timeout = '1s'")

_KEY_OF_LETTER = text("SELECT topic, key, event_id FROM dead_letters WHERE id = :id")

# There is no index of keys: it would cost each event more than this warning is worth. The inbox has
# a partition for each day, so the condition on the id excludes the days before the event.
_LATER_APPLIED = text(
    """
    SELECT count(*) FROM inbox
    WHERE key = :key AND topic = :topic AND outcome = 'applied' AND id > :id
    """
)

_SET_STATE = text(
    """
    UPDATE dead_letters
    SET state = :state, closed_at = CASE WHEN :state = 'open' THEN NULL ELSE now() END
    WHERE id = :id
    """
)


_PARTICIPLES = {Action.RETRY: "retried", Action.DISCARD: "discarded"}


class Repaired(NamedTuple):
    """What came of a request."""

    dead_letter_id: int
    answer: Answer
    detail: str


class _RefusedError(Exception):
    """The request must not be carried out; the text says why."""


class _FailedError(Exception):
    """The record could not be applied; the text says why."""


class Repairs:
    """Carries out requests to repair a service's dead letters.

    Args:
        service: whose handlers are called.
        sessions: makes sessions of its database; the engine was made with
            `handler.guard.GUARDABLE`.
        retention_s: how long closed dead letters are kept, in seconds.
        beat: writes a heartbeat; called from another thread during a repair.
    """

    def __init__(
        self,
        service: Service,
        sessions: sessionmaker[Session],
        *,
        retention_s: int,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._sessions = sessions
        self._clock = ActiveClock(beat)
        self._retention_s = retention_s
        self._deletes_at = 0.0
        self._subscriptions = {each.key: each for each in service.subscriptions}

    def carry_out_unclaimed(self) -> None:
        """Carry out the requests that nobody has claimed, oldest first, for `REPAIR_SLICE_S`.

        It also answers the requests that a dead process left, and deletes dead letters that were
        closed longer ago than the retention.

        Raises:
            SQLAlchemyError: the database cannot be reached.
        """
        until = time.monotonic() + REPAIR_SLICE_S
        while time.monotonic() < until:
            with self._sessions.begin() as session:
                _answer_abandoned(session)
                request = repair_requests.claim_next(session)
            if request is None:
                break
            self._carry_out(request)
        self._delete_closed_if_due()

    def carry_out(self, dead_letter_id: int, repair: Repair) -> Repaired:
        """Repair one dead letter as an operator wants, and keep the result in a request row.

        Raises:
            SQLAlchemyError: the database cannot be reached.
        """
        with self._sessions.begin() as session:
            _answer_abandoned(session)
            request = repair_requests.add_claimed_request(session, dead_letter_id, repair)
        return self._carry_out(request)

    def _delete_closed_if_due(self) -> None:
        if time.monotonic() < self._deletes_at:
            return
        with self._sessions.begin() as session:
            more = delete_closed(session, self._retention_s)
        self._deletes_at = time.monotonic() + (0.0 if more else DELETE_S)

    def _carry_out(self, request: Request) -> Repaired:
        """Carry out a claimed request. The answer "done" is committed with the effects."""
        failpoint("repair.claimed")
        try:
            with self._clock.beating(TRANSACTION_S):
                answer, detail = self._attempt(request, self._warn_of_later_events(request))
        except _RefusedError as error:
            answer, detail = Answer.REFUSED, str(error)
        except _FailedError as error:
            answer, detail = Answer.FAILED, str(error)
        except Exception as error:  # noqa: BLE001 - the operator reads it in the answer
            answer, detail = Answer.FAILED, describe_error(error)
        if answer is not Answer.DONE:
            with self._sessions.begin() as session:
                answer, detail = repair_requests.write_answer(session, request, answer, detail)
        repaired = Repaired(request.dead_letter_id, answer, detail)
        _log_repaired(request, repaired)
        return repaired

    def _attempt(self, request: Request, warning: str) -> tuple[Answer, str]:
        with self._sessions() as session:
            if not repair_requests.lock(session, request):
                # This process was frozen for so long that another one gave the request up.
                return Answer.FAILED, TOO_LATE
            detail = self._act(session, request) + warning
            repair_requests.write_answer(session, request, Answer.DONE, detail)
            failpoint("repair.applied")
            session.commit()
        return Answer.DONE, detail

    def _warn_of_later_events(self, request: Request) -> str:
        """Return a sentence if later events of the same key were applied already.

        The inbox may be large. So this is a separate transaction, which gives up early.
        """
        if request.action is not Action.RETRY:
            return ""
        try:
            with self._sessions.begin() as session:
                session.execute(_GIVE_UP_EARLY)
                letter = session.execute(_KEY_OF_LETTER, {"id": request.dead_letter_id}).one()
                key = key_text(None if letter.key is None else bytes(letter.key))
                if key is None or letter.event_id is None or time_of(letter.event_id) is None:
                    return ""
                later = session.execute(
                    _LATER_APPLIED, {"key": key, "topic": letter.topic, "id": letter.event_id}
                ).scalar_one()
        except DBAPIError:
            return ""
        return f" {later} later events of its key were applied before it." if later else ""

    def _act(self, session: Session, request: Request) -> str:
        """Do what a request asks for; return what was done.

        Raises:
            _RefusedError: it must not be done.
            _FailedError: the record cannot be applied.
        """
        letter = session.execute(_LOCK_LETTER, {"id": request.dead_letter_id}).mappings().one()
        state = State(letter["state"])
        if request.action is Action.RESTORE:
            _require(state, State.DISCARDED, "only a discarded one can be restored")
            _set_state(session, letter, State.OPEN)
            return "It is open again."
        _require(state, State.OPEN, f"only an open one can be {_PARTICIPLES[request.action]}")
        if request.action is Action.DISCARD:
            _set_state(session, letter, State.DISCARDED)
            return "It will not be applied."
        if not request.force:
            _refuse_unless_safe(session, letter)
        detail = self._apply(session, letter, force=request.force)
        _set_state(session, letter, State.RETRIED)
        return detail

    def _apply(self, session: Session, letter: RowMapping, *, force: bool) -> str:
        """Apply the record in a dead letter; return what came of it."""
        parsed = parse(record_of(letter), self._subscriptions)
        if parsed.invalid is not None:
            raise _FailedError(f"{parsed.invalid.reason}: {parsed.invalid.detail}")
        event, subscription = parsed.event, parsed.subscription
        if event is None or subscription is None:
            raise _FailedError("The service does not subscribe to events of this type and topic.")
        if parsed.failure is not None:  # the schema's code may have a defect
            raise parsed.failure
        was_parked = session.execute(_DELETE_PARKED_ROW, {"id": event.id}).one_or_none() is not None
        if not was_parked and not force:
            _refuse_older_than_inbox(session, event.id)
        if not record_new(session, [event], Outcome.APPLIED):
            outcome = session.execute(_OUTCOME, {"id": event.id}).scalar_one_or_none()
            if outcome == Outcome.PARKED:
                raise _FailedError("Meanwhile, another record of the event became a dead letter.")
            return "The event was applied meanwhile, from another record."
        delete_attempts(session, [event.id])
        return _handle(session, event, subscription)


def _handle(session: Session, event: ReceivedEvent, subscription: Subscription) -> str:
    """Call the handler; return what came of the event.

    Raises:
        _FailedError: it cannot be applied, by the handler's verdict.
        Exception: the handler failed.
    """
    run = HandlerRun(time.monotonic)
    try:
        verdict = call_handler(session, subscription, [event], run).get(event.id)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # such as asyncio.CancelledError: it must not end the consumer
        raise _FailedError(describe_error(error)) from error
    if verdict is None:
        return "Applied."
    if verdict.outcome is Outcome.PARKED:
        raise _FailedError(f"{verdict.reason}: {verdict.detail}")
    record_verdict(session, event, verdict)
    return f"Recorded as an anomaly, without effect: {verdict.reason}: {verdict.detail}"


def _refuse_unless_safe(session: Session, letter: RowMapping) -> None:
    """Refuse a retry that may do harm.

    A retry is safe if the record was invalid or the handler failed, and no older dead letter of the
    key is open. All other reasons are decisions: of the inbox (the event is too old), or of the
    handler (its verdict).
    """
    reason = letter["reason"]
    was_failure = reason == INVALID_DATA or reason in FAILURE_REASONS
    if letter["event_id"] is not None and not was_failure:
        raise _RefusedError(
            f"A dead letter {reason} is not retried without --force: applying it may be wrong."
            " Read its detail first."
        )
    if letter["key"] is None:
        return
    older = session.execute(
        _OLDER_OPEN, {"topic": letter["topic"], "key": letter["key"], "id": letter["id"]}
    ).one()
    if older.number:
        raise _RefusedError(
            f"{older.number} older dead letters of the same key are open, the oldest is"
            f" {older.oldest}: retry or discard them first, or use --force."
        )


def _refuse_older_than_inbox(session: Session, event_id: UUID) -> None:
    """Refuse an event that may have been applied and forgotten."""
    horizon = circuit_breaker.read_state(session).horizon
    if horizon is not None and is_older_than_inbox(event_id, horizon):
        raise _RefusedError(
            f"Event {event_id} is older than the inbox, which begins at {horizon}: it may have"
            " been applied from another record. Use --force if it was not."
        )


def _answer_abandoned(session: Session) -> None:
    for request_id, dead_letter_id in repair_requests.answer_abandoned(session):
        log.error("consumer.repair_abandoned", request=request_id, dead_letter=dead_letter_id)


def _require(state: State, wanted: State, rule: str) -> None:
    if state is not wanted:
        raise _RefusedError(f"It is {state}; {rule}.")


def _set_state(session: Session, letter: RowMapping, state: State) -> None:
    session.execute(_SET_STATE, {"id": letter["id"], "state": state})


def _log_repaired(request: Request, repaired: Repaired) -> None:
    level = log.info if repaired.answer is Answer.DONE else log.warning
    level(
        "consumer.repaired",
        dead_letter=request.dead_letter_id,
        action=str(request.action),
        answer=str(repaired.answer),
        detail=repaired.detail,
        requested_by=request.requested_by,
        request=request.id,
    )
