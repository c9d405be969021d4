"""Applying a batch of records: one transaction for inbox, effects and the events they cause.

When the batch fails for another reason than the database's own trouble, it is halved until the
culprit stands alone; that one is parked, and everything else is applied.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from shared.failpoints import failpoint
from shared.outbox.inbox import note_verdict, park, record_new
from shared.outbox.partitions import horizon
from shared.outbox.records import Parsed, parse
from shared.outbox.service import Outcome
from shared.outbox.uuid7 import time_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy.orm import Session, sessionmaker

    from shared.outbox.event import ReceivedEvent
    from shared.outbox.service import Service, Verdict

log = structlog.get_logger(__name__)

# The event's own fault, as is what the database's own functions raise (class P0 of SQLSTATE, such
# as a trigger's RAISE EXCEPTION). Every other error of the database is trouble that passes or that
# an operator ends, and is retried, never parked.
_EVENTS_FAULT = (DataError, IntegrityError)
_RAISED_BY_FUNCTION = "P0"
# The database's errors, and its pool's; the others of SQLAlchemy's come from the handler's doing:
# a row that is not there, a parameter that was not given.
_DATABASES_TROUBLE = (DBAPIError, PoolTimeoutError)


class Applier:
    """Applies records to a service's database, each event exactly once.

    Args:
        service: whose handlers.
        sessions: of its database.
    """

    def __init__(self, service: Service, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions
        self._subscriptions = {
            (subscription.topic, subscription.type): subscription
            for subscription in service.subscriptions
        }

    def apply(self, records: Iterable[ConsumerRecord]) -> None:
        """Apply records in their order. Afterwards each is in the inbox or the dead letters.

        Raises:
            SQLAlchemyError: the database is in trouble. Part of the records may be applied; all
                can be given again.
        """
        items = [parse(record, self._subscriptions) for record in records]
        if items:
            self._apply_or_halve(items)

    def _apply_or_halve(self, items: Sequence[Parsed]) -> None:
        try:
            with self._sessions.begin() as session:
                fresh = self._apply_in(session, items)
        except Exception as error:
            if _is_trouble(error):
                raise
            if len(items) > 1:
                middle = len(items) // 2
                self._apply_or_halve(items[:middle])
                self._apply_or_halve(items[middle:])
            else:
                self._park_culprit(items[0], error)
        else:
            _tell(items, fresh)

    def _apply_in(self, session: Session, items: Sequence[Parsed]) -> list[Parsed]:
        """Record and apply a batch; returns what of it was new."""
        events = self._receivable(session, items)
        fresh_ids = record_new(
            session,
            [item.event for item in events.values() if item.event],
            {
                event_id: Outcome.APPLIED if item.subscription else Outcome.SKIPPED
                for event_id, item in events.items()
            },
        )
        fresh = [item for event_id, item in events.items() if event_id in fresh_ids]
        failpoint("consumer.recorded")
        for subscription, run in groupby(fresh, key=lambda item: item.subscription):
            if subscription is not None:
                group = list(run)
                verdicts = subscription.handle(session, [_event(item) for item in group])
                _note(session, group, verdicts)
        return fresh

    def _receivable(self, session: Session, items: Sequence[Parsed]) -> dict[UUID, Parsed]:
        """The events of the batch by id, each once; what can be none of them is parked."""
        begin = horizon(session.connection())
        events: dict[UUID, Parsed] = {}
        for item in items:
            if item.invalid is not None:
                park(session, item.record, None, item.invalid.reason, item.invalid.detail)
                _warn_parked(item, item.invalid.reason, item.invalid.detail)
                continue
            event = _event(item)
            if begin is not None and event.id < begin and time_of(event.id) is not None:
                # It may have been applied and its inbox row dropped since.
                detail = f"Event {event.id} is older than the inbox, which begins at {begin}."
                park(session, item.record, event, "older_than_inbox", detail)
                _warn_parked(item, "older_than_inbox", detail)
                continue
            events.setdefault(event.id, item)
        return events

    def _park_culprit(self, item: Parsed, error: Exception) -> None:
        """Record the event as parked, so that it is not tried again, and keep it whole."""
        detail = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        with self._sessions.begin() as session:
            if item.event is not None:
                record_new(session, [item.event], {item.event.id: Outcome.PARKED})
            park(session, item.record, item.event, "handler_failed", detail)
        log.error(
            "consumer.handler_failed",
            id=str(item.event.id) if item.event else None,
            type=item.event.type if item.event else None,
            requestid=item.event.trace.request_id if item.event else None,
            exc_info=error,
        )


def _is_trouble(error: Exception) -> bool:
    if not isinstance(error, _DATABASES_TROUBLE) or isinstance(error, _EVENTS_FAULT):
        return False
    code = getattr(getattr(error, "orig", None), "pgcode", None) or ""
    return not code.startswith(_RAISED_BY_FUNCTION)


def _event(item: Parsed) -> ReceivedEvent:
    if item.event is None:
        raise AssertionError("a record without an event was let through")
    return item.event


def _note(session: Session, group: Sequence[Parsed], verdicts: Mapping[UUID, Verdict]) -> None:
    """Note in inbox and dead letters what the handler did not apply."""
    for item in group:
        event = _event(item)
        verdict = verdicts.get(event.id)
        if verdict is None:
            continue
        note_verdict(session, event, verdict)
        if verdict.outcome is Outcome.PARKED:
            park(session, item.record, event, verdict.reason, verdict.detail)
            _warn_parked(item, verdict.reason, verdict.detail)
        else:
            log.warning(
                f"consumer.{verdict.outcome}",
                id=str(event.id),
                type=event.type,
                reason=verdict.reason,
                detail=verdict.detail,
                requestid=event.trace.request_id,
            )


def _warn_parked(item: Parsed, reason: str, detail: str) -> None:
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


def _tell(items: Sequence[Parsed], fresh: Sequence[Parsed]) -> None:
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
