"""A committed offset is only valid for the topic whose id its metadata contains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from kafka import OffsetAndMetadata, TopicPartition

from settle_outbox.kafka.offsets import find_stale, offsets_of

FIRST = TopicPartition("orders.events", 0)
OLD, NEW = UUID(int=1), UUID(int=2)


def record(offset: int, leader_epoch: int) -> Any:
    return SimpleNamespace(offset=offset, leader_epoch=leader_epoch)


def test_a_commit_carries_the_id_of_the_topic_that_was_read() -> None:
    batch = {FIRST: [record(offset=6, leader_epoch=3), record(offset=7, leader_epoch=4)]}

    offsets = offsets_of(batch, {"orders.events": OLD})

    assert offsets == {FIRST: OffsetAndMetadata(offset=8, metadata=str(OLD), leader_epoch=4)}


def test_a_topic_without_an_id_leaves_the_metadata_empty() -> None:
    offsets = offsets_of({FIRST: [record(offset=6, leader_epoch=3)]}, {"orders.events": None})

    assert offsets == {FIRST: OffsetAndMetadata(offset=7, metadata="", leader_epoch=3)}


@pytest.mark.parametrize(
    ("metadata", "topic_id", "recreated", "stale"),
    [
        (str(OLD), OLD, set(), False),
        (str(OLD), NEW, set(), True),
        (str(NEW), OLD, set(), True),  # this consumer has not noticed the new topic yet
        ("", NEW, set(), False),
        (None, NEW, set(), False),  # the embedded broker drops metadata
        ("", NEW, {"orders.events"}, True),
        (None, NEW, {"orders.events"}, True),
        (str(NEW), NEW, {"orders.events"}, False),
        ("set by hand", NEW, set(), True),
        (str(OLD), None, set(), False),
    ],
)
def test_an_offset_is_stale_when_its_topic_is_gone(
    metadata: str | None, topic_id: UUID | None, recreated: set[str], *, stale: bool
) -> None:
    committed = {FIRST: OffsetAndMetadata(5, metadata, -1)}

    found = find_stale(committed, {"orders.events": topic_id}, recreated)

    assert found == ([FIRST] if stale else [])
