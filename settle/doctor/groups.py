"""The consumer groups: whether somebody is in them, and how far behind they are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kafka.admin import OffsetSpec

from settle.doctor.check import UNTOLD, duration, fail, graded, ok, warn
from settle.doctor.delivery import LATE_FAIL_S, LATE_WARN_S
from shared.outbox.clients import make_reader
from shared.outbox.topics import close_quietly

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kafka import KafkaAdminClient, TopicPartition

    from settle.doctor.check import Check
    from shared.outbox.service import Service
    from shared.settings import Settings

LAG_WARN_RECORDS = 10_000
READ_TIMEOUT_S = 5.0


def check_members(admin: KafkaAdminClient, service: Service) -> Iterator[Check]:
    """Whether a consumer is in the group."""
    name = f"{service.name} consumers"
    state = _state(admin, service)
    start = f"inbox-consumer run {service.name}; settle logs {service.name}-consumer"
    if state is None:
        yield fail(name, f"none has ever joined the group {service.name}", start)
    elif state in {"Empty", "Dead"}:
        yield fail(name, f"none is in the group {service.name}", start)
    elif state == "Stable":
        yield ok(name, f"in the group {service.name}, which is stable")
    elif state == "Unknown":
        yield ok(name, UNTOLD)
    else:
        yield warn(
            name,
            f"the group {service.name} gives its partitions out anew ({state})",
            "ask again in a moment; if it lasts, consumers come and go: see their logs",
        )


def _state(admin: KafkaAdminClient, service: Service) -> str | None:
    states = {group["group_id"]: group["group_state"] for group in admin.list_groups()}
    return states.get(service.name)


@dataclass(frozen=True, slots=True)
class _Unread:
    """What a group has still to read of a partition.

    Args:
        records: how many.
        lost: how many are gone that it has not read.
        age_s: of the first, by its timestamp; 0 when there is none.
        is_ahead: whether what it has committed is beyond the end.
    """

    records: int
    lost: int
    age_s: float
    is_ahead: bool


def check_lag(
    admin: KafkaAdminClient, service: Service, settings: Settings, where: list[TopicPartition]
) -> Iterator[Check]:
    """How many records the group has still to read, and for how long the first has waited."""
    name = f"{service.name} lag"
    unread = _unread(admin, service, settings, where)
    records = sum(each.records for each in unread)
    lost = sum(each.lost for each in unread)
    oldest_s = max(each.age_s for each in unread)
    late = f"{records} records, the first for {duration(oldest_s)}"
    if lost:
        yield fail(
            name,
            f"{lost} records are gone that were never read",
            f"outbox-relay replay on the publishing side; {_topics(service)} keep too little",
        )
    elif any(each.is_ahead for each in unread):
        yield warn(
            name,
            "offsets are beyond the end: a topic was made anew",
            "nothing: the consumer notices it and joins anew",
        )
    elif records > LAG_WARN_RECORDS and oldest_s <= LATE_FAIL_S:
        yield warn(name, late, "start another consumer, up to one for each partition")
    else:
        yield graded(
            name,
            oldest_s,
            late if records else "none",
            f"see that a consumer runs (settle logs {service.name}-consumer); if it does, start "
            "another one, up to one for each partition",
            warn_over=LATE_WARN_S,
            fail_over=LATE_FAIL_S,
        )


def _topics(service: Service) -> str:
    return ", ".join(service.consumed_topics)


def _unread(
    admin: KafkaAdminClient, service: Service, settings: Settings, where: list[TopicPartition]
) -> list[_Unread]:
    starts = {
        place: told.offset
        for place, told in admin.list_partition_offsets(
            dict.fromkeys(where, OffsetSpec.EARLIEST)
        ).items()
    }
    committed: dict[TopicPartition, int] = {}
    if _state(admin, service) is not None:
        told = admin.list_group_offsets(service.name).get(service.name, {})
        committed = {place: each.offset for place, each in told.items() if each.offset >= 0}
    begins = {place: max(starts[place], committed.get(place, 0)) for place in where}
    ends, first_ms = _look_at(settings, begins)
    return [
        _Unread(
            records=max(0, ends[place] - begins[place]),
            lost=max(0, starts[place] - committed.get(place, starts[place])),
            age_s=max(0.0, time.time() - first_ms[place] / 1000) if place in first_ms else 0.0,
            is_ahead=committed.get(place, 0) > ends[place],
        )
        for place in where
    ]


def _look_at(
    settings: Settings, begins: Mapping[TopicPartition, int]
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """The end of each partition, and the timestamp of the record at which reading would begin.

    Read, not asked for: of the embedded broker, only what comes with records is right.
    """
    reader = make_reader(settings)
    try:
        reader.assign(list(begins))
        for place, offset in begins.items():
            reader.seek(place, offset)
        first_ms: dict[TopicPartition, int] = {}
        deadline = time.monotonic() + READ_TIMEOUT_S
        while True:
            for place, records in reader.poll(timeout_ms=200).items():
                first_ms.setdefault(place, records[0].timestamp)
            ends = {place: reader.highwater(place) for place in begins}
            if _is_complete(begins, ends, first_ms):
                return {place: int(end) for place, end in ends.items() if end is not None}, first_ms
            if time.monotonic() > deadline:
                raise TimeoutError(f"the topics could not be read within {READ_TIMEOUT_S:.0f} s")
    finally:
        close_quietly(reader)


def _is_complete(
    begins: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int | None],
    first_ms: Mapping[TopicPartition, int],
) -> bool:
    return all(
        end is not None and (end <= begins[place] or place in first_ms)
        for place, end in ends.items()
    )
