"""Events: as one service adds them, and as another receives them."""

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
    """Return a moment as ``2025-06-17T20:55:35.806222Z``: UTC, always with microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, which other services want to know.

    Args:
        aggregatetype: the kind of thing it happened to; its topic is ``<aggregatetype>.events``.
        aggregateid: the record's key; events of one key keep their order.
        type: the CloudEvents type, past tense: ``order.created``.
        data: the facts, as JSON: strings, integers, finite floats, booleans, None, lists, tuples
            and mappings with keys of type str. These are converted:

            * UUID: a string in small letters, with hyphens.
            * datetime with a time zone: UTC, as ``2025-06-17T20:55:35.806222Z``. One without a
              time zone is refused, because it does not name a moment.
            * date: ``2025-06-17``.
            * Decimal: a string with its exact digits. A number would be rounded by every reader
              that takes JSON numbers for floats.
            * Enum: its value.
        id: the CloudEvents id, a UUIDv7, by which consumers drop duplicates.
        trace: of the request that caused it; by default the current one.
    """

    aggregatetype: str
    aggregateid: str
    type: str
    data: Mapping[str, Any]
    id: UUID = field(default_factory=uuid7)
    trace: Trace = field(default_factory=current_trace.get)


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event as it came from its topic.

    Args:
        id: the CloudEvents id, by which duplicates are dropped.
        type: the CloudEvents type.
        source: the CloudEvents source: ``/`` and the name of the service that published it.
        time: when it was added to the outbox; None if its header is missing or no time.
        trace: of the request that caused it.
        data: what the subscription's schema returned.
        topic: the topic.
        partition: the partition.
        offset: the position in the partition.
        key: of the record, which is the UTF-8 of the `aggregateid` of an `Event`.
        headers: all headers of the record, in their order, as Kafka has them. A name may stand
            there twice, and a value may be None.
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
