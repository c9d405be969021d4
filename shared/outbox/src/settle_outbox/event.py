"""Events, as a publishing service adds them and as a consuming service receives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from uuid_utils.compat import uuid7

from settle_outbox.trace import Trace, current_trace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID


def format_time(moment: datetime) -> str:
    """Return a time in UTC, with microseconds: ``2025-06-17T20:55:35.806222Z``."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Event:
    """A fact that a service publishes.

    Args:
        aggregatetype: the kind of aggregate. The topic is ``<aggregatetype>.events``.
        aggregateid: the key of the record. Events of one key keep their order.
        type: the CloudEvents type, in the past tense: ``order.created``.
        data: the content, for JSON: strings, integers, finite floats, booleans, None, lists, tuples
            and mappings with keys of type str. These types are converted:

            * UUID: to a string in lower case, with hyphens.
            * datetime with a time zone: to UTC, as ``2025-06-17T20:55:35.806222Z``. A datetime
              without a time zone is an error, because it does not define a moment.
            * date: to ``2025-06-17``.
            * Decimal: to a string with its exact digits. A JSON number would be rounded by readers
              that parse numbers as floats.
            * Enum: to its value.
        id: the CloudEvents id, a UUIDv7. Consumers recognize duplicates by it.
        trace: of the HTTP request that caused the event; by default the current trace.
    """

    aggregatetype: str
    aggregateid: str
    type: str
    data: Mapping[str, Any]
    id: UUID = field(default_factory=uuid7)
    trace: Trace = field(default_factory=current_trace.get)


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event from a topic.

    Args:
        id: the CloudEvents id, by which duplicates are recognized.
        type: the CloudEvents type.
        source: the CloudEvents source: ``/`` and the name of the publishing service.
        time: when the event was added to the outbox, or None if no header has a valid time.
        trace: of the HTTP request that caused the event.
        data: the result of the subscription's schema.
        topic: the topic.
        partition: the partition.
        offset: the position in the partition.
        key: of the record: the `aggregateid` of the `Event`, in UTF-8.
        headers: all headers of the record in their order. A name may occur twice, and a value may
            be None.
    """

    id: UUID
    type: str
    source: str
    time: datetime | None
    trace: Trace
    data: Any
    topic: str
    partition: int
    offset: int
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
