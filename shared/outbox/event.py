"""Events: as a service adds them, and as another receives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uuid_utils.compat import uuid7

from shared.trace import Trace, current_trace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, to be told to other services.

    Args:
        aggregatetype: the kind of thing it happened to; its topic is ``<aggregatetype>.events``.
        aggregateid: the record's key; events of one key keep their order.
        type: the CloudEvents type, past tense: ``order.created``.
        data: what is told; JSON-serialisable.
        id: the CloudEvents id, a UUIDv7, by which consumers drop duplicates.
        trace: of the request that caused it; the current one unless told.
    """

    aggregatetype: str
    aggregateid: str
    type: str
    data: Mapping[str, Any]
    id: UUID = field(default_factory=uuid7)
    trace: Trace = field(default_factory=current_trace.get)


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event as it came from its topic, its data validated by the subscription's schema."""

    id: UUID
    type: str
    source: str
    time: datetime | None
    trace: Trace
    data: Mapping[str, Any]
    topic: str
    partition: int
    offset: int
