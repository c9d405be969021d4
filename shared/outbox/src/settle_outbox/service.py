"""How a service describes itself to settle_outbox: its name, events and handlers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Engine

from settle_outbox.errors import SettleError
from settle_outbox.settings import KAFKA_NAME
from settle_outbox.suggest import unknown_name

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.orm import Session

    from settle_outbox.event import ReceivedEvent

ENTRY_POINT_GROUP = "settle.services"

# Maximum wait between two attempts at an event, in seconds.
RETRY_WAIT_MAX_S = 300.0
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,100}")


class Outcome(StrEnum):
    """The outcome of an event, as the column ``inbox.outcome`` has it."""

    APPLIED = "applied"
    SKIPPED = "skipped"  # its type has no subscription; only old databases have such inbox rows
    ANOMALY = "anomaly"  # changed nothing: its effect exists, or would contradict a final state
    PARKED = "parked"  # could not be applied, and is a dead letter


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a handler returns for an event that it did not apply.

    Args:
        outcome: ANOMALY or PARKED.
        reason: a stable short name, such as ``unknown_order``.
        detail: a sentence with ids, for a person.
    """

    outcome: Outcome
    reason: str
    detail: str


class Retry(Exception):  # noqa: N818 - an instruction, not an error
    """A handler raises it to get the event again later, because a dependency is unavailable.

    The transaction is rolled back, the Kafka partition waits, and the handler gets the event again.
    The wait doubles with each attempt, up to `RETRY_WAIT_MAX_S`. After RETRY_ATTEMPTS attempts the
    event becomes a dead letter.

    Args:
        reason: a sentence for the log and the dead letter.
        after_s: the wait before the second attempt, in seconds.
    """

    after_s: float = 1.0

    def __init__(self, reason: str = "The handler asked for it.", *, after_s: float = 1.0) -> None:
        if not 0 <= after_s <= RETRY_WAIT_MAX_S:
            raise ValueError(f"after_s must be from 0 to {RETRY_WAIT_MAX_S:.0f}, not {after_s}")
        super().__init__(reason)
        self.after_s = after_s


class Handler(Protocol):
    """Apply a batch of events of one subscription, in their order, in the consumer's transaction.

    **The transaction.** The consumer commits the events' inbox rows together with everything that
    the handler did in the session. The handler must not end the transaction. `commit()`,
    `rollback()` and `close()` of the session or its connection, and a textual COMMIT or ROLLBACK,
    raise `TransactionEndedError`. In an `except` block, `rollback()` and `close()` raise nothing,
    but the handler fails when it returns. In both cases, nothing of this call is committed.
    `session.begin_nested()` and its rollback are allowed. The handler may add events with
    `outbox.add`; they are sent after the commit.

    **The result.** None, or a verdict for each event that the handler did not apply, by event id.
    An event without a verdict was applied.

    **Exceptions.** `Retry` when a dependency other than the database is unavailable. A transient
    error of the database (`settle_outbox.storage.sqlstate.is_transient`): the batch is retried
    without limit, and no event becomes a dead letter. Any other exception is a failure of the
    handler: the batch is rolled back and retried in halves until one event fails alone. That
    event becomes a dead letter. So a handler may run several times for one event, and effects
    outside of the database must be safe to repeat.

    **When every event fails.** After BRAKE_FAILURES failures in a row with one error, the
    subscription stops instead of making more dead letters. See
    `settle_outbox.consume.circuit_breaker`.

    **Time.** A call may take 10 s between two statements and 120 s in all; see
    `settle_outbox.consume.failures.HandlerLimits`. An event becomes a dead letter if it exceeds a
    limit three times when it is handled alone, or if the process dies three times in a row while
    it handles this event alone; see `settle_outbox.consume.careful_mode`.

    **The trace.** While the handler iterates over the events, the current trace is the trace of
    the event at hand, and a new `Event` inherits it. A handler that first collects and then
    adds events passes ``trace=event.trace`` itself.
    """

    def __call__(
        self, session: Session, events: Sequence[ReceivedEvent], /
    ) -> Mapping[UUID, Verdict] | None:
        """Apply the events."""


def one_by_one(handle: Callable[[Session, ReceivedEvent], Verdict | None]) -> Handler:
    """Return a handler that calls a function for each event.

    Args:
        handle: applies an event. It returns None, or a verdict if it did not apply the event. The
            contract is that of `Handler`. The function gets the events of a batch one after the
            other, in one transaction. If it fails for one event, all are rolled back, and the
            function gets the other events again.
    """

    def handle_batch(session: Session, events: Sequence[ReceivedEvent]) -> Mapping[UUID, Verdict]:
        verdicts = {event.id: handle(session, event) for event in events}
        return {event_id: verdict for event_id, verdict in verdicts.items() if verdict is not None}

    return handle_batch


class LoadingSchema(Protocol):
    """A schema of marshmallow."""

    def load(self, data: Any, *, unknown: Any) -> Any:
        """Return the validated data."""


Schema = Callable[[Mapping[str, Any]], Any] | LoadingSchema
"""Validates the data of an event, which is a JSON object as a dict.

The result becomes `ReceivedEvent.data`. It must depend on the argument alone. Examples::

    schema=OrderPaid.model_validate                    # pydantic
    schema=partial(msgspec.convert, type=OrderPaid)    # msgspec
    schema=OrderPaidSchema()                           # marshmallow
    schema=dict                                        # no validation

A schema should ignore unknown fields, as these examples do, so that publishers can add fields.

If it raises an exception, the event becomes a dead letter `invalid_data`, and the handler does not
get it. The libraries above raise a ValueError or their own exception class. Other built-in
exceptions, such as AttributeError, may come from a defect in the schema's code. So they count as
failures of the handler as well: after BRAKE_FAILURES in a row the subscription stops.
"""


CleanupJob = Callable[[Engine], bool]
"""Deletes expired rows from a service's database, in separate transactions.

Each call deletes a limited number of rows and returns whether more are left. The job reads its
settings itself. After a SQLAlchemyError, the relay waits, as in an outage of the database. After
any other error, the relay logs it, continues to send events, and tries again later.
"""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One type of event that a service consumes.

    Args:
        topic: the topic of the events.
        type: the CloudEvents type.
        schema: validates the data; see `Schema`. With a marshmallow schema, unknown fields are
            always ignored, whatever the schema says.
        handle: applies a batch of these events; see `Handler` for the contract. For a function that
            applies one event, write ``handle=one_by_one(function)``. Subscriptions may share a
            handler. Each batch has events of one subscription.
    """

    topic: str
    type: str
    schema: Schema
    handle: Handler

    @property
    def key(self) -> tuple[str, str]:
        """Topic and type, which identify the subscription within the service."""
        return self.topic, self.type

    def validate(self, data: Mapping[str, Any]) -> Any:
        """Return the validated data of an event. The schema may raise any exception."""
        if callable(self.schema):
            return self.schema(data)
        return self.schema.load(data, unknown="exclude")


@dataclass(frozen=True, slots=True)
class Service:
    """The description of a service.

    Args:
        name: the name on the command line, which its entry point must have. The ``ce_source`` of
            its events is ``/`` and this name. It is also the default name of its consumer group.
        aggregatetypes: the aggregatetypes of the events that it publishes.
        subscriptions: the events that it consumes.
        cleanup_jobs: functions that delete expired rows; the relay calls them about once a second.
        topic_prefix: leave it out. `load_service` sets it from the setting TOPIC_PREFIX.
    """

    name: str
    aggregatetypes: tuple[str, ...]
    subscriptions: tuple[Subscription, ...]
    cleanup_jobs: tuple[CleanupJob, ...] = ()
    topic_prefix: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidServiceError(
                f"A service cannot have the name {self.name!r}: use 1 to 100 of the characters a-z,"
                " A-Z, 0-9, '_' and '-'."
            )
        keys = [subscription.key for subscription in self.subscriptions]
        for topic, event_type in {key for key in keys if keys.count(key) > 1}:
            raise InvalidServiceError(
                f"Service {self.name} has two subscriptions to {event_type} of {topic}."
            )
        for topic in (*self.published_topics, *self.consumed_topics):
            if not KAFKA_NAME.fullmatch(topic):
                raise InvalidTopicNameError(
                    f"Service {self.name} has a topic {topic!r}, which Kafka does not accept: use 1"
                    " to 249 of the characters a-z, A-Z, 0-9, '.', '_' and '-'."
                )

    @property
    def source(self) -> str:
        """The ``ce_source`` of the published events."""
        return f"/{self.name}"

    @property
    def published_topics(self) -> tuple[str, ...]:
        """The topics that the service's relay writes to."""
        return tuple(self.published_topic(name) for name in self.aggregatetypes)

    @property
    def consumed_topics(self) -> tuple[str, ...]:
        """The topics that the service's consumer reads, each once."""
        return tuple(sorted({subscription.topic for subscription in self.subscriptions}))

    def published_topic(self, aggregatetype: str) -> str:
        """Return the topic of an aggregatetype, with the prefix."""
        return f"{self.topic_prefix}{topic_of(aggregatetype)}"

    def with_topic_prefix(self, prefix: str) -> Service:
        """Return the service with another prefix before the name of each topic."""
        subscriptions = tuple(
            replace(subscription, topic=f"{prefix}{subscription.topic[len(self.topic_prefix) :]}")
            for subscription in self.subscriptions
        )
        return replace(self, topic_prefix=prefix, subscriptions=subscriptions)


class InvalidServiceError(SettleError):
    """The description of a service is invalid."""


class InvalidTopicNameError(InvalidServiceError):
    """A service declares a topic with a name that Kafka does not accept."""


class UnknownServiceError(SettleError):
    """No installed service has that name."""


def topic_of(aggregatetype: str) -> str:
    """Return the topic of an aggregatetype, without the prefix. Debezium can use this name."""
    return f"{aggregatetype}.events"


def service_names() -> list[str]:
    """Return the names of the services that are installed."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP).names)


def load_service(name: str, topic_prefix: str = "") -> Service:
    """Load a service by its name from the entry points of the group ``settle.services``.

    Args:
        name: of its entry point.
        topic_prefix: the setting TOPIC_PREFIX, which is put before all topics of the service.

    Raises:
        UnknownServiceError: there is no such service. The message names the existing services.
    """
    matches = entry_points(group=ENTRY_POINT_GROUP, name=name)
    if not matches:
        raise UnknownServiceError(unknown_name("service", name, service_names()))
    (entry_point,) = matches
    service: Service = entry_point.load()
    return service.with_topic_prefix(topic_prefix)
