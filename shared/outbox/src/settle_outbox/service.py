"""What the delivery engine must know of a service: its name, its events, its handlers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Engine

from settle_outbox.errors import SettleError
from settle_outbox.suggest import unknown_name

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.orm import Session

    from settle_outbox.event import ReceivedEvent

ENTRY_POINT_GROUP = "settle.services"

# The longest wait between two attempts at one event, in seconds.
RETRY_WAIT_MAX_S = 300.0
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,100}")
# Kafka takes no other names (org.apache.kafka.common.internals.Topic).
_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class Outcome(StrEnum):
    """What became of an event; kept in its inbox row, if it has one."""

    APPLIED = "applied"
    SKIPPED = "skipped"  # of a type without a subscription: counted; a row in earlier versions
    ANOMALY = "anomaly"  # contradicts what is final: recorded, not applied
    PARKED = "parked"  # cannot be applied: in the dead letters, whole


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a handler decided on an event that it did not apply.

    Args:
        outcome: ANOMALY or PARKED.
        reason: a stable short name, such as ``unknown_order``.
        detail: a sentence with ids, for a person.
    """

    outcome: Outcome
    reason: str
    detail: str


class Retry(Exception):  # noqa: N818 - an instruction, not a fault
    """Raised by a handler to try again later: something that it depends on is unavailable.

    The transaction is rolled back, the partition waits, and the handler gets the event again. The
    wait doubles with each attempt. After RETRY_ATTEMPTS attempts the event becomes a dead letter.

    Args:
        reason: a sentence for the log and the dead letter.
        after_s: how long to wait before the second attempt, in seconds.
    """

    after_s: float = 1.0

    def __init__(self, reason: str = "The handler asked for it.", *, after_s: float = 1.0) -> None:
        if not 0 <= after_s <= RETRY_WAIT_MAX_S:
            raise ValueError(f"after_s must be from 0 to {RETRY_WAIT_MAX_S:.0f}, not {after_s}")
        super().__init__(reason)
        self.after_s = after_s


class Handler(Protocol):
    """Apply a batch of events of one subscription, in their order, inside the engine's transaction.

    **Its transaction.** The engine commits the events' inbox rows together with everything that
    the handler did in the session. The handler must not end the transaction:
    `session.commit()`, `rollback()` and `close()`, those of its connection, and a textual
    COMMIT or ROLLBACK raise `TransactionEndedError` at once, and nothing of the batch becomes
    durable. `session.begin_nested()` and its rollback are allowed. The handler may add events
    with `outbox.add`; they are sent after the commit.

    **What it returns.** None, or a verdict for each event that it did not apply, by event id.
    An event without a verdict was applied.

    **What it raises.** `Retry` when a dependency other than the database is unavailable. Any
    other exception is a failure of the handler: the batch is rolled back and retried in halves
    until one event fails alone, which becomes a dead letter. So a handler may run several times
    for one event, and effects outside of the database must be safe to repeat. Errors of the
    database that pass by themselves (`settle_outbox.storage.sqlstate.is_transient`) are retried
    forever and never make a dead letter.

    **When every event fails.** After BRAKE_FAILURES failures in a row with one error, the
    subscription stops instead of making more dead letters. See
    `settle_outbox.consume.circuit_breaker`.

    **Its time.** A handler may take 10 s between two statements and 120 s in all; see
    `settle_outbox.consume.failures.HandlerLimits`. An event that exceeds this alone, three times,
    becomes a dead letter.

    **Its trace.** While the handler iterates over the events, the current trace is the trace of
    the event at hand, and a new `Event` inherits it. A handler that first collects and then
    adds events passes ``trace=event.trace`` itself.
    """

    def __call__(
        self, session: Session, events: Sequence[ReceivedEvent], /
    ) -> Mapping[UUID, Verdict] | None:
        """Apply the events."""


def one_by_one(handle: Callable[[Session, ReceivedEvent], Verdict | None]) -> Handler:
    """Make a handler of a function that applies one event.

    Args:
        handle: applies an event; returns None, or a verdict if it did not apply it. The contract
            is that of `Handler`. It gets the events of a batch one after the other, in one
            transaction: when it fails for one of them, all of them are rolled back, and it gets
            the others again.
    """

    def handle_batch(session: Session, events: Sequence[ReceivedEvent]) -> Mapping[UUID, Verdict]:
        verdicts = {event.id: handle(session, event) for event in events}
        return {event_id: found for event_id, found in verdicts.items() if found is not None}

    return handle_batch


class LoadingSchema(Protocol):
    """A schema of marshmallow."""

    def load(self, data: Any, *, unknown: Any) -> Any:
        """Return the validated data."""


Schema = Callable[[Mapping[str, Any]], Any] | LoadingSchema
"""Validates the data of an event: its JSON object, with dicts, lists and so on in it.

What it returns is `ReceivedEvent.data`. It must depend on nothing but its argument. These fit::

    schema=OrderPaid.model_validate                    # pydantic
    schema=partial(msgspec.convert, type=OrderPaid)    # msgspec
    schema=OrderPaidSchema()                           # marshmallow
    schema=dict                                        # no validation

It should ignore fields that it does not know, so that a publisher may add some, as these do.

Any exception from it means that the event is invalid: it becomes a dead letter `invalid_data`, and
the handler does not get it. The libraries above raise a ValueError or a class of exceptions of
their own. Python's other exceptions, such as AttributeError, may come from a fault in the schema's
code. They also count like failures of the handler: after BRAKE_FAILURES in a row the subscription
stops.
"""


Expiry = Callable[[Engine], bool]
"""Removes what is past its retention from a service's database, in transactions of its own.

A bounded amount at each call; returns whether more is left. It reads its own settings. If it
raises, the relay logs it and tries again later; events are sent meanwhile.
"""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One type of event that a service consumes.

    Args:
        topic: where it comes from.
        type: the CloudEvents type.
        schema: validates the data; see `Schema`. Of a marshmallow schema, the setting for unknown
            fields does not count: they are ignored.
        handle: applies a batch of such events; see `Handler` for the contract. For a function that
            applies one event, write ``handle=one_by_one(function)``. Several subscriptions may
            have the same handler: it gets the events of each type in batches of their own.
    """

    topic: str
    type: str
    schema: Schema
    handle: Handler

    @property
    def key(self) -> tuple[str, str]:
        """Return topic and type, which are unique in the service."""
        return self.topic, self.type

    def validate(self, data: Mapping[str, Any]) -> Any:
        """Return what the schema makes of an event's data; it may raise any exception."""
        if callable(self.schema):
            return self.schema(data)
        return self.schema.load(data, unknown="exclude")


@dataclass(frozen=True, slots=True)
class Service:
    """A service to the delivery engine.

    Args:
        name: as on the command line; also the ``ce_source``, and the consumer group unless the
            setting names another.
        aggregatetypes: of the events that it publishes.
        subscriptions: the events that it consumes.
        expiries: cleanup jobs; the relay runs them about once a second.
        topic_prefix: leave it out; `with_topic_prefix` sets it from the setting TOPIC_PREFIX.
    """

    name: str
    aggregatetypes: tuple[str, ...]
    subscriptions: tuple[Subscription, ...]
    expiries: tuple[Expiry, ...] = ()
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
            if not _TOPIC_NAME.fullmatch(topic):
                raise InvalidTopicNameError(
                    f"Service {self.name} has a topic {topic!r}, which Kafka does not accept: use 1"
                    " to 249 of the characters a-z, A-Z, 0-9, '.', '_' and '-'."
                )

    @property
    def source(self) -> str:
        """The ``ce_source`` of the events that it publishes."""
        return f"/{self.name}"

    @property
    def published_topics(self) -> tuple[str, ...]:
        """The topics that its relay writes."""
        return tuple(
            f"{self.topic_prefix}{topic_of(aggregatetype)}" for aggregatetype in self.aggregatetypes
        )

    @property
    def consumed_topics(self) -> tuple[str, ...]:
        """The topics that its consumer reads, each once."""
        return tuple(sorted({subscription.topic for subscription in self.subscriptions}))

    def with_topic_prefix(self, prefix: str) -> Service:
        """Return the service with a prefix before the name of each of its topics.

        Args:
            prefix: the setting TOPIC_PREFIX. One that the service has already is not added again.
        """
        if prefix == self.topic_prefix:
            return self
        declared = len(self.topic_prefix)
        subscriptions = [
            replace(each, topic=f"{prefix}{each.topic[declared:]}") for each in self.subscriptions
        ]
        return replace(self, topic_prefix=prefix, subscriptions=tuple(subscriptions))


class InvalidServiceError(SettleError):
    """A service's description of itself cannot work."""


class InvalidTopicNameError(InvalidServiceError):
    """A service declares a topic that no Kafka accepts."""


class UnknownServiceError(SettleError):
    """No service has that name."""


def topic_of(aggregatetype: str) -> str:
    """Return the topic of an aggregate type's events, as Debezium's EventRouter is set to.

    The setting TOPIC_PREFIX stands before it.
    """
    return f"{aggregatetype}.events"


def service_names() -> list[str]:
    """Return the names of the services that are installed."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP).names)


def load_service(name: str) -> Service:
    """Find a service by its name among the entry points of the group ``settle.services``.

    Raises:
        UnknownServiceError: naming those that exist.
    """
    found = entry_points(group=ENTRY_POINT_GROUP, name=name)
    if not found:
        raise UnknownServiceError(unknown_name("service", name, service_names()))
    (entry_point,) = found
    service: Service = entry_point.load()
    return service
