"""Tools for the tests of a service: run a handler as the consumer does, without a broker.

A test with pytest::

    from settle_outbox import Event, Outcome
    from settle_outbox.testing import GUARDABLE, HandlerResult, apply

    @pytest.fixture
    def session() -> Iterator[Session]:
        engine = create_engine(DATABASE_URL, connect_args=GUARDABLE)
        with Session(engine) as session:
            yield session  # nothing is committed

    def test_a_payment_is_stored(session: Session) -> None:
        event = Event("payments", "order-1", "payment.succeeded", {"order_id": "order-1"})

        result = apply(SERVICE, session, event)

        assert result == HandlerResult(Outcome.APPLIED)
        assert session.scalars(select(Notification.order_id)).all() == ["order-1"]

The database is a PostgreSQL with the service's migrations. `GUARDABLE` are options of psycopg2.
With them, a handler that tries to end the transaction fails, as in the consumer.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kafka.consumer.fetcher import ConsumerRecord

from settle_outbox.consume.failures import raise_if_database_failed, reason_of
from settle_outbox.consume.handler.call import call_handler
from settle_outbox.consume.handler.guard import GUARDABLE, HandlerRun, NotGuardableError
from settle_outbox.consume.inbox import storable
from settle_outbox.consume.records import INVALID_DATA, parse
from settle_outbox.errors import describe_error
from settle_outbox.publish.outbox import encode_data, header_or_none
from settle_outbox.publish.pending import PendingEvent
from settle_outbox.publish.sender import event_headers
from settle_outbox.service import Outcome, Retry, topic_of
from settle_outbox.storage.database import AGGREGATETYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from settle_outbox.event import Event, ReceivedEvent
    from settle_outbox.service import Service, Subscription

__all__ = ["GUARDABLE", "HandlerResult", "apply"]


@dataclass(frozen=True, slots=True)
class HandlerResult:
    """The outcome of an event, as the consumer would record it.

    Args:
        outcome: APPLIED, ANOMALY, SKIPPED if the service does not subscribe to the type, or PARKED
            if the event would become a dead letter.
        reason: of the handler's verdict or of the dead letter, such as ``invalid_data`` or
            ``handler_failed``.
        detail: of the verdict or dead letter, a sentence.
        error: the error of the handler or schema. ``==`` does not compare it.
    """

    outcome: Outcome
    reason: str | None = None
    detail: str | None = None
    error: Exception | None = field(default=None, compare=False)


def apply(
    service: Service, session: Session, event: Event, *, topic: str | None = None
) -> HandlerResult:
    """Run a service's handler for one event, as the consumer does.

    The event is encoded as the relay encodes it, parsed, and validated by the schema. The handler
    runs with the event's trace, in a guarded transaction; see `settle_outbox.Handler`.

    * After a success, the handler's changes are flushed, not committed.
    * After a failure, only the handler's changes are rolled back.
    * If the handler tried to end the transaction, everything is rolled back, and the session is
      closed.

    The inbox is not written, so a second call applies the event again. There are other differences
    from the consumer: deferred constraints are not checked, the handler's time is not limited, and
    attempts and failures in a row are not counted.

    Args:
        service: the service that subscribes to the event.
        session: of a SQLAlchemy engine with the options `GUARDABLE`.
        event: the event, as the publishing service adds it.
        topic: of the event; by default ``<aggregatetype>.events``.

    Raises:
        Retry: the handler raised it. The consumer would try again later.
        SQLAlchemyError: a transient error of the database. The consumer would try again.
        TransientDatabaseError: likewise, if the handler caught it or if psycopg2 raised it.
        InvalidEventError: the event's data cannot be converted to JSON.
        NotGuardableError: the session's engine does not have the options `GUARDABLE`.
    """
    record = _record(event, topic or topic_of(event.aggregatetype))
    parsed = parse(
        record, {subscription.key: subscription for subscription in service.subscriptions}
    )
    if parsed.invalid is not None:
        return HandlerResult(Outcome.PARKED, parsed.invalid.reason, parsed.invalid.detail)
    if parsed.failure is not None:
        return _parked(INVALID_DATA, parsed.failure)
    if parsed.event is None or parsed.subscription is None:
        return HandlerResult(Outcome.SKIPPED)
    with _declared_aggregatetypes(session, service):
        return _handle(session, parsed.event, parsed.subscription)


def _record(event: Event, topic: str) -> ConsumerRecord:
    """Return the record that a consumer reads for an event."""
    value, key = encode_data(event), event.aggregateid.encode()
    sent = PendingEvent(
        id=event.id,
        seq=1,
        shard=0,
        aggregatetype=event.aggregatetype,
        aggregateid=event.aggregateid,
        type=event.type,
        payload=value,
        requestid=header_or_none(event.trace.request_id),
        traceparent=header_or_none(event.trace.traceparent),
        created_at=datetime.now(UTC),
    )
    return ConsumerRecord(
        topic=topic,
        partition=0,
        leader_epoch=0,
        offset=0,
        timestamp=0,
        timestamp_type=0,
        key=key,
        value=value,
        headers=event_headers(sent, f"/{event.aggregatetype}".encode()),
        checksum=None,
        serialized_key_size=len(key),
        serialized_value_size=len(value),
        serialized_header_size=-1,
    )


@contextmanager
def _declared_aggregatetypes(session: Session, service: Service) -> Iterator[None]:
    """Let `add` accept only declared aggregatetypes, as in the sessions of the consumer."""
    before = session.info.get(AGGREGATETYPES)
    session.info[AGGREGATETYPES] = frozenset(service.aggregatetypes)
    try:
        yield
    finally:
        session.info[AGGREGATETYPES] = before


def _handle(session: Session, event: ReceivedEvent, subscription: Subscription) -> HandlerResult:
    run = HandlerRun(time.monotonic)
    savepoint = session.begin_nested()
    transaction = session.get_transaction()
    try:
        verdicts = call_handler(session, subscription, [event], run)
        # If the test runs everything in an outer savepoint, the session ends only savepoints. Then
        # psycopg2 does not see that the handler ended the transaction.
        if session.get_transaction() is not transaction:
            run.refuse_end("commit(), rollback() or close() of its session")
    except Exception as error:
        if run.ended_by is not None or run.rolled_back:
            session.close()
        else:
            savepoint.rollback()
        if isinstance(error, Retry | NotGuardableError):
            raise
        if run.ended_by is None:
            raise_if_database_failed(error, run)
        return _parked(reason_of(error), error)
    savepoint.commit()
    verdict = verdicts.get(event.id)
    if verdict is None:
        return HandlerResult(Outcome.APPLIED)
    return HandlerResult(verdict.outcome, verdict.reason, verdict.detail)


def _parked(reason: str, error: Exception) -> HandlerResult:
    return HandlerResult(Outcome.PARKED, reason, storable(describe_error(error)), error)
