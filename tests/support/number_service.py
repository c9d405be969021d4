"""A service for tests, whose events are numbers, and an applier for it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kafka.consumer.fetcher import ConsumerRecord
from marshmallow import EXCLUDE, Schema, fields
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from uuid_utils.compat import uuid7

from settle_outbox import Service, Subscription
from settle_outbox.consume.applier import Applier
from settle_outbox.consume.failures import HandlerLimits
from settle_outbox.consume.handler.guard import GUARDABLE
from settle_outbox.storage.database import make_engine, make_sessions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from settle_outbox.service import Handler

TOPIC = "numbers.events"
NUMBER = "number"
_EMPTY = """
    CREATE TABLE IF NOT EXISTS effects (number integer PRIMARY KEY);
    DROP TABLE IF EXISTS generated, checked;
    TRUNCATE effects, inbox, inbox_attempts, inbox_brakes, inbox_horizon, inbox_owners,
             inbox_skipped, dead_letters, dead_letter_requests, outbox, outbox_pending
    RESTART IDENTITY
"""
LIMITS = HandlerLimits(pause_s=10, total_s=120, retry_attempts=3, brake_failures=20)


class Base(DeclarativeBase):
    """The base of the models."""


class Effect(Base):
    """The effect of an event: a row with its number."""

    __tablename__ = "effects"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class NumberSchema(Schema):
    """The data of the events, which is a number."""

    class Meta:
        unknown = EXCLUDE

    number = fields.Integer(required=True)


def number_service(handle: Handler, *types: str, name: str = "orders") -> Service:
    """Return a service that handles numbers."""
    subscriptions = [
        Subscription(TOPIC, type_, NumberSchema(), handle) for type_ in types or (NUMBER,)
    ]
    return Service(name, (name,), tuple(subscriptions))


def number_record(
    number: object,
    *,
    type_: str = NUMBER,
    partition: int = 0,
    offset: int | None = None,
    event_id: UUID | None = None,
    request_id: str | None = None,
    key: bytes = b"key",
    **more: object,
) -> ConsumerRecord:
    """Return a record of an event with a number. By default, its offset is that number."""
    headers = {
        "ce_id": str(event_id or uuid7()),
        "ce_type": type_,
        "ce_source": "/test",
        "ce_specversion": "1.0",
    } | ({"ce_requestid": request_id} if request_id else {})
    value = json.dumps({"number": number, **more}).encode()
    return ConsumerRecord(
        topic=TOPIC,
        partition=partition,
        leader_epoch=0,
        offset=number if offset is None else offset,
        timestamp=0,
        timestamp_type=0,
        key=key,
        value=value,
        headers=[(header, text.encode()) for header, text in headers.items()],
        checksum=None,
        serialized_key_size=len(key),
        serialized_value_size=len(value),
        serialized_header_size=-1,
    )


@contextmanager
def handler_engine(url: str, **session_settings: Any) -> Iterator[Engine]:
    """Create an engine of SQLAlchemy with one connection, as the consumer does."""
    engine = make_engine(
        url,
        application_name="test-applier",
        pool_size=1,
        session_settings=session_settings,
        driver_options=GUARDABLE,
    )
    yield engine
    engine.dispose()


def empty(engine: Engine) -> None:
    """Create the table of effects if needed, and delete what earlier tests left behind."""
    with engine.begin() as connection:
        connection.exec_driver_sql(_EMPTY)


def make_applier(service: Service, engine: Engine, limits: HandlerLimits = LIMITS) -> Applier:
    """Return an applier of a service's handlers."""
    sessions = make_sessions(engine)
    sessions.configure(close_resets_only=False)
    return Applier(service, sessions, limits)


def write_down(session: Session, number: int) -> None:
    """Store the number, as a handler would."""
    session.add(Effect(number=number))
    session.flush()
