"""How batches of records are read from bytes, sound and corrupt ones."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import kafka
import kafka.codec
import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import UnsupportedCodecError
from kafka.record import MemoryRecords

from shared.outbox import kafka_internals
from shared.outbox.kafka_internals import KafkaVersionError, UnreadableBatchError
from support.segments import (
    ATTRIBUTES_AT,
    CODECS,
    COUNT_AT,
    LAST_OFFSET_DELTA_AT,
    LENGTH_AT,
    MAGIC_AT,
    RECORDS_AT,
    batch_of,
    flip,
    put,
    with_checksum,
)

PARTITION = TopicPartition("orders.events", 3)
HIGH_WATERMARK = 1_000


@pytest.fixture(autouse=True)
def _patched() -> None:
    kafka_internals.patch_consumers()


def read(*batches: bytes, at: int = 0) -> tuple[list[Any], UnreadableBatchError | None]:
    """Read a fetch of these batches as the consumer does: all that it gives, and its error."""
    part = Fetcher.PartitionRecords(at, PARTITION, MemoryRecords(b"".join(batches)))
    part.high_watermark = HIGH_WATERMARK
    records = []
    try:
        while part:
            records += part.take(2)
    except UnreadableBatchError as error:
        assert not part, "it would be asked for more without end"
        return records, error
    return records, None


def offsets(records: list[Any]) -> list[int]:
    return [record.offset for record in records]


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_of_each_codec_is_read(codec: str) -> None:
    long = b"long enough to be worth it " * 100
    batch = batch_of(long, b"b", offset=5, codec=codec)

    records, error = read(batch)

    assert batch[ATTRIBUTES_AT + 1] == CODECS[codec]
    assert error is None
    assert [(record.offset, record.value) for record in records] == [(5, long), (6, b"b")]


SOUND = batch_of(b"a", b"b", offset=2)
UNREADABLE = {
    "checksum": flip(SOUND, len(SOUND) - 1),
    "format to come": put(SOUND, MAGIC_AT, ">b", 3),
    "negative format": put(SOUND, MAGIC_AT, ">b", -1),
    "negative length of a record": with_checksum(put(SOUND, RECORDS_AT, ">B", 1)),
    "length beyond the end": with_checksum(put(SOUND, RECORDS_AT, ">B", 0x7E)),
    "more records than there are": with_checksum(put(SOUND, COUNT_AT, ">i", 3)),
    "fewer records than there are": with_checksum(put(SOUND, COUNT_AT, ">i", 1)),
    "no records": with_checksum(put(SOUND, COUNT_AT, ">i", 0)),
    "offset outside the batch": with_checksum(put(SOUND, RECORDS_AT + 3, ">B", 0x20)),
    "last offset before the first": with_checksum(put(SOUND, LAST_OFFSET_DELTA_AT, ">i", -2)),
    **{
        f"no {codec}": with_checksum(put(SOUND, ATTRIBUTES_AT, ">h", number))
        for codec, number in CODECS.items()
        if number
    },
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_corrupt_batch_is_told_whole_after_what_comes_before_it(kind: str) -> None:
    before, after = batch_of(b"x", b"y"), batch_of(b"z", offset=4)

    records, error = read(before, UNREADABLE[kind], after)

    assert offsets(records) == [0, 1]
    assert error is not None
    assert not error.lacks_codec
    assert (error.partition, error.offset, error.last_offset) == (PARTITION, 2, 3)
    assert error.value == UNREADABLE[kind]


@pytest.mark.parametrize(
    ("delta", "last"),
    [(1, 3), (500, 502), (10_000, 2), (-7, 2)],
    ids=["as it is", "in the topic", "beyond its end", "before its beginning"],
)
def test_at_the_end_of_a_fetch_the_header_says_where_a_batch_ends_if_it_can(
    delta: int, last: int
) -> None:
    """Otherwise one offset is skipped, so that nothing behind the batch can be lost."""
    corrupt = flip(put(SOUND, LAST_OFFSET_DELTA_AT, ">i", delta), len(SOUND) - 1)

    _, error = read(corrupt, at=2)

    assert error is not None
    assert error.last_offset == last


def test_a_batch_that_leads_back_is_unreadable() -> None:
    """Its base offset has no checksum; followed, it would be read again and again."""
    records, error = read(batch_of(b"a", b"b", offset=4), batch_of(b"c", offset=0), at=4)

    assert offsets(records) == [4, 5]
    assert error is not None
    assert error.offset == 6


@pytest.mark.parametrize("length", [-1, -40, 3])
def test_a_batch_whose_own_length_is_wrong_is_told(length: int) -> None:
    records, error = read(put(SOUND, LENGTH_AT, ">i", length), batch_of(b"z", offset=4), at=2)

    assert records == []
    assert error is not None
    assert error.offset == 2


def test_a_missing_codec_is_not_taken_for_corruption(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = batch_of(b"a" * 1000, codec="snappy")
    monkeypatch.setattr(kafka.codec, "snappy", None)

    _, error = read(compressed)

    assert error is not None
    assert error.lacks_codec
    assert isinstance(error.cause, UnsupportedCodecError)


def test_a_codec_that_nobody_knows_is_not_taken_for_corruption() -> None:
    _, error = read(with_checksum(put(SOUND, ATTRIBUTES_AT, ">h", 7)), at=2)

    assert error is not None
    assert error.lacks_codec


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_a_batch_that_expands_beyond_all_measure_is_unreadable(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_internals, "EXPANDED_MAX_BYTES", 100_000)
    bomb = batch_of(b"x" * 200_000, codec=codec)

    records, error = read(bomb)

    assert records == []
    assert error is not None
    assert "100000" in error.reason


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd", "snappy"])
def test_a_compressed_batch_that_ends_early_is_unreadable(codec: str) -> None:
    whole = batch_of(b"x" * 1000, codec=codec)
    shorter = with_checksum(put(whole, LENGTH_AT, ">i", len(whole) - 12 - 4)[:-4])

    records, error = read(shorter)

    assert records == []
    assert error is not None
    assert (error.last_offset, error.value) == (0, shorter)


def test_another_version_of_kafka_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_internals, "__version__", "3.0.13")
    with pytest.raises(KafkaVersionError, match=r"pip install kafka-python==3\.0\.12"):
        kafka_internals.connect(Mock())


def test_a_private_part_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Fetcher, "_parse_fetched_data")
    with pytest.raises(KafkaVersionError, match=r"Fetcher\._parse_fetched_data"):
        kafka_internals.check()
